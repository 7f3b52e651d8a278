package volume

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dirOf is the directory that a path of a unit is in.
func dirOf(unit uint32, p string) place {
	d := path.Dir(p)
	if d == "." {
		d = ""
	}
	return place{unit, d}
}

// touched notes that names in a directory have changed: it has to be flushed, and gets its times back.
func (w *writer) touched(d place) {
	w.dirs[d] = true
}

// entry makes an entry, or makes one that is there into it.
func (w *writer) entry(p []byte) error {
	if w.file != nil {
		return fmt.Errorf("%w: a file does not end", ErrCorrupt)
	}
	unit, e, err := decodeEntry(p)
	if err != nil {
		return err
	}
	if err := w.unit(unit, e.Path); err != nil {
		return err
	}
	if e.Path == "" {
		if err := setAttributes(int(w.roots[unit].Fd()), &e); err != nil {
			return fmt.Errorf("%s: %w", w.units[unit].Dir, err)
		}
		w.times[place{unit, ""}] = e
		w.touched(place{unit, ""})
		return nil
	}
	return inParent(w.roots[unit], e.Path, func(dir int, base string) error {
		switch e.Type {
		case TypeFile:
			return w.begin(dir, base, unit, e)
		case TypeDir:
			return w.mkdir(dir, base, unit, e)
		}
		return w.special(dir, base, unit, e)
	})
}

// begin opens a regular file for what follows.
func (w *writer) begin(dir int, base string, unit uint32, e Entry) error {
	fd, err := openBeneath(dir, base, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path.Join(w.units[unit].Dir, e.Path))
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("it is %v here", typeOf(st.Mode))
	}
	if err == nil && uint64(st.Size) != e.Size {
		err = f.Truncate(int64(e.Size))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.file = &openFile{f: f, entry: e, dir: dirOf(unit, e.Path)}
	return nil
}

// finish gives the file that was begun its attributes; its times last.
func (w *writer) finish() error {
	f := w.file
	fd := int(f.f.Fd())
	err := setAttributes(fd, &f.entry)
	if err == nil {
		err = setTimes(fd, "", &f.entry)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.f.Name(), err)
	}
	w.file = nil
	w.touched(f.dir)
	if len(w.unsynced) >= maxUnsynced {
		w.many = true
	}
	if w.many {
		return f.f.Close()
	}
	w.unsynced = append(w.unsynced, f.f)
	return nil
}

func (w *writer) mkdir(dir int, base string, unit uint32, e Entry) error {
	if err := unix.Mkdirat(dir, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := openBeneath(dir, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = setAttributes(fd, &e)
	w.times[place{unit, e.Path}] = e
	w.touched(dirOf(unit, e.Path))
	w.touched(place{unit, e.Path})
	return errors.Join(err, unix.Close(fd))
}

// special makes what has no content: it is made anew when it is there.
func (w *writer) special(dir int, base string, unit uint32, e Entry) error {
	if err := unix.Unlinkat(dir, base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	var err error
	switch e.Type {
	case TypeSymlink:
		err = unix.Symlinkat(e.Target, dir, base)
	case TypeFifo:
		err = unix.Mknodat(dir, base, unix.S_IFIFO|e.Mode, 0)
	case TypeChar:
		err = unix.Mknodat(dir, base, unix.S_IFCHR|e.Mode, int(e.Device))
	case TypeBlock:
		err = unix.Mknodat(dir, base, unix.S_IFBLK|e.Mode, int(e.Device))
	}
	if err != nil {
		return err
	}
	w.touched(dirOf(unit, e.Path))
	if err := unix.Fchownat(dir, base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	at := byDescriptor(dir, base)
	if e.Type != TypeSymlink {
		if err := unix.Fchmodat(dir, base, e.Mode, 0); err != nil { // no link: it was made just now, in this directory
			return fmt.Errorf("mode: %w", err)
		}
	}
	for _, x := range e.Xattrs {
		if err := unix.Lsetxattr(at, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("extended attribute %s: %w", x.Name, err)
		}
	}
	return setTimes(dir, base, &e)
}

// setAttributes sets owner, mode and extended attributes of an open file or directory. The owner comes first, for a
// change of it takes set-id bits and capabilities away (chown(2)).
func setAttributes(fd int, e *Entry) error {
	if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	if err := setXattrs(fd, e); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	return nil
}

// setXattrs makes the extended attributes those of the entry.
func setXattrs(fd int, e *Entry) error {
	have, err := readXattrs(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
	if err != nil {
		return err
	}
	for _, x := range have {
		if !slices.ContainsFunc(e.Xattrs, func(y Xattr) bool { return x.Name == y.Name }) {
			if err := unix.Fremovexattr(fd, x.Name); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("removing extended attribute %s: %w", x.Name, err)
			}
		}
	}
	for _, x := range e.Xattrs {
		if slices.ContainsFunc(have, func(y Xattr) bool { return x.Name == y.Name && string(x.Value) == string(y.Value) }) {
			continue
		}
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("extended attribute %s: %w", x.Name, err)
		}
	}
	return nil
}

// setTimes sets the times of an open file (an empty base), or of a name in an open directory.
func setTimes(fd int, base string, e *Entry) error {
	ts := []unix.Timespec{unix.NsecToTimespec(e.ATime), unix.NsecToTimespec(e.MTime)}
	var err error
	if base == "" {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), ts, 0)
	} else {
		err = unix.UtimesNanoAt(fd, base, ts, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

// dirTimes gives directories whose names have changed their times back.
func (w *writer) dirTimes() error {
	for d := range w.dirs {
		e, ok := w.times[d]
		if !ok {
			continue
		}
		fd, err := openBeneath(int(w.roots[d.unit].Fd()), d.path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) {
			delete(w.times, d)
			continue
		}
		if err == nil {
			err = errors.Join(setTimes(fd, "", &e), unix.Close(fd))
		}
		if err != nil {
			return fmt.Errorf("directory %s/%s: %w", w.units[d.unit].Dir, d.path, err)
		}
	}
	return nil
}

func (w *writer) remove(unit uint32, paths []string) error {
	p := paths[0]
	w.touched(dirOf(unit, p))
	for d := range w.times {
		if d.unit == unit && (d.path == p || strings.HasPrefix(d.path, p+"/")) {
			delete(w.times, d)
		}
	}
	return inParent(w.roots[unit], p, removeTree)
}

func (w *writer) link(unit uint32, paths []string) error {
	w.touched(dirOf(unit, paths[1]))
	return inParent(w.roots[unit], paths[0], func(from int, old string) error {
		return inParent(w.roots[unit], paths[1], func(to int, base string) error {
			if err := removeTree(to, base); err != nil {
				return err
			}
			return unix.Linkat(from, old, to, base, 0) // without AT_SYMLINK_FOLLOW: the name itself
		})
	})
}

func (w *writer) rename(unit uint32, paths []string) error {
	w.touched(dirOf(unit, paths[0]))
	w.touched(dirOf(unit, paths[1]))
	return inParent(w.roots[unit], paths[0], func(from int, old string) error {
		return inParent(w.roots[unit], paths[1], func(to int, base string) error { return unix.Renameat(from, old, to, base) })
	})
}

// listPart is how many entries one answer names: with names of ordinary length it is far below a frame.
const listPart = 200

func (w *writer) list(unit uint32, _ []string) error {
	all, err := walk(w.roots[unit], w.units[unit])
	if err != nil {
		return err
	}
	var list []listed
	for _, f := range all {
		if f.kind() != 0 {
			list = append(list, listed{f.path, f.kind(), uint64(f.st.Size), uint32(f.st.Nlink)})
		}
	}
	for {
		n := min(len(list), listPart)
		if err := w.answer(kindListed, encodeListed(list[:n], n == len(list))); err != nil {
			return err
		}
		if list = list[n:]; len(list) == 0 {
			return nil
		}
	}
}

// hashPart is how many hashes one answer holds.
const hashPart = 1 << 15

func (w *writer) have(unit uint32, paths []string) error {
	var hashes []block
	err := inParent(w.roots[unit], paths[0], func(dir int, base string) error {
		fd, err := openBeneath(dir, base, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), base)
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			hashes, err = hashFile(f, &st)
		}
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return err
	}
	for {
		n := min(len(hashes), hashPart)
		if err := w.answer(kindHashes, encodeHashes(hashes[:n], n == len(hashes))); err != nil {
			return err
		}
		if hashes = hashes[n:]; len(hashes) == 0 {
			return nil
		}
	}
}
