//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/ns"
	"migrate/engine/remote"
)

// followTree makes the processes of the skeleton those of the layout. Processes that are no longer there end; new ones
// are born of their parents. What an existing process has that cannot be changed any more, its parent or its
// session, must not have changed.
func (s *Skeleton) followTree(ctx context.Context, layout *images.Layout) error {
	wanted := map[int]*pstree.PstreeEntry{}
	for _, e := range layout.Tree {
		wanted[int(e.GetPid())] = e
	}
	for _, pid := range slices.Backward(s.order) {
		if wanted[pid] == nil {
			if err := s.end(ctx, s.procs[pid]); err != nil {
				return err
			}
		}
	}
	steps, err := buildOrder(layout.Tree)
	if err != nil {
		return err
	}
	for _, st := range steps {
		if err := s.step(ctx, st, wanted); err != nil {
			return err
		}
	}
	s.order = s.order[:0]
	for _, e := range layout.Tree {
		s.order = append(s.order, int(e.GetPid()))
	}
	return nil
}

// step does one step of the order, unless an earlier call has done it.
func (s *Skeleton) step(ctx context.Context, st step, wanted map[int]*pstree.PstreeEntry) error {
	p := s.procs[st.pid]
	switch st.kind {
	case fork:
		if p != nil {
			return p.unchanged(wanted[st.pid])
		}
		return s.bear(ctx, st, wanted[st.pid])
	case setsid:
		if p.sessionDone {
			return nil
		}
		p.sessionDone = true
		return p.simple(ctx, "setsid", unix.SYS_SETSID)
	case setpgid:
		if p.groupDone == st.arg {
			return nil
		}
		p.groupDone = st.arg
		return p.simple(ctx, "setpgid", unix.SYS_SETPGID, 0, st.arg)
	}
	return fmt.Errorf("step of kind %d", st.kind)
}

// bear makes a new process.
func (s *Skeleton) bear(ctx context.Context, st step, e *pstree.PstreeEntry) error {
	parent, flags := s.parent, uint64(0)
	if st.arg != 0 {
		parent = s.procs[st.arg].trap
	} else if s.env.Sibling {
		flags = unix.CLONE_PARENT
	}
	trap, err := parent.CloneProcess(ctx, st.pid, flags)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("process %d: the id is taken in the pid namespace of the tree: %w", st.pid, err)
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", st.pid, err)
	}
	p := &process{trap: trap, threads: map[int]*remote.Trap{}, Process: engine.Process{
		PID: trap.PID(), VPID: st.pid, VPPID: int(e.GetPpid()), VPGID: int(e.GetPgid()), VSID: int(e.GetSid()),
		Threads: []engine.Thread{{TID: trap.TID(), VTID: st.pid}}, Caller: trap,
	}}
	s.procs[st.pid] = p
	if st.arg == 0 && s.env.Cgroup != nil {
		if err := s.env.Cgroup.Add(p.PID); err != nil { // those born of it are in its cgroup by birth
			return fmt.Errorf("process %d: %w", st.pid, err)
		}
	}
	// The descriptors of the parent are not the child's, and a sibling's helper may have had some.
	var b remote.Batch
	b.Call(unix.SYS_CLOSE_RANGE, 0, uint32(1<<32-1), 0)
	if err := trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("process %d: closing inherited descriptors: %w", st.pid, err)
	}
	return nil
}

// unchanged refuses a change of what a process has by its birth.
func (p *process) unchanged(e *pstree.PstreeEntry) error {
	if p.VPPID != int(e.GetPpid()) || p.VSID != int(e.GetSid()) {
		return fmt.Errorf("process %d: its parent or session changed from %d, %d to %d, %d since it was built: %w",
			p.VPID, p.VPPID, p.VSID, e.GetPpid(), e.GetSid(), ErrOrder)
	}
	p.VPGID = int(e.GetPgid())
	return nil
}

// simple makes one call in the process.
func (p *process) simple(ctx context.Context, name string, nr int, args ...any) error {
	var b remote.Batch
	b.Call(nr, args...)
	if err := p.trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("process %d: %s%v: %w", p.VPID, name, args, err)
	}
	return nil
}

// end kills a process of the skeleton and forgets it.
func (s *Skeleton) end(ctx context.Context, p *process) error {
	delete(s.procs, p.VPID)
	if err := errors.Join(killTraced(ctx, p), p.close()); err != nil {
		return fmt.Errorf("ending process %d: %w", p.VPID, err)
	}
	return nil
}

// close gives up what this program holds of a process. It may be called again.
func (p *process) close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	errs := []error{p.trap.Close()}
	for _, t := range p.threads {
		errs = append(errs, t.Close())
	}
	if p.writer != nil {
		errs = append(errs, p.writer.Close())
	}
	return errors.Join(errs...)
}

// followThreads makes the threads of a process those wanted, the leader among them.
func (s *Skeleton) followThreads(ctx context.Context, p *process, wanted []uint32) error {
	for vtid, t := range p.threads {
		if !slices.Contains(wanted, uint32(vtid)) {
			if err := s.endThread(ctx, p, vtid, t); err != nil {
				return err
			}
		}
	}
	p.Threads = p.Threads[:1]
	for _, v := range wanted {
		vtid := int(v)
		if vtid == p.VPID {
			continue
		}
		t := p.threads[vtid]
		if t == nil {
			var err error
			if t, err = p.trap.CloneThread(ctx, vtid); err != nil {
				return fmt.Errorf("thread %d: %w", vtid, err)
			}
			p.threads[vtid] = t
		}
		p.Threads = append(p.Threads, engine.Thread{TID: t.TID(), VTID: vtid})
	}
	return nil
}

// endThread makes a thread of the skeleton exit and waits until its id is free again.
func (s *Skeleton) endThread(ctx context.Context, p *process, vtid int, t *remote.Trap) error {
	var b remote.Batch
	b.Call(unix.SYS_EXIT, 0)
	if err := t.Run(ctx, &b); err != nil && !errors.Is(err, remote.ErrGone) {
		return fmt.Errorf("ending thread %d: %w", vtid, err)
	}
	delete(p.threads, vtid)
	return t.Close()
}

// killTraced kills a process and waits until all of its threads have ended. The tracer takes their ends as they come.
func killTraced(ctx context.Context, p *process) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return ns.AwaitExit(ctx, fd)
}
