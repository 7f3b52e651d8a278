package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/ptrace"
)

// CloneArgs say how Trap.Clone makes a new task (clone(2), clone3).
type CloneArgs struct {
	// Flags are unix.CLONE_*.
	Flags uint64
	// IDs are the ids that the task gets, in its own pid namespace first, then in the one around that. Empty: any.
	IDs []int
	// ExitSignal is what its parent gets at its end; 0 with CLONE_THREAD and CLONE_PARENT.
	ExitSignal unix.Signal
	// Cgroup is a descriptor of the tracee for a v2 cgroup, with CLONE_INTO_CGROUP.
	Cgroup int
}

// CloneProcess makes a child of the tracee, or of its parent with CLONE_PARENT in flags, with the id pid in its own
// pid namespace, or any if pid is 0. The child is traced and stopped, and has a copy of the stub at the same place.
// EEXIST: the id is taken. The caller closes the Trap.
func (t *Trap) CloneProcess(ctx context.Context, pid int, flags uint64) (*Trap, error) {
	args := CloneArgs{Flags: flags, ExitSignal: unix.SIGCHLD}
	if flags&unix.CLONE_PARENT != 0 {
		args.ExitSignal = 0 // the kernel takes that of the tracee
	}
	if pid != 0 {
		args.IDs = []int{pid}
	}
	return t.Clone(ctx, args)
}

// CloneThread makes a thread of the tracee with the id tid in its pid namespace, or any if tid is 0. It is traced and
// stopped, and shares the stub.
func (t *Trap) CloneThread(ctx context.Context, tid int) (*Trap, error) {
	args := CloneArgs{Flags: unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM}
	if tid != 0 {
		args.IDs = []int{tid}
	}
	return t.Clone(ctx, args)
}

// Clone makes a new task, traced with the options of this one and stopped before its first instruction. With CLONE_VM
// it shares the stub, else it has a copy. The caller closes the Trap.
func (t *Trap) Clone(ctx context.Context, a CloneArgs) (*Trap, error) {
	t.region.mu.Lock()
	defer t.region.mu.Unlock()
	var b Batch
	addCloneArgs(&b, a)
	if _, err := t.run(ctx, &b, false); err != nil {
		return nil, fmt.Errorf("clone3 with flags %#x and ids %v in thread %d: %w", a.Flags, a.IDs, t.tid, err)
	}
	if len(t.births) != 1 {
		return nil, fmt.Errorf("clone3 in thread %d: the kernel announced %d new tasks", t.tid, len(t.births))
	}
	child := t.births[0]
	stop, err := t.tracer.Wait(ctx, child)
	if err != nil {
		return nil, fmt.Errorf("new task %d: %w", child, err)
	}
	if stop.Kind == ptrace.Exited {
		return nil, fmt.Errorf("new task %d: %w", child, ErrGone)
	}
	return t.forTask(ctx, child, a.Flags)
}

// forTask makes the Trap of a new task.
func (t *Trap) forTask(ctx context.Context, child int, flags uint64) (_ *Trap, err error) {
	n := &Trap{tracer: t.tracer, tid: child, region: t.region, mask: t.mask, original: t.original}
	if flags&unix.CLONE_VM == 0 {
		n.region = &region{start: t.region.start}
	}
	if flags&unix.CLONE_THREAD != 0 {
		n.space = t.space.retain()
	} else if n.space, err = openSpace(child); err != nil {
		return nil, err
	}
	if n.base, err = n.tracer.GetRegs(ctx, child); err != nil {
		return nil, errors.Join(err, n.space.release())
	}
	return n, nil
}

// addCloneArgs appends a clone3 call: struct clone_args of include/uapi/linux/sched.h, eleven words.
func addCloneArgs(b *Batch, a CloneArgs) *Result {
	const words = 11
	le := binary.LittleEndian
	args := make([]byte, words*8)
	le.PutUint64(args, a.Flags)
	le.PutUint64(args[4*8:], uint64(a.ExitSignal))
	le.PutUint64(args[9*8:], uint64(len(a.IDs)))
	le.PutUint64(args[10*8:], uint64(a.Cgroup))
	data := b.Bytes(args)
	if len(a.IDs) > 0 {
		var ids []byte
		for _, id := range a.IDs {
			ids = le.AppendUint32(ids, uint32(id))
		}
		data.SetPointer(8*8, b.Bytes(ids), 0)
	}
	return b.Call(unix.SYS_CLONE3, data, len(args))
}
