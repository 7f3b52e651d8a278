//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
)

// inotifySetNextWD is INOTIFY_IOC_SETNEXTWD (include/uapi/linux/inotify.h); it needs CONFIG_CHECKPOINT_RESTORE.
const inotifySetNextWD = 0x40044900

// watchMask are the bits of a watch that stay with it (include/uapi/linux/inotify.h).
const watchMask = unix.IN_ALL_EVENTS | unix.IN_EXCL_UNLINK | unix.IN_ONESHOT

// Watches are set when all files of the tree are open, so that the restore itself is no event.
var kindInotify = &Kind{
	Name: "inotify", Type: fdinfo.FdTypes_INOTIFY, Carried: true,
	Note: "with its watches and their numbers; what is watched must be at the destination; with the events that wait to be read, the cookies of moves with other numbers. " +
		"Where the kernel cannot be read (BPF with BTF), or one of them is IN_UNMOUNT, the program reads IN_Q_OVERFLOW instead",
	match: func(d *description) bool { return d.anon("inotify") },
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		i, err := d.fdinfo()
		if err != nil {
			return []problem{{reason: err.Error()}}
		}
		var out []problem
		for _, w := range i.Inotify {
			if _, err := dm.placeOf(dm.current, inodeOf(w)); err != nil {
				out = append(out, problem{reason: fmt.Sprintf("watch %d: %v", w.WD, err)})
			}
		}
		return out
	},
	dump: dumpInotify, open: openInotify, late: watchInotify,
}

func inodeOf(w procfs.InotifyWatch) inode { return inode{w.Dev, w.Ino, w.HandleType, w.Handle} }

func dumpInotify(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	queue, err := r.inotifyQueue(d)
	if err != nil {
		return nil, fmt.Errorf("events that wait to be read: %w", err)
	}
	if len(queue) > 0 {
		r.blob(inotifyBlob(d.id), queue)
	}
	i, err := d.fdinfo()
	if err != nil {
		return nil, err
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	e := &fsnotify.InotifyFileEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(uint32(d.flags)), Fown: owner}
	var blob []byte
	for _, w := range i.Inotify {
		p, err := r.placeOf(r.snap, inodeOf(w))
		if err != nil {
			return nil, fmt.Errorf("watch %d: %w: %w", w.WD, err, ErrNotCarried)
		}
		handle, err := handleEntry(w.HandleType, w.Handle, p.path)
		if err != nil {
			return nil, err
		}
		blob = appendPlace(blob, p)
		e.Wd = append(e.Wd, &fsnotify.InotifyWdEntry{Id: proto.Uint32(d.id), IIno: proto.Uint64(w.Ino), Mask: proto.Uint32(w.Mask),
			IgnoredMask: proto.Uint32(0), SDev: proto.Uint32(w.Dev), Wd: proto.Uint32(uint32(w.WD)), FHandle: handle})
	}
	r.blob(placeBlob(d.id), blob)
	return &fdinfo.FileEntry{Ify: e}, nil
}

// handleEntry records a file handle as CRIU does, with the path that it was found to mean.
func handleEntry(typ int, text, name string) (*fh.FhEntry, error) {
	handle, err := hex.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("file handle %q: %w", text, err)
	}
	e := &fh.FhEntry{Bytes: proto.Uint32(uint32(len(handle))), Type: proto.Uint32(uint32(typ)), Path: proto.String(name)}
	const words = 16 // fh_entry_sizes.min_entries
	handle = append(handle, make([]byte, max(0, 8*words-len(handle)))...)
	for ; len(handle) >= 8; handle = handle[8:] {
		e.Handle = append(e.Handle, binary.LittleEndian.Uint64(handle))
	}
	return e, nil
}

func openInotify(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("inotify_init1 (/proc/sys/fs/inotify/max_user_instances): %w", err)
	}
	r.put(e.GetId(), fd)
	return nil
}

func watchInotify(r *Restorer, e *fdinfo.FileEntry) error {
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	events, err := parseEvents(r.cp.Blobs[inotifyBlob(e.GetId())])
	if err == nil {
		err = queueEvents(fd, events)
	}
	if err != nil {
		return fmt.Errorf("events that wait to be read (%s): %w", inotifyBlob(e.GetId()), err)
	}
	next := uint32(0)
	for _, w := range events { // of a watch that has ended
		next = max(next, uint32(max(w.wd, 0)))
	}
	for n, w := range slices.Backward(e.Ify.GetWd()) { // the kernel tells the last one first
		if w.GetWd() < 1 || w.GetWd() > 1<<31-1 {
			return fmt.Errorf("a watch with number %d", w.GetWd())
		}
		next = max(next, w.GetWd())
		p, err := r.placeIn(e.GetId(), n, w.GetFHandle().GetPath())
		if err == nil {
			err = r.atPlace(p, func(name string) error { return addWatch(fd, name, w) })
		}
		if err != nil {
			return fmt.Errorf("watch %d: %w", w.GetWd(), err)
		}
	}
	if next > 0 && next < 1<<31-1 { // numbers go up
		if err := unix.IoctlSetInt(fd, inotifySetNextWD, int(next+1)); err != nil {
			return fmt.Errorf("INOTIFY_IOC_SETNEXTWD: %w", err)
		}
	}
	return nil
}

func addWatch(fd int, name string, w *fsnotify.InotifyWdEntry) error {
	if err := unix.IoctlSetInt(fd, inotifySetNextWD, int(w.GetWd())); err != nil {
		return fmt.Errorf("INOTIFY_IOC_SETNEXTWD (CONFIG_CHECKPOINT_RESTORE): %w", err)
	}
	got, err := unix.InotifyAddWatch(fd, name, w.GetMask()&watchMask)
	if err != nil {
		return fmt.Errorf("inotify_add_watch (/proc/sys/fs/inotify/max_user_watches): %w", err)
	}
	if got != int(w.GetWd()) {
		return fmt.Errorf("it got number %d: two watches are of the same file here", got)
	}
	return nil
}
