package mem

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// A maker makes files that no name reaches, below the root directory of a mount namespace.
type maker struct{ root *os.File }

// openIn opens a path inside the root, out of which no link leads.
func (m maker) openIn(name string, flags uint64) (*os.File, error) {
	if name = strings.TrimLeft(name, "/"); name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(m.root.Fd()), name, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) { // a rename elsewhere made the walk uncertain
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: "/" + strings.TrimPrefix(name, "."), Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// within runs fn with a directory. What is missing of its path is made before and removed after it: the directory was
// deleted, too.
func (m maker) within(name string, fn func(dir *os.File) error) (err error) {
	dir, err := m.openIn(name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) && path.Dir(name) != name {
		return m.within(path.Dir(name), func(parent *os.File) (err error) {
			base := path.Base(name)
			if err := unix.Mkdirat(int(parent.Fd()), base, 0o700); err != nil {
				return fmt.Errorf("making the deleted directory %s for a moment: %w", name, err)
			}
			fd, err := unix.Openat(int(parent.Fd()), base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return errors.Join(err, unix.Unlinkat(int(parent.Fd()), base, unix.AT_REMOVEDIR))
			}
			dir := os.NewFile(uintptr(fd), name)
			return errors.Join(fn(dir), unix.Unlinkat(int(parent.Fd()), base, unix.AT_REMOVEDIR), dir.Close())
		})
	}
	if err != nil {
		return err
	}
	return errors.Join(fn(dir), dir.Close())
}

// elsewhere is a directory of a file system of its own, which lives as long as what is made in it: where the file was,
// nothing can be made any more.
func elsewhere(fn func(dir *os.File) error) (err error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("a file system for a deleted file: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fs)) }()
	if err := errors.Join(unix.FsconfigCreate(fs)); err != nil {
		return fmt.Errorf("a file system for a deleted file: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("a file system for a deleted file: %w", err)
	}
	dir := os.NewFile(uintptr(mnt), "a file system for deleted files")
	return errors.Join(fn(dir), dir.Close())
}

// make makes a file, directory or link at its path by what create does under a name, and removes the name again. While
// another file has the name, it is made under one beside it.
func (m maker) make(r *imagespb.Object, create func(dir int, name string) (int, error)) (f *os.File, err error) {
	in := func(dir *os.File) error {
		base, fd, err := path.Base(r.GetPath()), -1, error(nil)
		for i := 0; i < 1000; i++ {
			if fd, err = create(int(dir.Fd()), base); !errors.Is(err, unix.EEXIST) {
				break
			}
			base = fmt.Sprintf(".migrate-%d-%d-%d", os.Getpid(), r.GetId(), i)
		}
		if err != nil {
			return err
		}
		if r.GetDetached() {
			f = os.NewFile(uintptr(fd), r.GetPath())
			return nil
		}
		flags := 0
		if r.GetKind() == imagespb.Object_DIRECTORY {
			flags = unix.AT_REMOVEDIR
		}
		err = unix.Unlinkat(int(dir.Fd()), base, flags)
		if fd < 0 || err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), r.GetPath())
		return nil
	}
	err = unix.EROFS
	if !r.GetDetached() {
		err = m.within(path.Dir(r.GetPath()), in)
	}
	if f == nil && (errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT)) {
		err = elsewhere(in)
	}
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, fmt.Errorf("making the deleted %s again: %w", r.GetPath(), err)
	}
	return f, nil
}

// file makes a regular file.
func (m maker) file(r *imagespb.Object) (*os.File, error) {
	f, err := m.nameless(r)
	if err != nil || f == nil {
		f, err = m.make(r, func(dir int, name string) (int, error) {
			return unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		})
	}
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(r.GetSize())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// nameless makes a file that never had a name. It returns none where it had one, or the file system does not know such.
func (m maker) nameless(r *imagespb.Object) (f *os.File, err error) {
	if !r.GetTmpfile() {
		return nil, nil
	}
	err = m.within(path.Dir(r.GetPath()), func(dir *os.File) error {
		fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			f = os.NewFile(uintptr(fd), r.GetPath())
		}
		return err
	})
	return f, err
}

func (m maker) directory(r *imagespb.Object) (*os.File, error) {
	return m.make(r, func(dir int, name string) (int, error) {
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return -1, err
		}
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			err = errors.Join(err, unix.Unlinkat(dir, name, unix.AT_REMOVEDIR))
		}
		return fd, err
	})
}

func (m maker) symlink(r *imagespb.Object) (*os.File, error) {
	return m.make(r, func(dir int, name string) (int, error) {
		if err := unix.Symlinkat(r.GetOther(), dir, name); err != nil {
			return -1, err
		}
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			err = errors.Join(err, unix.Unlinkat(dir, name, 0))
		}
		return fd, err
	})
}

// link opens a file by another of its names, if possible under the name that was deleted.
func (m maker) link(r *imagespb.Object) (*os.File, error) {
	other, err := m.openIn(r.GetOther(), unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("the file that was called %s, too: %w", r.GetPath(), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(other.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != r.GetMode()&unix.S_IFMT {
		return nil, errors.Join(fmt.Errorf("%s is another file", r.GetOther()), err, other.Close())
	}
	f, err := m.make(r, func(dir int, name string) (int, error) {
		if name != path.Base(r.GetPath()) {
			return -1, unix.EBUSY // another file has the name
		}
		if err := unix.Linkat(int(other.Fd()), "", dir, name, unix.AT_EMPTY_PATH); err != nil {
			return -1, err
		}
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			err = errors.Join(err, unix.Unlinkat(dir, name, 0))
		}
		return fd, err
	})
	if err != nil { // then it is known by its other name
		return other, nil
	}
	return f, other.Close()
}
