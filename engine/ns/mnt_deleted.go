//go:build linux

package ns

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/thread"
)

// A file or a directory that is mounted somewhere stays there when it is deleted where it was; its mount keeps it. It is carried with its
// content, and made again under its name, or another one if that is taken, until it is mounted.

// A deletion is a mount of what was deleted.
type deletion struct {
	mount uint32
	at    string // where it is mounted
	root  string // the name that it had in its file system
	tree  []byte
	same  uint32 // the mount before it of the same file
}

// deletedRoot is the name that what is mounted had in its file system, if it was deleted (proc_pid_mountinfo(5)).
func deletedRoot(m *mountinfo.Info) (string, bool) { return deletedName(m.Root) }

func deletedName(root string) (string, bool) { return strings.CutSuffix(root, "//deleted") }

// locateDeleted finds the directory in which something was deleted: on the host, or in a file system of the namespace's own.
func (r *mountReader) locateDeleted(m *mountinfo.Info, root string, onHost bool) error {
	r.deleted[m.ID] = &deletion{mount: uint32(m.ID), at: m.Mountpoint, root: root}
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
	for _, m := range r.mounts {
		d := r.deleted[m.ID]
		if d == nil {
			continue
		}
		refuse := func(why string) {
			r.refuse("mount "+m.Mountpoint, fmt.Sprintf("what is mounted there, %s, was deleted, and %s", d.root, why), "unmount it")
		}
		var st unix.Stat_t
		if id, err := mountOf(m.Mountpoint); err != nil || id != uint64(m.ID) || unix.Lstat(m.Mountpoint, &st) != nil {
			refuse("another mount hides it")
			continue
		}
		if st.Nlink > 0 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			refuse("has another name elsewhere")
			continue
		}
		key := [2]uint64{st.Dev, st.Ino}
		if first := r.dumper.mounts.deleted[key]; first != nil {
			if d.same = first.mount; r.deleted[int(first.mount)] != first {
				refuse("is mounted in another mount namespace of the tree, too")
			}
			continue
		}
		r.dumper.mounts.deleted[key] = d
		if !r.content {
			continue
		}
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

// openDeleted refuses what was deleted and is mounted if a process has it open or mapped: it would get another copy of it.
func (d *dumper) openDeleted(tree []*engine.Process) error {
	if len(d.mounts.deleted) == 0 {
		return nil
	}
	for _, p := range tree {
		for _, dir := range []string{"fd", "map_files"} {
			names, err := os.ReadDir(d.fs.Path(p.PID, dir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it may have ended
				return fmt.Errorf("pid %d: %w", p.PID, err)
			}
			for _, n := range names {
				var st unix.Stat_t
				if unix.Stat(d.fs.Path(p.PID, dir, n.Name()), &st) != nil {
					continue // closed since
				}
				if x := d.mounts.deleted[[2]uint64{st.Dev, st.Ino}]; x != nil {
					d.refuse("mount "+x.at, fmt.Sprintf("what is mounted there, %s, was deleted, and pid %d has it open or mapped, too (%s %s)", x.root, p.PID, dir, n.Name()), "unmount it")
				}
			}
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
	name := file.GetPath()
	if name != filepath.Base(name) || !filepath.IsLocal(name) {
		return -1, fmt.Errorf("deleted file of mount %d: %.200q is no name", x.GetId(), name)
	}
	if where == "" {
		if at, err = t.source(e, x); err != nil {
			return -1, err
		}
		root, _ := deletedName(e.GetRoot())
		where = filepath.Join(".", filepath.Dir(root))
	}
	b := &borrowed{}
	if b.dir, err = unix.Openat(at, where, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("directory %s, in which %s was deleted: %w", where, name, err)
	}
	t.borrowed = append(t.borrowed, b)
	if err := unix.Fstat(b.dir, &b.before); err != nil {
		return -1, err
	}
	file.Path = ".migrate-" + rand.Text() // nobody else's
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
	if err := unix.Fstatat(b.dir, b.name, &b.file, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, err
	}
	// Its own name, by which mountinfo calls it, unless that is taken or the file system cannot tell.
	if err := unix.Renameat2(b.dir, b.name, b.dir, name, unix.RENAME_NOREPLACE); err == nil {
		b.name = name
	}
	return cloneMount(b.dir, b.name)
}

// borrowed is a name that something deleted has until it is in its place: the kernel mounts nothing without a name.
type borrowed struct {
	dir    int
	name   string // "" as long as there is none
	how    int
	file   unix.Stat_t // what has it; zero until that is made
	before unix.Stat_t // of the directory
}

// giveBack takes the name away, and leaves the directory as it was. What somebody else has put there meanwhile is theirs.
func (b *borrowed) giveBack() error {
	var err error
	if b.name != "" {
		var now unix.Stat_t
		err = unix.Fstatat(b.dir, b.name, &now, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && (b.file.Ino == 0 || b.file.Ino == now.Ino && b.file.Dev == now.Dev) {
			err = unix.Unlinkat(b.dir, b.name, b.how)
		}
		if errors.Is(err, unix.ENOENT) {
			err = nil // it could not be made, or was replaced and deleted
		}
		err = errors.Join(err, unix.UtimesNanoAt(b.dir, ".", []unix.Timespec{b.before.Atim, b.before.Mtim}, 0))
	}
	return errors.Join(err, unix.Close(b.dir))
}
