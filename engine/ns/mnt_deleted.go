//go:build linux

package ns

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
	"migrate/engine/thread"
)

// A file or a directory that is mounted somewhere stays there when it is deleted where it was; its mount keeps it. It is carried with its
// content, and made again under its name, or another one if that is taken, until it is mounted.

// A deletion is a mount of what was deleted.
type deletion struct {
	root string // the name that it had in its file system
	tree []byte
	same uint32 // the mount before it of the same file
}

// deletedRoot is the name that what is mounted had in its file system, if it was deleted (proc_pid_mountinfo(5)).
func deletedRoot(m *mountinfo.Info) (string, bool) { return strings.CutSuffix(m.Root, "//deleted") }

// locateDeleted finds the directory in which something was deleted: on the host, or in a file system of the namespace's own.
func (r *mountReader) locateDeleted(m *mountinfo.Info, root string, onHost bool) error {
	r.deleted[m.ID] = &deletion{root: root}
	if !onHost {
		if !fresh[m.FSType].content {
			r.refuse("mount "+m.Mountpoint, fmt.Sprintf("what is mounted there, %s, was deleted in a file system of type %s", root, m.FSType), "unmount it")
		}
		return nil
	}
	dir := *m
	dir.Root = filepath.Dir(root)
	path, err := r.hostPath(&dir)
	if err == nil && path == "" {
		r.refuse("mount "+m.Mountpoint, fmt.Sprintf("what is mounted there, %s, was deleted, and the directory where it was cannot be reached", root), "unmount it")
	}
	r.paths[m.ID] = path
	return err
}

// readDeleted reads what was deleted, through its mounts. It runs in the mount namespace.
func (r *mountReader) readDeleted() error {
	seen := map[[2]uint64]uint32{}
	for _, m := range r.mounts {
		d := r.deleted[m.ID]
		if d == nil {
			continue
		}
		var st unix.Stat_t
		if id, err := mountOf(m.Mountpoint); err != nil || id != uint64(m.ID) || unix.Lstat(m.Mountpoint, &st) != nil {
			r.refuse("mount "+m.Mountpoint, fmt.Sprintf("what is mounted there, %s, was deleted, and another mount hides it", d.root), "unmount it")
			continue
		}
		if d.same = seen[[2]uint64{st.Dev, st.Ino}]; d.same != 0 || !r.content {
			continue
		}
		seen[[2]uint64{st.Dev, st.Ino}] = uint32(m.ID)
		tree := &imagespb.Tree{}
		reader := &treeReader{tree: tree, seen: map[uint64]string{}, left: maxTree}
		if err := reader.read(unix.AT_FDCWD, m.Mountpoint, filepath.Base(d.root)); err != nil {
			return fmt.Errorf("%s, which was deleted and is mounted at %s: %w", d.root, m.Mountpoint, err)
		}
		var err error
		if d.tree, err = (proto.MarshalOptions{Deterministic: true}).Marshal(tree); err != nil {
			return err
		}
	}
	return nil
}

// makeDeleted makes a mount of what was deleted.
func (t *mountTree) makeDeleted(e *mnt.MntEntry, x *imagespb.Mount) (_ int, err error) {
	if same := x.GetSameAs(); same != 0 {
		return cloneMount(t.fds[same], "")
	}
	tree := &imagespb.Tree{}
	if err := proto.Unmarshal(x.GetDeleted(), tree); err != nil || len(tree.GetFiles()) != 1 {
		return -1, fmt.Errorf("deleted file of mount %d: %d files (%w)", x.GetId(), len(tree.GetFiles()), errors.Join(err, errShort))
	}
	file, at, where := tree.GetFiles()[0], unix.AT_FDCWD, x.GetPath()
	if where == "" {
		if at, err = t.source(e, x); err != nil {
			return -1, err
		}
		root, _ := strings.CutSuffix(e.GetRoot(), "//deleted")
		where = filepath.Join(".", filepath.Dir(root))
	}
	b := &borrowed{}
	if b.dir, err = unix.Openat(at, where, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("directory %s, in which %s was deleted: %w", where, file.GetPath(), err)
	}
	t.borrowed = append(t.borrowed, b)
	var taken unix.Stat_t
	if err := unix.Fstat(b.dir, &b.before); err != nil {
		return -1, err
	}
	if unix.Fstatat(b.dir, file.GetPath(), &taken, unix.AT_SYMLINK_NOFOLLOW) == nil {
		file.Path = fmt.Sprintf(".%.200s.migrate-%d", file.GetPath(), x.GetId())
	}
	b.name = file.GetPath()
	if file.GetMode()&unix.S_IFMT == unix.S_IFDIR {
		b.how = unix.AT_REMOVEDIR
	}
	err = thread.ThrowAway(func() error {
		if x.GetPath() == "" {
			if err := t.asOwner(); err != nil {
				return err
			}
		}
		return writeTree(b.dir, tree)
	})
	if err != nil {
		return -1, err
	}
	return cloneMount(b.dir, b.name)
}

// borrowed is a name that something deleted has until it is in its place: the kernel mounts nothing without a name.
type borrowed struct {
	dir    int
	name   string // "" as long as there is none
	how    int
	before unix.Stat_t // of the directory
}

// giveBack takes the name away, and leaves the directory as it was.
func (b *borrowed) giveBack() error {
	var err error
	if b.name != "" {
		if err = unix.Unlinkat(b.dir, b.name, b.how); errors.Is(err, unix.ENOENT) {
			err = nil // it could not be made
		}
		err = errors.Join(err, unix.UtimesNanoAt(b.dir, ".", []unix.Timespec{b.before.Atim, b.before.Mtim}, 0))
	}
	return errors.Join(err, unix.Close(b.dir))
}
