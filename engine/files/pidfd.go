//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// magicPidfs is the file system of pidfds since Linux 6.9 (include/uapi/linux/magic.h).
const magicPidfs = 0x50494446

// pidfdThread is PIDFD_THREAD, which F_GETFL shows as O_EXCL.
const pidfdThread = unix.O_EXCL

var kindPidfd = &Kind{
	Name: "pidfd", Type: fdinfo.FdTypes_PIDFD, Carried: true, Note: "of a process of the tree; not of a single thread, and not after the process has ended",
	match: func(d *description) bool {
		return d.anon("[pidfd]") || d.format() == unix.S_IFREG && d.magic() == magicPidfs
	},
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		if d.flags&pidfdThread != 0 {
			return []problem{{reason: "it refers to a single thread (PIDFD_THREAD)"}}
		}
		if _, err := dm.processOf(d); err != nil && !errors.Is(err, ErrBusy) {
			return []problem{{reason: err.Error()}}
		}
		return nil
	},
	dump: func(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
		vpid, err := r.processOf(d)
		if err != nil {
			return nil, err
		}
		owner, err := r.fown(d)
		if err != nil {
			return nil, err
		}
		return &fdinfo.FileEntry{Pidfd: &pidfd.PidfdEntry{Id: proto.Uint32(d.id), Ino: proto.Uint32(uint32(d.stat.Ino)), Nspid: proto.Int32(int32(vpid)), Flags: proto.Uint32(uint32(d.flags)), Fown: owner}}, nil
	},
	open: func(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
		vpid := int(e.Pidfd.GetNspid())
		if r.cp.Process(uint32(vpid)) == nil {
			return fmt.Errorf("it refers to process %d, which is not in the tree", vpid)
		}
		pid, err := r.pid(vpid)
		if err != nil {
			return err
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("pidfd of process %d: %w", vpid, err)
		}
		r.put(e.GetId(), fd)
		return nil
	},
}

// processOf is the process to which a pidfd refers, as the tree knows it.
func (d *Dumper) processOf(desc *description) (int, error) {
	i, err := desc.fdinfo()
	if err != nil {
		return 0, err
	}
	if i.PIDFD == nil {
		return 0, errors.New("its fdinfo tells no process")
	}
	if i.PIDFD.PID < 0 {
		return 0, fmt.Errorf("the process that it refers to has ended: %w", ErrBusy)
	}
	for _, p := range d.procs {
		if p.PID == i.PIDFD.PID {
			return p.VPID, nil
		}
	}
	return 0, fmt.Errorf("it refers to process %d, which is not in the tree", i.PIDFD.PID)
}
