package move

import (
	"os"

	"golang.org/x/sys/unix"
)

// flush makes the content of f durable. Its size does not change, so the rest of its metadata may wait (fdatasync(2)).
func flush(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
