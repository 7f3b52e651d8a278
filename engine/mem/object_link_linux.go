package mem

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// A madeLink is a name that was made for a file, so that a restore finds it. Where it is used, the restore removes it.
type madeLink struct {
	dir  *os.File
	name string
}

// maxEntries bounds how much of a directory is searched for another name of a file.
const maxEntries = 1 << 16

// findOther finds another name of a file that lost one: in the directory where it was or, if it is needed now, by making one
// there. Nothing tells where else its names are. The lock must be held.
func (o *Objects) findOther(x *object, needed bool) (err error) {
	r := x.record
	if r.Other != "" && namesFile(o.root+r.Other, x.file) {
		return nil
	}
	r.Other, r.Temporary = "", false
	at := path.Dir(r.Path)
	dir, err := os.OpenFile(o.root+at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("looking for another name of the file: %w", err)
	}
	defer func() {
		if dir != nil {
			err = errors.Join(err, dir.Close())
		}
	}()
	for n := 0; n < maxEntries; n += 1024 {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if other := path.Join(at, name); namesFile(o.root+other, x.file) {
				r.Other = other
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if !needed {
		return nil // a name is made when the tree is stopped
	}
	name := fmt.Sprintf(".migrate-%d-%d", os.Getpid(), r.Id)
	if err := unix.Linkat(int(x.file.Fd()), "", int(dir.Fd()), name, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("the file has other names that cannot be found, and giving it one in %s failed: %w", at, err)
	}
	o.links = append(o.links, madeLink{dir, name})
	dir = nil
	r.Other, r.Temporary = path.Join(at, name), true
	return nil
}

// namesFile tells whether a path leads to an open file.
func namesFile(name string, f *os.File) bool {
	var st, is unix.Stat_t
	return unix.Lstat(name, &st) == nil && unix.Fstat(int(f.Fd()), &is) == nil && st.Dev == is.Dev && st.Ino == is.Ino
}

// KeepLinks leaves the names that were made for the restore.
func (o *Objects) KeepLinks() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.links {
		_ = l.dir.Close() // a directory handle: nothing is lost
	}
	o.links = nil
}

// Unlink removes the names that were made for a restore.
func (o *Objects) Unlink() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.unlink()
}

// unlink removes the names that were made. The lock must be held.
func (o *Objects) unlink() error {
	var errs []error
	for _, l := range o.links {
		err := unix.Unlinkat(int(l.dir.Fd()), l.name, 0)
		if errors.Is(err, unix.ENOENT) { // the restore has done it
			err = nil
		}
		errs = append(errs, err, l.dir.Close())
	}
	o.links = nil
	return errors.Join(errs...)
}
