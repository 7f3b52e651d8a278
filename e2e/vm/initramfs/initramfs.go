// Package initramfs writes the archive from which a Linux kernel unpacks its first root file system: cpio in the "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst), not compressed.
//
//	header  110 bytes: "070701", then 13 numbers of 8 hexadecimal digits: inode, mode, uid, gid, links, mtime, size of the data,
//	        device of the file (2), device that it is (2), length of the name with its NUL, 0
//	name    with a NUL, padded with NULs so that the data begins at a multiple of 4
//	data    padded to a multiple of 4
//
// The last entry is called TRAILER!!!.
package initramfs

import (
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A Writer writes an archive. Directories above an entry that were not written before are made, with mode 0755. The first
// error stays and is what Close returns.
type Writer struct {
	w     io.Writer
	inode int
	dirs  map[string]bool
	err   error
}

// NewWriter returns a Writer of an archive to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, dirs: map[string]bool{".": true}} }

// Dir adds a directory.
func (w *Writer) Dir(name string, perm uint32) {
	if name = clean(name); w.dirs[name] {
		return
	}
	w.above(name)
	w.dirs[name] = true
	w.entry(name, unix.S_IFDIR|perm, 0, 0, nil)
}

// File adds a regular file.
func (w *Writer) File(name string, perm uint32, data []byte) {
	w.above(clean(name))
	w.entry(clean(name), unix.S_IFREG|perm, 0, 0, data)
}

// Copy adds a regular file with the content of one on disk.
func (w *Writer) Copy(name string, perm uint32, from string) {
	data, err := os.ReadFile(from)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.File(name, perm, data)
}

// Link adds a symbolic link.
func (w *Writer) Link(name, to string) {
	w.above(clean(name))
	w.entry(clean(name), unix.S_IFLNK|0o777, 0, 0, []byte(to))
}

// Device adds a character device.
func (w *Writer) Device(name string, perm, major, minor uint32) {
	w.above(clean(name))
	w.entry(clean(name), unix.S_IFCHR|perm, major, minor, nil)
}

// Close ends the archive. It does not close what it was written to.
func (w *Writer) Close() error {
	w.entry("TRAILER!!!", 0, 0, 0, nil)
	if w.err != nil {
		return fmt.Errorf("initramfs: %w", w.err)
	}
	return nil
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (w *Writer) above(name string) {
	if dir := path.Dir(name); dir != "." {
		w.Dir(dir, 0o755)
	}
}

func (w *Writer) entry(name string, mode, major, minor uint32, data []byte) {
	if w.err != nil {
		return
	}
	if len(data) > math.MaxUint32 {
		w.err = fmt.Errorf("%s has %d bytes, more than the format can hold", name, len(data))
		return
	}
	w.inode++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		w.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	for _, part := range [][]byte{padded([]byte(header)), padded(data)} {
		if _, err := w.w.Write(part); err != nil {
			w.err = err
			return
		}
	}
}

// padded returns b with NULs up to a multiple of 4. Every entry begins at one, so that a header is padded as the file is.
func padded(b []byte) []byte { return append(b[:len(b):len(b)], make([]byte, -len(b)&3)...) }
