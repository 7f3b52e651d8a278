//go:build linux

package ns

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// A Swap is a file that has taken the place of another one. That one still exists and has a name that no other file has.
type Swap struct {
	Dir   int    // descriptor of the directory of both
	Base  string // the name of the new file
	Aside string // and that of the old one
}

// SwapMounts lets the mounts of files that were replaced show those that came in their place, in the mount namespace of a
// process. A mount keeps its place, its flags and whether it is shared.
func SwapMounts(pid int, swaps []Swap) error {
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer func() { _ = proc.Close() }() // a directory: nothing is lost
	return Inside(pid, unix.CLONE_NEWNS, func() error {
		all, err := visibleMounts(proc)
		if err != nil {
			return err
		}
		for _, m := range all {
			i := slices.IndexFunc(swaps, func(s Swap) bool { return path.Base(m.Root) == s.Aside })
			if i < 0 {
				continue
			}
			if err := swaps[i].replace(m, all); err != nil {
				return fmt.Errorf("the mount of a file at %s: %w", m.Mountpoint, err)
			}
		}
		return nil
	})
}

// visibleMounts reads the mounts of the namespace of this thread, which may have no /proc.
func visibleMounts(proc *os.File) ([]*mountinfo.Info, error) {
	fd, err := unix.Openat(int(proc.Fd()), "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	defer func() { _ = f.Close() }() // opened for reading: nothing is lost
	return procfs.ParseMounts(f)
}

// replace puts a mount of the new file where one of the old file is.
func (s Swap) replace(m *mountinfo.Info, all []*mountinfo.Info) (err error) {
	if same, err := sameFile(unix.AT_FDCWD, m.Mountpoint, s.Dir, s.Aside); err != nil || !same {
		return errors.Join(errors.New("another mount hides it"), err)
	}
	fd, from, err := s.clone(m, all)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	a := attributes(mountFlagsOf(m))
	old, _, unbindable := peerGroups(m.Optional)
	switch group, _, _ := peerGroups(from.Optional); {
	case unbindable:
		a.Propagation = unix.MS_UNBINDABLE
	case old == 0 || old != group:
		a.Propagation = unix.MS_PRIVATE
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, a); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, m.Mountpoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	if old != 0 && a.Propagation == unix.MS_PRIVATE {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_SHARED}); err != nil {
			return fmt.Errorf("mount_setattr: %w", err)
		}
	}
	return nil
}

// clone makes a mount of the new file by a path of this namespace, which is below the mount from.
func (s Swap) clone(m *mountinfo.Info, all []*mountinfo.Info) (fd int, from *mountinfo.Info, err error) {
	file := path.Join(path.Dir(m.Root), s.Base)
	for _, o := range slices.Backward(all) {
		rest, ok := cutDir(file, o.Root)
		if !ok || o.Major != m.Major || o.Minor != m.Minor {
			continue
		}
		name := strings.TrimSuffix(o.Mountpoint, "/") + rest
		if same, err := sameFile(unix.AT_FDCWD, name, s.Dir, s.Base); err != nil || !same {
			continue // hidden by another mount
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return -1, nil, fmt.Errorf("open_tree %s: %w", name, err)
		}
		return fd, o, nil
	}
	return -1, nil, fmt.Errorf("its file %s cannot be reached by any mount of the namespace", file)
}

// sameFile tells whether two names are those of one file; a link is itself.
func sameFile(dir1 int, name1 string, dir2 int, name2 string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstatat(dir1, name1, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, fmt.Errorf("stat %s: %w", name1, err)
	}
	if err := unix.Fstatat(dir2, name2, &b, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, fmt.Errorf("stat %s: %w", name2, err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}
