//go:build linux

package files

import (
	"context"
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
)

// markFilesystem is a type of mark that CRIU's enumeration lacks.
const markFilesystem = fsnotify.MarkType(3)

// kept are the flags of a mark that stay with it (fanotify_mark(2)); x/sys lacks the last.
const kept = unix.FAN_MARK_IGNORED_SURV_MODIFY | unix.FAN_MARK_EVICTABLE | unix.FAN_MARK_IGNORE

var kindFanotify = &Kind{
	Name: "fanotify", Type: fdinfo.FdTypes_FANOTIFY, Carried: true,
	Note: "with its marks of files, mounts and file systems, which must be at the destination; events that wait to be read are of processes and files of the source's " +
		"host, and stay behind",
	match: func(d *description) bool { return d.anon("[fanotify]") },
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		i, err := d.fdinfo()
		if err != nil {
			return []problem{{reason: err.Error()}}
		}
		if i.Fanotify == nil {
			return []problem{{reason: "its fdinfo tells nothing (CONFIG_PROC_FS)"}}
		}
		var out []problem
		for _, m := range i.Fanotify.Marks {
			if _, err := dm.markPlace(dm.current, d, m); err != nil {
				out = append(out, problem{reason: err.Error()})
			}
		}
		return out
	},
	dump: dumpFanotify, open: openFanotify, late: markFanotify,
}

func markType(m procfs.FanotifyMark) fsnotify.MarkType {
	switch {
	case m.MntID != 0:
		return fsnotify.MarkType_MOUNT
	case m.Ino != 0:
		return fsnotify.MarkType_INODE
	}
	return markFilesystem
}

// markPlace finds what is marked. A mount is found by its mount point, a file system by any mount of it.
func (d *Dumper) markPlace(s *snapshot, desc *description, m procfs.FanotifyMark) (place, error) {
	if markType(m) == fsnotify.MarkType_INODE {
		return d.placeOf(s, inode{m.Dev, m.Ino, m.HandleType, m.Handle})
	}
	for _, p := range d.procs {
		mounts, err := procfs.Host.Mounts(p.PID)
		if err != nil {
			continue // it ended
		}
		for _, mount := range mounts {
			if m.MntID != 0 && mount.ID != m.MntID || m.MntID == 0 && !(inode{dev: m.Dev}).onFilesystem(mount.Major, mount.Minor) {
				continue
			}
			if d.isMount(p.PID, mount.Mountpoint, mount.ID) {
				return place{vpid: p.VPID, path: mount.Mountpoint}, nil
			}
		}
	}
	if m.MntID != 0 {
		return place{}, fmt.Errorf("the marked mount %d cannot be found by a path", m.MntID)
	}
	return place{}, fmt.Errorf("the marked file system %d:%d cannot be found by a path", m.Dev>>20, m.Dev&(1<<20-1))
}

// isMount tells whether a path of a process leads to a mount, and not to another one over it.
func (d *Dumper) isMount(pid int, name string, id int) bool {
	root, err := d.rootOfPID(pid)
	if err != nil {
		return false
	}
	fd, err := openIn(root, name, unix.O_PATH)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }() // O_PATH: nothing is lost
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	return err == nil && st.Mnt_id == uint64(id)
}

func dumpFanotify(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	i, err := d.fdinfo()
	if err != nil {
		return nil, err
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	e := &fsnotify.FanotifyFileEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(uint32(d.flags)), Fown: owner,
		Faflags: proto.Uint32(i.Fanotify.Flags), Evflags: proto.Uint32(i.Fanotify.EventFlags)}
	var blob []byte
	for _, m := range i.Fanotify.Marks {
		p, err := r.markPlace(r.snap, d, m)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrNotCarried)
		}
		blob = appendPlace(blob, p)
		mark := &fsnotify.FanotifyMarkEntry{Id: proto.Uint32(d.id), Type: markType(m).Enum(), Mflags: proto.Uint32(m.Flags), Mask: proto.Uint32(m.Mask),
			IgnoredMask: proto.Uint32(m.Ignored), SDev: proto.Uint32(m.Dev)}
		if markType(m) == fsnotify.MarkType_INODE {
			handle, err := handleEntry(m.HandleType, m.Handle, p.path)
			if err != nil {
				return nil, err
			}
			mark.Ie = &fsnotify.FanotifyInodeMarkEntry{IIno: proto.Uint64(m.Ino), FHandle: handle}
		} else {
			mark.Me = &fsnotify.FanotifyMountMarkEntry{MntId: proto.Uint32(uint32(m.MntID)), Path: proto.String(p.path)}
		}
		e.Mark = append(e.Mark, mark)
	}
	r.blob(placeBlob(d.id), blob)
	return &fdinfo.FileEntry{Ffy: e}, nil
}

func openFanotify(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	// FAN_CLOEXEC must be as it was: the group remembers it.
	fd, err := unix.FanotifyInit(uint(e.Ffy.GetFaflags()), uint(e.Ffy.GetEvflags()))
	if err != nil {
		return fmt.Errorf("fanotify_init(0x%x, 0x%x): %w", e.Ffy.GetFaflags(), e.Ffy.GetEvflags(), err)
	}
	unix.CloseOnExec(fd)
	r.put(e.GetId(), fd)
	return nil
}

func markFanotify(r *Restorer, e *fdinfo.FileEntry) error {
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	for n, m := range slices.Backward(e.Ffy.GetMark()) { // the kernel tells the last one first
		name := m.GetMe().GetPath()
		if m.GetType() == fsnotify.MarkType_INODE {
			name = m.GetIe().GetFHandle().GetPath()
		}
		p, err := r.placeIn(e.GetId(), n, name)
		if err == nil {
			err = r.atPlace(p, func(name string) error { return addMark(fd, name, m) })
		}
		if err != nil {
			return fmt.Errorf("mark %d: %w", n, err)
		}
	}
	return nil
}

// addMark sets the mask and the ignored mask of a mark.
func addMark(fd int, name string, m *fsnotify.FanotifyMarkEntry) error {
	types := map[fsnotify.MarkType]uint{fsnotify.MarkType_INODE: unix.FAN_MARK_INODE, fsnotify.MarkType_MOUNT: unix.FAN_MARK_MOUNT, markFilesystem: unix.FAN_MARK_FILESYSTEM}
	typ, ok := types[m.GetType()]
	if !ok {
		return fmt.Errorf("a mark of type %d", m.GetType())
	}
	flags := uint(m.GetMflags()) & kept
	if m.GetMask() != 0 {
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|typ|flags&unix.FAN_MARK_EVICTABLE, uint64(m.GetMask()), unix.AT_FDCWD, name); err != nil {
			return fmt.Errorf("fanotify_mark(0x%x): %w", m.GetMask(), err)
		}
	}
	if m.GetIgnoredMask() != 0 {
		if flags&unix.FAN_MARK_IGNORE == 0 {
			flags |= unix.FAN_MARK_IGNORED_MASK
		}
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|typ|flags, uint64(m.GetIgnoredMask()), unix.AT_FDCWD, name); err != nil {
			return fmt.Errorf("fanotify_mark(0x%x), ignored: %w", m.GetIgnoredMask(), err)
		}
	}
	return nil
}
