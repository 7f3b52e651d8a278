//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// Magic numbers of file systems that x/sys lacks or names otherwise (include/uapi/linux/magic.h).
const (
	magicPipe = 0x50495045
	magicNS   = unix.NSFS_MAGIC
)

var kindRegular = &Kind{
	Name: "regular file", Type: fdinfo.FdTypes_REG, Carried: true,
	Note:  "by path, with offset, flags, locks and leases; the file must be at the destination with the same content, or is brought there by a move (`--files copy`, `--volume`). All of the /dev/shm that a workload has for itself moves with it, open or not",
	match: func(d *description) bool { return d.format() == unix.S_IFREG },
	check: checkPath, dump: dumpPath,
	mine: func(e *fdinfo.FileEntry) bool { return !e.Reg.GetExt() },
	open: openPath, settle: settleRegular, inside: insideRegular,
}

func insideRegular(in *inside, e *fdinfo.FileEntry) error {
	if err := errors.Join(insideLocks(in, e), in.dnotify(e)); err != nil {
		return err
	}
	return in.mqueue(e)
}

var kindDirectory = &Kind{
	Name: "directory", Type: fdinfo.FdTypes_REG, Carried: true,
	Note:  "by path; the place of a listing that was begun is kept where the file system's offsets allow it, and what F_NOTIFY asks for (fcntl(2)) where the kernel can be read (BPF with BTF; else a directory whose signals have an owner is refused)",
	match: func(d *description) bool { return d.format() == unix.S_IFDIR },
	check: checkPath, dump: dumpPath,
}

var kindPath = &Kind{
	Name: "O_PATH descriptor", Type: fdinfo.FdTypes_REG, Carried: true, Note: "by path",
	match: func(d *description) bool { return d.flags&unix.O_PATH != 0 },
	check: checkPath, dump: dumpPath,
}

// checkPath makes sure that the path still leads to the open file from the root of its holder.
func checkPath(_ context.Context, dm *Dumper, d *description) []problem {
	if _, _, ended := dm.endedTask(d); ended {
		return nil
	}
	if d.isNameless() && dm.opts.Objects != nil {
		if ps := dm.nameless(d); !d.reachable {
			return ps
		}
	} else if d.isDeleted() {
		return []problem{{reason: "its file or directory was deleted" + named(d)}}
	}
	name, ok := inRoot(d.path(), d.root)
	if !ok {
		return []problem{{reason: fmt.Sprintf("%s lies outside of the root directory %s of the process", d.path(), d.root)}}
	}
	root, err := dm.rootOf(d)
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	st, err := statIn(root, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return []problem{{passing: d.renamed(), reason: fmt.Sprintf("%s cannot be found any more from the root directory of the process", name)}}
	case err != nil:
		return []problem{{reason: fmt.Sprintf("%s cannot be looked up: %v", name, err)}}
	case !d.synthetic() && (st.Dev != d.stat.Dev || st.Ino != d.stat.Ino):
		return []problem{{passing: d.renamed(), reason: fmt.Sprintf("%s names another file by now", name)}}
	}
	return nil
}

// rootOf opens the root directory from which the path leads to the file, mostly that of the first holder; it stays open until the
// snapshot is let go.
func (d *Dumper) rootOf(desc *description) (int, error) {
	if desc.via != nil {
		return d.rootOfPID(desc.via.PID)
	}
	return d.rootOfPID(desc.holders[0].proc.PID)
}

func (d *Dumper) rootOfPID(pid int) (int, error) {
	if fd, ok := d.current.roots[pid]; ok {
		return fd, nil
	}
	fd, err := openRoot(procfs.Host.OuterRoot(pid))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return -1, fmt.Errorf("process %d: %w", pid, remote.ErrGone)
	}
	if err == nil {
		d.current.roots[pid] = fd
	}
	return fd, err
}

func dumpPath(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	if d.object != 0 {
		return r.regEntry(d, d.path())
	}
	if id, name, ended := r.endedTask(d); ended {
		return r.regEntryOfEnded(d, id, name)
	}
	name, ok := inRoot(d.path(), d.root)
	if !ok {
		return nil, fmt.Errorf("%s is outside of root %s: %w", d.path(), d.root, ErrNotCarried)
	}
	return r.regEntry(d, name)
}

func (r *dump) regEntry(d *description, name string) (*fdinfo.FileEntry, error) {
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	e := &regfile.RegFileEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(uint32(d.flags)), Pos: proto.Uint64(0), Fown: owner,
		Name: proto.String(name), Mode: proto.Uint32(d.stat.Mode)}
	if d.format() == unix.S_IFREG && !d.synthetic() {
		e.Size = proto.Uint64(uint64(d.stat.Size))
	}
	if d.flags&unix.O_PATH == 0 {
		pos, err := unix.Seek(d.fd, 0, unix.SEEK_CUR)
		if err == nil {
			*e.Pos = uint64(pos)
		} else if !errors.Is(err, unix.ESPIPE) {
			return nil, fmt.Errorf("offset: %w", err)
		}
	}
	return &fdinfo.FileEntry{Reg: e}, nil
}

// reopen are the flags with which a path is opened again. Those that create or truncate are never among what
// F_GETFL tells (fs/open.c, do_dentry_open).
const reopen = unix.O_ACCMODE | unix.O_APPEND | unix.O_DIRECT | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME | unix.O_PATH |
	unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_LARGEFILE | unix.O_NONBLOCK

// isSocketPath tells an O_PATH descriptor of a socket's name. It is opened when the sockets of the tree are bound, which makes their
// names anew.
func isSocketPath(e *regfile.RegFileEntry) bool {
	return e.GetFlags()&unix.O_PATH != 0 && e.GetMode()&unix.S_IFMT == unix.S_IFSOCK
}

func settleRegular(r *Restorer, e *fdinfo.FileEntry) error {
	if isSocketPath(e.Reg) {
		return r.openPath(e)
	}
	return r.settleLocks(e)
}

func openPath(ctx context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	if isSocketPath(e.Reg) {
		return nil // settleRegular
	}
	if blob, ok := r.cp.Blobs[endedBlob(e.GetId())]; ok {
		return r.openEndedTask(ctx, e, blob)
	}
	if b, ok, err := r.mqueueBlob(e.GetId()); ok || err != nil {
		if err != nil {
			return err
		}
		return r.openMqueue(e, b)
	}
	return r.openPath(e)
}

func (r *Restorer) openPath(e *fdinfo.FileEntry) error {
	if r.objectOf(e.GetId()) != 0 {
		return r.openNameless(e)
	}
	root, err := r.rootOf(e.GetId())
	if err != nil {
		return err
	}
	name, err := r.cgroupName(e)
	if err != nil {
		return err
	}
	st, err := statIn(root, name)
	if isStandardDevice(e.Reg) && (err != nil || st.Rdev != uint64(deviceNumber(e.Reg))) {
		return r.openDevice(e) // every system has these, whatever its /dev holds
	}
	if err != nil {
		return missing(name, err)
	}
	var want *uint64
	if e.Reg.Size != nil && e.Reg.GetFlags()&unix.O_PATH == 0 {
		want = e.Reg.Size
	}
	if err := compare(name, st, e.Reg.GetMode(), uint64(st.Size), want); err != nil {
		return err
	}
	// Never blocks: FIFOs are not opened here, and the flag is taken away again.
	flags := uint64(e.Reg.GetFlags()&reopen) | unix.O_NONBLOCK
	if flags&unix.O_PATH != 0 {
		flags &^= unix.O_NONBLOCK | unix.O_LARGEFILE | unix.O_ACCMODE
	}
	fd, err := openItself(root, name, flags)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	r.put(e.GetId(), fd)
	return restorePosition(fd, e.Reg)
}

// restorePosition sets the offset and clears what opening has set beyond the flags of the record.
func restorePosition(fd int, reg *regfile.RegFileEntry) error {
	if reg.GetFlags()&unix.O_PATH != 0 {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(reg.GetFlags()&settable&^(unix.O_ASYNC|unix.O_NONBLOCK))); err != nil {
		return fmt.Errorf("flags of %s: %w", reg.GetName(), err)
	}
	if reg.GetPos() == 0 {
		return nil
	}
	if _, err := unix.Seek(fd, int64(reg.GetPos()), unix.SEEK_SET); err != nil {
		return fmt.Errorf("offset %d of %s: %w", reg.GetPos(), reg.GetName(), err)
	}
	return nil
}

// rootOf opens the root directory from which the path of a record leads to it, mostly that of the process that is home to it; it
// stays open until Close.
func (r *Restorer) rootOf(id uint32) (int, error) { return r.rootOfVPID(r.viewer(id)) }

func (r *Restorer) rootOfVPID(vpid int) (int, error) {
	if fd, ok := r.roots[vpid]; ok {
		return fd, nil
	}
	fd, err := openRoot(r.rootPath(vpid))
	if err == nil {
		r.roots[vpid] = fd
	}
	return fd, err
}

func (r *Restorer) rootPath(vpid int) string {
	if r.env.Root == nil {
		return "/"
	}
	return r.env.Root(vpid)
}
