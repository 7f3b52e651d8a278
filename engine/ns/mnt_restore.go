//go:build linux

package ns

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
	"migrate/engine/remote"
	"migrate/engine/thread"
)

// The commands of fsconfig(2), which x/sys knows only wrapped.
const (
	fsconfigFlag   = 0
	fsconfigString = 1
	fsconfigCreate = 6
)

// mountMaker makes the mounts of all namespaces of a tree, which may have file systems and peer groups in common.
type mountMaker struct {
	sources map[uint32]int // of each file system of the tree's own: a mount of its root
	outside []int          // clones of mounts of the host, that lend their peer groups
	trees   []*mountTree
	made    map[uint32]int // a mount of each peer group that exists
}

func newMountMaker() *mountMaker {
	return &mountMaker{sources: map[uint32]int{}, made: map[uint32]int{}}
}

func (m *mountMaker) close() error {
	var errs []error
	for _, t := range m.trees {
		for _, fd := range t.fds {
			errs = append(errs, unix.Close(fd))
		}
	}
	for _, fd := range m.sources {
		errs = append(errs, unix.Close(fd))
	}
	for _, fd := range m.outside {
		errs = append(errs, unix.Close(fd))
	}
	*m = *newMountMaker()
	return errors.Join(errs...)
}

// mountTree is a tree of mounts that is being made: first each mount alone, then all put in their places.
type mountTree struct {
	*restorer
	*mountMaker
	pid     int            // of a process in the namespace
	fds     map[uint32]int // of each mount, by id
	settled bool           // they have their peer groups and masters

	borrowed []*borrowed
}

func restoreMounts(r *restorer) (err error) {
	t := &mountTree{restorer: r, mountMaker: r.mounts, pid: r.caller.PID(), fds: map[uint32]int{}}
	t.trees = append(t.trees, t)
	defer func() {
		for _, b := range t.borrowed {
			err = errors.Join(err, b.giveBack())
		}
	}()
	for i, e := range r.in.Mounts {
		x := r.header.GetMounts()[i]
		if isOverlay(e, x) {
			continue // when its layers are in their places
		}
		fd, err := t.alone(e, x)
		if err != nil {
			return fmt.Errorf("%s at %s: %w", e.GetFsname(), e.GetMountpoint(), err)
		}
		t.fds[e.GetMntId()] = fd
	}
	return Inside(r.caller.PID(), unix.CLONE_NEWNS, t.assemble)
}

// alone makes a mount that is nowhere yet, and private.
func (t *mountTree) alone(e *mnt.MntEntry, x *imagespb.Mount) (int, error) {
	if x.GetDeleted() != nil || x.GetSameAs() != 0 {
		return t.makeDeleted(e, x)
	}
	if x.GetPath() != "" {
		if x.GetCovered() > 0 {
			fd, err := cloneHost(x.GetPath(), int(x.GetCovered()))
			if err != nil {
				return -1, err
			}
			return private(fd, x.GetPath())
		}
		return cloneMount(unix.AT_FDCWD, x.GetPath())
	}
	if x.GetNamespace() != 0 {
		f, err := t.handle(x.GetNamespace(), x.GetKind())
		if err != nil {
			return -1, err
		}
		return cloneMount(int(f.Fd()), "")
	}
	source, err := t.source(e, x)
	if err != nil {
		return -1, err
	}
	return cloneMount(source, strings.TrimPrefix(e.GetRoot(), "/"))
}

// source is a mount of the root of a file system of the tree's own, which is made when it is first needed.
func (t *mountTree) source(e *mnt.MntEntry, x *imagespb.Mount) (int, error) {
	if fd, ok := t.sources[x.GetFs()]; ok {
		return fd, nil
	}
	fd, err := t.create(e, x)
	if err == nil {
		t.sources[x.GetFs()] = fd
	}
	return fd, err
}

// cloneMount makes a private mount of what a path leads to (open_tree(2)).
func cloneMount(dir int, path string) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return -1, fmt.Errorf("open_tree %q: %w", path, err)
	}
	return private(fd, path)
}

// private cuts a mount off from its peers and masters.
func private(fd int, path string) (int, error) {
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return -1, errors.Join(fmt.Errorf("making the mount of %q private: %w", path, err), unix.Close(fd))
	}
	return fd, nil
}

// create makes a file system of the namespace's own, by calls in the root of the tree, whose namespaces it belongs to.
func (t *mountTree) create(e *mnt.MntEntry, x *imagespb.Mount) (_ int, err error) {
	if _, ok := fresh[e.GetFsname()]; !ok {
		return -1, fmt.Errorf("a file system of type %.40q cannot be made: %w", e.GetFsname(), ErrNotCarried)
	}
	if isOverlay(e, x) {
		return t.createOverlay(e)
	}
	var b remote.Batch
	config := b.Call(unix.SYS_FSOPEN, b.String(e.GetFsname()), unix.FSOPEN_CLOEXEC)
	b.Call(unix.SYS_FSCONFIG, config, fsconfigString, b.String("source"), b.String(e.GetSource()), 0)
	for o := range strings.SplitSeq(e.GetOptions(), ",") {
		key, value, ok := strings.Cut(o, "=")
		if value, err = t.ownID(key, value); err != nil {
			return -1, err
		}
		switch {
		case o == "":
		case ok:
			b.Call(unix.SYS_FSCONFIG, config, fsconfigString, b.String(key), b.String(value), 0)
		default:
			b.Call(unix.SYS_FSCONFIG, config, fsconfigFlag, b.String(key), 0, 0)
		}
	}
	b.Call(unix.SYS_FSCONFIG, config, fsconfigCreate, 0, 0, 0)
	// In a user namespace proc and sysfs must not show more than where they are mounted already.
	now := uint64(0)
	if !fresh[e.GetFsname()].content {
		now = attributes(e.GetFlags()).Attr_set
	}
	made := b.Call(unix.SYS_FSMOUNT, config, unix.FSMOUNT_CLOEXEC, now)
	if err := t.caller.Run(t.ctx, &b); err != nil {
		return -1, fmt.Errorf("with the options %q: %w", e.GetOptions(), err)
	}
	number, err := made.Value()
	if err != nil {
		return -1, err
	}
	f, err := t.caller.Pull(t.ctx, int(number))
	if err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var after remote.Batch
	after.Call(unix.SYS_CLOSE_RANGE, 0, uint32(1<<32-1), 0)
	if err := t.caller.Run(t.ctx, &after); err != nil {
		return -1, err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := t.fill(fd, x); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	if err := setSuper(fd, e.GetSbFlags()); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// fill gives a file system its content.
func (t *mountTree) fill(fd int, x *imagespb.Mount) (err error) {
	data := t.in.Trees[x.GetFs()]
	if data == nil {
		return nil
	}
	tree := &imagespb.Tree{}
	if err := proto.Unmarshal(data, tree); err != nil {
		return fmt.Errorf("content of file system %d: %w", x.GetFs(), err)
	}
	dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(dir)) }()
	return thread.ThrowAway(func() error {
		if err := t.asOwner(); err != nil {
			return err
		}
		return writeTree(dir, tree)
	})
}

// ownID makes the value of an option that is a user or group id one of the tree's user namespace.
func (t *mountTree) ownID(key, value string) (string, error) {
	if t.in.User == nil || key != "uid" && key != "gid" {
		return value, nil
	}
	id, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return "", fmt.Errorf("option %s=%.40q: %w", key, value, err)
	}
	m := t.in.User.GetUidMap()
	if key == "gid" {
		m = t.in.User.GetGidMap()
	}
	inside, ok := IDInside(m, uint32(id))
	if !ok {
		return "", fmt.Errorf("option %s=%d: the user namespace does not have this id", key, id)
	}
	return strconv.FormatUint(uint64(inside), 10), nil
}

// setSuper sets the flags of a file system that has been filled.
func setSuper(fd int, flags uint32) (err error) {
	if flags == 0 {
		return nil
	}
	config, err := unix.Fspick(fd, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fspick: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(config)) }()
	for name, f := range superFlags {
		if flags&f == 0 {
			continue
		}
		if err := unix.FsconfigSetFlag(config, name); err != nil {
			return fmt.Errorf("option %s: %w", name, err)
		}
	}
	if err := unix.FsconfigReconfigure(config); err != nil {
		return fmt.Errorf("changing options: %w", err)
	}
	return nil
}

// assemble runs in the mount namespace of the tree, which is a copy of another one so far.
func (t *mountTree) assemble() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cutting the mounts off from the host's: %w", err)
	}
	if err := t.place(); err != nil {
		return err
	}
	for _, e := range t.in.Mounts {
		if err := unix.MountSetattr(t.fds[e.GetMntId()], "", unix.AT_EMPTY_PATH, attributes(e.GetFlags())); err != nil {
			return fmt.Errorf("flags of the mount at %s: %w", e.GetMountpoint(), err)
		}
	}
	return nil
}

// enterRoot makes a mount the root of the mount namespace of this thread, and lets go of all that was there.
func enterRoot(fd int) (err error) {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(old)) }()
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	// The old root comes to lie on the new one, from where it is taken away (pivot_root(2), notes).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the old root: %w", err)
	}
	return unix.Chdir("/")
}

// attach puts a mount in its place on its parent, below all that is mounted there later.
func (t *mountTree) attach(e *mnt.MntEntry, fd int) error {
	parent := slices.IndexFunc(t.in.Mounts, func(p *mnt.MntEntry) bool { return p.GetMntId() == e.GetParentMntId() })
	on := t.in.Mounts[parent]
	rest, _ := cutDir(e.GetMountpoint(), on.GetMountpoint())
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if rest = strings.TrimPrefix(rest, "/"); rest == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(fd, "", t.fds[on.GetMntId()], rest, flags); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("move_mount: the directory is missing in %s: %w", on.GetMountpoint(), err)
		}
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// attributes turns flags of mount(2) into those of mount_setattr(2).
func attributes(flags uint32) *unix.MountAttr {
	a := &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC |
		unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW | unix.MOUNT_ATTR__ATIME}
	for f, to := range map[uint32]uint64{
		unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY, unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID, unix.MS_NODEV: unix.MOUNT_ATTR_NODEV,
		unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC, unix.MS_NODIRATIME: unix.MOUNT_ATTR_NODIRATIME, unix.MS_NOSYMFOLLOW: unix.MOUNT_ATTR_NOSYMFOLLOW,
	} {
		if flags&f != 0 {
			a.Attr_set |= to
		}
	}
	switch {
	case flags&unix.MS_NOATIME != 0:
		a.Attr_set |= unix.MOUNT_ATTR_NOATIME
	case flags&unix.MS_RELATIME == 0:
		a.Attr_set |= unix.MOUNT_ATTR_STRICTATIME
	}
	return a
}
