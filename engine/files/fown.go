//go:build linux

package files

import (
	"errors"
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
)

// Types of F_SETOWN_EX (include/uapi/asm-generic/fcntl.h), which x/sys lacks.
const (
	ownerTID  = 0
	ownerPID  = 1
	ownerPGRP = 2
)

// Types of owners: PIDTYPE_* of include/linux/pid_types.h, as CRIU records them. F_OWNER_* of fcntl(2) are other numbers.
var ownerTypes = map[int32]uint32{ownerTID: 0, ownerPID: 1, ownerPGRP: 2}

// ownerOf is the pid as the tree sees it of an owner, which must be in the tree.
func ownerOf(o ownerEx, procs []*engine.Process) (int, bool) {
	for _, p := range procs {
		switch {
		case o.Type == ownerPGRP && p.Group() == int(o.PID):
			return p.VPID, p.VPGID == p.VPID
		case o.Type == ownerPID && p.Group() == int(o.PID):
			return p.VPID, true
		}
		if o.Type == ownerTID {
			if i := slices.IndexFunc(p.Threads, func(t engine.Thread) bool { return t.TID == int(o.PID) }); i >= 0 {
				return p.Threads[i].VTID, true
			}
		}
	}
	return 0, false
}

// ownerProblem refuses owners of SIGIO and SIGURG outside the tree (F_SETOWN in fcntl(2)).
func ownerProblem(d *description, procs []*engine.Process) (problem, bool) {
	if d.flags&unix.O_PATH != 0 {
		return problem{}, false
	}
	o, err := getOwner(d.fd)
	if err != nil || o.PID == 0 {
		return problem{}, false
	}
	if _, ok := ownerOf(o, procs); ok {
		return problem{}, false
	}
	return problem{reason: fmt.Sprintf("its signals go to process or group %d, which is outside the tree (F_SETOWN)", o.PID)}, true
}

// fown reads the owner and the signal of a description (F_SETOWN_EX, F_SETSIG); its pid is as the tree sees it.
func (r *dump) fown(d *description) (*fown.FownEntry, error) {
	e := &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
	if d.flags&unix.O_PATH != 0 {
		return e, nil
	}
	sig, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETSIG, 0)
	if err != nil {
		return nil, fmt.Errorf("F_GETSIG: %w", err)
	}
	*e.Signum = uint32(sig)
	o, err := getOwner(d.fd)
	if err != nil {
		return nil, fmt.Errorf("F_GETOWN_EX: %w", err)
	}
	if o.PID == 0 {
		return e, nil
	}
	pid, ok := ownerOf(o, r.procs)
	if !ok {
		return nil, fmt.Errorf("owner %d: %w", o.PID, ErrNotCarried)
	}
	ids, err := getOwnerUIDs(d.fd)
	if err != nil && !errors.Is(err, unix.EINVAL) { // CONFIG_CHECKPOINT_RESTORE
		return nil, fmt.Errorf("F_GETOWNER_UIDS: %w", err)
	}
	*e.Uid, *e.Euid, *e.Pid, *e.PidType = ids[0], ids[1], uint32(pid), ownerTypes[o.Type]
	return e, nil
}
