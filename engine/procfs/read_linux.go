package procfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

// reading is a file that is read once, from its beginning to its end. An os.File would be offered to the poller of the Go
// runtime first, which costs four system calls for a file of /proc that need two.
type reading struct {
	fd   int
	path string
}

func (p FS) read(elem ...any) (*reading, error) {
	r := &reading{path: p.Path(elem...)}
	var err error
	for {
		r.fd, err = syscall.Open(r.path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, gone(&fs.PathError{Op: "open", Path: r.path, Err: err})
	}
	return r, nil
}

func (r *reading) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(r.fd, b)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return 0, &fs.PathError{Op: "read", Path: r.path, Err: err}
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (r *reading) close() { _ = syscall.Close(r.fd) } // opened for reading: nothing is lost
