package initramfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestArchive compares an archive with the bytes that buffer-format.rst asks for.
func TestArchive(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	w.File("/bin/x", 0o755, []byte("hello"))
	w.Dir("bin", 0o700) // is there already
	w.Link("y", "bin/x")
	w.Device("null", 0o666, 1, 3)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	header := func(inode, mode, size, major, minor, name string) string {
		return "070701" + inode + mode + strings.Repeat("0", 16) + "00000001" + "00000000" + size + strings.Repeat("0", 16) + major + minor + name + "00000000"
	}
	const zero = "00000000"
	want := header("00000001", "000041ed", zero, zero, zero, "00000004") + "bin\x00\x00\x00" +
		header("00000002", "000081ed", "00000005", zero, zero, "00000006") + "bin/x\x00hello\x00\x00\x00"
	want += header("00000003", "0000a1ff", "00000005", zero, zero, "00000002") + "y\x00bin/x\x00\x00\x00" +
		header("00000004", "000021b6", zero, "00000001", "00000003", "00000005") + "null\x00\x00" +
		header("00000005", zero, zero, zero, zero, "0000000b") + "TRAILER!!!\x00\x00\x00\x00"
	if got := b.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestFirstErrorStays(t *testing.T) {
	w := NewWriter(&bytes.Buffer{})
	w.Copy("x", 0o644, filepath.Join(t.TempDir(), "missing"))
	w.Dir("y", 0o755)
	if err := w.Close(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
