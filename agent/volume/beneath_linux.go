package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// beneath are the rules of a walk below a root (openat2(2)).
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openBeneath opens a path below a directory. No symbolic link, mount or ".." is followed.
func openBeneath(dir int, name string, flags int, mode uint32) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Mode: uint64(mode), Resolve: beneath}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		// EAGAIN: a rename elsewhere made the walk uncertain. Nothing here is opened in a way that blocks.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

// openRoot opens the directory in which a unit is. Links on the way to it are the host's own; its last part is none.
func openRoot(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// openParent opens the directory that a path is in, and returns the path's last part.
func openParent(root *os.File, name string) (dir int, base string, err error) {
	d, base := path.Split(name)
	dir, err = openBeneath(int(root.Fd()), strings.TrimSuffix(d, "/"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, "", fmt.Errorf("%s/%s: %w", root.Name(), d, err)
	}
	return dir, base, nil
}

// inParent calls f with the directory that a path below root is in.
func inParent(root *os.File, name string, f func(dir int, base string) error) error {
	dir, base, err := openParent(root, name)
	if err != nil {
		return err
	}
	err = f(dir, base)
	if err != nil {
		err = fmt.Errorf("%s/%s: %w", root.Name(), name, err)
	}
	return errors.Join(err, unix.Close(dir))
}

// byDescriptor is a path of a name in an open directory for calls that take no descriptor, such as lsetxattr(2).
func byDescriptor(dir int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + base
}

// removeTree removes a name and all that is below it; that it is gone already is no error.
func removeTree(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	fd, err := openBeneath(dir, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	if err := errors.Join(emptyDir(f, nil), f.Close()); err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

// emptyDir removes what is in a directory, but names that keep tells.
func emptyDir(dir *os.File, keep func(name string) bool) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if keep == nil || !keep(n) {
			errs = append(errs, removeTree(int(dir.Fd()), n))
		}
	}
	return errors.Join(errs...)
}

// namesIn lists an open directory from its beginning.
func namesIn(dir *os.File) ([]string, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("reading directory %s: %w", dir.Name(), err)
	}
	return names, nil
}

// syncPath flushes a directory.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func nsec(t unix.Timespec) int64 { return t.Sec*1e9 + t.Nsec }
