//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/ns"
	"migrate/engine/remote"
)

// inside collects what must run in one process after its descriptors are in place.
type inside struct {
	r     *Restorer
	p     *engine.Process
	table map[int]uint32 // its descriptors: the record of each number
	batch *remote.Batch
	steps []step
	// first runs before batch; between them, as many events as harvest says are taken out of the epoll sets.
	first   *remote.Batch
	harvest map[uint32]int
	// broken are leases to be broken between the batches.
	broken []brokenLease
	// second runs after first: epoll targets whose number means something else. They are at hand under spare numbers, as are
	// records that are only in flight.
	second  *remote.Batch
	spare   map[uint32]int // by record
	cloexec map[int]bool   // descriptors
}

// lend gives the process the records that registerStale needs, under numbers above all of its own.
func (in *inside) lend(push []remote.PushFile) ([]remote.PushFile, error) {
	ids, err := in.r.extras(in.p.VPID)
	if err != nil || len(ids) == 0 {
		return push, err
	}
	next := 0
	for fd := range in.table {
		next = max(next, fd+1)
	}
	for _, e := range in.r.entries() { // a lent number must not be one that is registered
		for _, t := range e.Epfd.GetTfd() {
			next = max(next, int(t.GetTfd())+1)
		}
	}
	for _, id := range ids {
		in.spare[id] = next
		push = append(push, remote.PushFile{File: in.r.files[id], FD: next, CloseOnExec: true})
		next++
	}
	return push, nil
}

// step names a call of the batch, for errors.
type step struct {
	call *remote.Result
	what string
}

func (in *inside) call(what string, nr int, args ...any) *remote.Result {
	c := in.batch.Call(nr, args...)
	in.steps = append(in.steps, step{c, what})
	return c
}

func (in *inside) early(what string, nr int, args ...any) {
	in.steps = append(in.steps, step{in.first.Call(nr, args...), what})
}

// run executes what was collected.
func (in *inside) run(ctx context.Context) error {
	if in.first.Len() > 0 {
		if err := in.p.Caller.Run(ctx, in.first); err != nil {
			return in.explain(err)
		}
		if err := errors.Join(in.disarm(), in.breakLeases()); err != nil {
			return err
		}
	}
	if in.second.Len() > 0 {
		if err := in.p.Caller.Run(ctx, in.second); err != nil {
			return in.explain(err)
		}
	}
	for _, fd := range in.spare {
		in.call(fmt.Sprintf("close spare descriptor %d", fd), unix.SYS_CLOSE, fd)
	}
	if in.batch.Len() == 0 {
		return nil
	}
	if err := in.p.Caller.Run(ctx, in.batch); err != nil {
		return in.explain(err)
	}
	return nil
}

// explain finds the call that failed.
func (in *inside) explain(err error) error {
	for _, s := range in.steps {
		if e := s.call.Err(); e != nil && !errors.Is(e, remote.ErrNotRun) {
			return fmt.Errorf("process %d: %s: %w", in.p.VPID, s.what, e)
		}
	}
	return fmt.Errorf("process %d: %w", in.p.VPID, err)
}

// isHome tells whether this process is home to a record, and under which number: a spare one if the record is in flight.
func (in *inside) isHome(id uint32) (fd int, ok bool) {
	h := in.r.homes[id]
	if h.fd == inFlight {
		fd, ok = in.spare[id]
		return fd, ok
	}
	return h.fd, h.vpid == in.p.VPID
}

// add appends the steps of a record.
func (in *inside) add(e *fdinfo.FileEntry) error {
	if k := in.r.kinds[e.GetId()]; k.inside != nil {
		if err := k.inside(in, e); err != nil {
			return err
		}
	}
	fd, ok := in.isHome(e.GetId())
	if !ok {
		return nil
	}
	flags, owner := statusFlags(e)
	return in.owner(fd, flags, owner)
}

// ownIDs are the user ids of an owner of signals as the tree's user namespace knows them.
func (r *Restorer) ownIDs(o *fown.FownEntry) (uid, euid uint32, err error) {
	if r.cp.Namespaces == nil || r.cp.Namespaces.User == nil {
		return o.GetUid(), o.GetEuid(), nil
	}
	m := r.cp.Namespaces.User.GetUidMap()
	uid, ok1 := ns.IDInside(m, o.GetUid())
	euid, ok2 := ns.IDInside(m, o.GetEuid())
	if !ok1 || !ok2 {
		return 0, 0, fmt.Errorf("the users %d and %d of the owner of its signals are not mapped in the user namespace", o.GetUid(), o.GetEuid())
	}
	return uid, euid, nil
}

// owner sets owner, signal and O_ASYNC. It runs in the process because the kernel keeps the caller's credentials
// and, for O_ASYNC, the number of the descriptor that the signal will tell (fs/fcntl.c).
func (in *inside) owner(fd int, flags uint32, o *fown.FownEntry) error {
	if o.GetPid() != 0 {
		typ := int32(-1)
		for k, v := range ownerTypes {
			if v == o.GetPidType() {
				typ = k
			}
		}
		if typ < 0 {
			return fmt.Errorf("owner of type %d", o.GetPidType())
		}
		ex := binary.LittleEndian.AppendUint32(nil, uint32(typ))
		ex = binary.LittleEndian.AppendUint32(ex, o.GetPid())
		// The kernel keeps the user ids of the caller, which this thread gets for the call (fs/fcntl.c, f_modown).
		as := o.GetUid() != 0 || o.GetEuid() != 0
		if as {
			uid, euid, err := in.r.ownIDs(o)
			if err != nil {
				return err
			}
			in.call(fmt.Sprintf("user of the owner of descriptor %d", fd), unix.SYS_SETRESUID, uid, euid, 0)
		}
		in.call(fmt.Sprintf("owner of descriptor %d (F_SETOWN_EX %d)", fd, o.GetPid()), unix.SYS_FCNTL, fd, unix.F_SETOWN_EX, in.batch.Bytes(ex))
		if as {
			in.call("the user before", unix.SYS_SETRESUID, 0, 0, 0)
		}
	}
	if o.GetSignum() != 0 {
		in.call(fmt.Sprintf("signal of descriptor %d (F_SETSIG)", fd), unix.SYS_FCNTL, fd, unix.F_SETSIG, o.GetSignum())
	}
	if flags&unix.O_ASYNC != 0 {
		in.call(fmt.Sprintf("O_ASYNC of descriptor %d", fd), unix.SYS_FCNTL, fd, unix.F_SETFL, flags&settable)
	}
	return nil
}

// settable are the flags that F_SETFL changes.
const settable = unix.O_APPEND | unix.O_NONBLOCK | unix.O_ASYNC | unix.O_DIRECT | unix.O_NOATIME

// statusFlags are a record's open flags and owner.
func statusFlags(e *fdinfo.FileEntry) (uint32, *fown.FownEntry) {
	switch {
	case e.Reg != nil:
		return e.Reg.GetFlags(), e.Reg.GetFown()
	case e.Pipe != nil:
		return e.Pipe.GetFlags(), e.Pipe.GetFown()
	case e.Efd != nil:
		return e.Efd.GetFlags(), e.Efd.GetFown()
	case e.Epfd != nil:
		return e.Epfd.GetFlags(), e.Epfd.GetFown()
	case e.Sgfd != nil:
		return e.Sgfd.GetFlags(), e.Sgfd.GetFown()
	case e.Tfd != nil:
		return e.Tfd.GetFlags(), e.Tfd.GetFown()
	case e.Isk != nil:
		return e.Isk.GetFlags(), e.Isk.GetFown()
	case e.Nlsk != nil:
		return e.Nlsk.GetFlags(), e.Nlsk.GetFown()
	case e.Psk != nil:
		return e.Psk.GetFlags(), e.Psk.GetFown()
	case e.Usk != nil:
		return e.Usk.GetFlags(), e.Usk.GetFown()
	case e.Nsf != nil:
		return e.Nsf.GetFlags(), nil
	case e.Bpf != nil:
		return e.Bpf.GetFlags(), e.Bpf.GetFown()
	case e.Ify != nil:
		return e.Ify.GetFlags(), e.Ify.GetFown()
	case e.Ffy != nil:
		return e.Ffy.GetFlags(), e.Ffy.GetFown()
	case e.Pidfd != nil:
		return e.Pidfd.GetFlags(), e.Pidfd.GetFown()
	}
	return 0, nil
}
