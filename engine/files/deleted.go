//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/procfs"
)

// Objects are the files and the memory of the tree that no name reaches; see mem.Objects. A descriptor of one is recorded like
// that of any file, and its FileExtra names the object.
type Objects interface {
	// AddLink returns the number of what a link of /proc leads to, or mem.ErrReachable or mem.ErrNoObject.
	AddLink(link string) (uint32, error)
	// AddDetached is AddLink of a file that has a name, on a file system that is mounted nowhere any more.
	AddDetached(link string) (uint32, error)
}

// A file that was deleted while it is open travels with its content, as an object that its mappings share.
var kindDeleted = &Kind{
	Name: "deleted file", Type: fdinfo.FdTypes_REG, Carried: true,
	Note: "with its content, into the directory where it was, which is made for a moment if it was deleted, too; " +
		"one on a tmpfs that is mounted nowhere any more, and that nothing else uses, gets another such; " +
		"one that has another name left is opened by that, for which the name must be in the same directory or the source and the destination be the same",
	match: func(d *description) bool { return d.format() == unix.S_IFREG && d.isNameless() },
	check: checkPath, dump: dumpPath,
}

// isNameless tells files and directories that no name reaches.
func (d *description) isNameless() bool {
	switch d.format() {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		return d.external == "" && (d.detached || d.isDeleted()) && !d.synthetic()
	}
	return false
}

// Nameless names to Options.Objects what the descriptors of the tree lead to and no name reaches. Of a stopped tree the descriptors
// are collected for Dump.
func (d *Dumper) Nameless(ctx context.Context, procs []*engine.Process, stopped bool) error {
	if !stopped {
		for _, p := range procs {
			if err := d.namelessOf(ctx, p.PID); err != nil {
				return fmt.Errorf("descriptors of process %d: %w", p.PID, err)
			}
		}
		return nil
	}
	if err := d.prepare(procs); err != nil {
		return err
	}
	d.frozen = true
	defer func() { d.frozen = false }()
	snap, err := d.collect(ctx, procs, 1)
	if err != nil {
		return err
	}
	if err := d.letGo(); err != nil { // of a description that came before
		return errors.Join(err, snap.close())
	}
	d.held = snap
	for _, desc := range snap.list {
		if desc.isNameless() {
			d.nameless(desc)
		}
	}
	return nil
}

// namelessOf looks at the links of a running process. What is closed meanwhile is passed over.
func (d *Dumper) namelessOf(ctx context.Context, pid int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fds, err := procfs.Host.FDs(pid)
	if errors.Is(err, procfs.ErrGone) {
		return nil
	}
	for _, fd := range fds {
		name, err := procfs.Host.Link(pid, "fd", fd)
		if err != nil || !strings.HasSuffix(name, " (deleted)") {
			continue
		}
		link := procfs.Host.Path(pid, "fd", fd)
		var st unix.Stat_t
		if unix.Stat(link, &st) != nil || d.opts.External[FileID{st.Dev, st.Ino}] != "" {
			continue
		}
		if _, err := d.opts.Objects.AddLink(link); err != nil && !errors.Is(err, mem.ErrReachable) && !errors.Is(err, mem.ErrNoObject) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return err
}

// nameless finds the object of a description that isNameless, and tells why it is not carried.
func (d *Dumper) nameless(desc *description) []problem {
	if desc.object != 0 || desc.reachable {
		return nil
	}
	add := d.opts.Objects.AddLink
	if desc.detached {
		add = d.opts.Objects.AddDetached
	}
	id, err := add("/proc/self/fd/" + strconv.Itoa(desc.fd))
	switch {
	case errors.Is(err, mem.ErrReachable): // it is called so
		desc.reachable = true
	case errors.Is(err, mem.ErrNoObject):
		return []problem{{reason: "its file or directory was deleted" + named(desc)}}
	case err != nil:
		return []problem{{reason: err.Error()}}
	}
	desc.object = id
	return nil
}

// objectOf is the object that a record leads to; 0 for none.
func (r *Restorer) objectOf(id uint32) uint32 { return r.objects[id] }

// objectsOf finds which records lead to objects.
func objectsOf(h *imagespb.Header) map[uint32]uint32 {
	out := map[uint32]uint32{}
	for _, f := range h.GetFiles() {
		if f.GetObject() != 0 {
			out[f.GetId()] = f.GetObject()
		}
	}
	return out
}

// openNameless opens an object by a description of its own.
func (r *Restorer) openNameless(e *fdinfo.FileEntry) error {
	if r.env.Object == nil {
		return errors.New("it has no name, and nothing here stands for it")
	}
	flags := int(e.Reg.GetFlags())&reopen | unix.O_NONBLOCK
	if flags&unix.O_PATH != 0 {
		flags &= unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW
	}
	f, err := r.env.Object(r.objectOf(e.GetId()), flags|int(e.Reg.GetFlags())&unix.O_TMPFILE)
	if err != nil {
		return err
	}
	r.files[e.GetId()] = f
	fd, err := rawFD(f)
	if err != nil {
		return err
	}
	return restorePosition(fd, e.Reg)
}
