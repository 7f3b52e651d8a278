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
	"migrate/engine/task"
)

// ErrOrder means that a tree cannot be built, or cannot become what its source has become.
var ErrOrder = errors.New("the sessions, process groups or parents of the tree cannot be rebuilt")

// followTree makes the processes of the skeleton those of the layout. Processes that are no longer there end, and their
// children fall to whom they fell at the source; new ones are born of their parents.
func (s *Skeleton) followTree(ctx context.Context, layout *images.Layout) error {
	wanted := map[int]*pstree.PstreeEntry{}
	for _, e := range layout.Tree {
		wanted[int(e.GetPid())] = e
	}
	for _, pid := range slices.Backward(s.order) {
		if wanted[pid] == nil {
			if err := s.leave(ctx, s.procs[pid], wanted); err != nil {
				return err
			}
		}
	}
	if err := s.unshare(ctx, wanted); err != nil {
		return err
	}
	if err := s.bearRoot(ctx, layout.Tree); err != nil {
		return err
	}
	if err := s.wantTerminals(ctx, layout); err != nil {
		return err
	}
	nodes, err := s.nodes(layout.Tree)
	if err != nil {
		return err
	}
	steps, err := task.PlanTree(nodes)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOrder, err)
	}
	unplanned(steps)
	b := &builder{Skeleton: s, wanted: wanted, helpers: map[int]*remote.Trap{}}
	err = s.tracer.OnThread(ctx, func(ctx context.Context) error { return b.run(ctx, steps) })
	if err != nil {
		return errors.Join(err, b.abandon(context.WithoutCancel(ctx)))
	}
	s.order = s.order[:0]
	for _, e := range layout.Tree {
		p := s.procs[int(e.GetPid())]
		p.VPPID, p.VPGID, p.VSID = int(e.GetPpid()), int(e.GetPgid()), int(e.GetSid())
		s.order = append(s.order, p.VPID)
	}
	if s.spaces != nil {
		return s.spaces.Settle()
	}
	return nil
}

// unshare gives a process for itself what it shared when it was built and does no more. One that has left its parent's
// memory has executed a program, and is made anew.
func (s *Skeleton) unshare(ctx context.Context, wanted map[int]*pstree.PstreeEntry) error {
	for _, pid := range slices.Clone(s.order) {
		p, want := s.procs[pid], s.sharing[pid]
		if p == nil || p.Shared == want {
			continue
		}
		was := p.Shared
		p.Shared = want
		left := func(was, want int) bool { // the first that shared a thing may have ended, which leaves it to the others
			return was != 0 && was != want && (want == 0 || wanted[was] != nil)
		}
		if p.Second(was.VM) && left(was.VM, want.VM) || p.Second(was.Sighand) && left(was.Sighand, want.Sighand) {
			if err := s.leave(ctx, p, wanted); err != nil {
				return err
			}
			continue
		}
		flags := 0
		if left(was.Files, want.Files) {
			flags |= unix.CLONE_FILES
		}
		if left(was.FS, want.FS) {
			flags |= unix.CLONE_FS
		}
		if flags == 0 {
			continue
		}
		if err := p.simple(ctx, "unshare", unix.SYS_UNSHARE, flags); err != nil {
			return err
		}
	}
	return nil
}

// nodes describes the tree to the planner.
func (s *Skeleton) nodes(tree []*pstree.PstreeEntry) ([]task.Node, error) {
	session, group := s.outside(tree)
	out := make([]task.Node, 0, len(tree))
	for _, e := range tree {
		n := task.Node{PID: s.planned(int(e.GetPid())), PPID: s.planned(int(e.GetPpid())), SID: s.planned(int(e.GetSid())), PGID: s.planned(int(e.GetPgid()))}
		if n.SID == session {
			n.SID = 0
			if n.PGID == group || n.PGID == session {
				n.PGID = 0
			}
		}
		if p := s.procs[int(e.GetPid())]; p != nil {
			if p.VPPID != int(e.GetPpid()) {
				return nil, fmt.Errorf("%w: process %d has got the parent %d while %d, which it was built under, lives", ErrOrder, n.PID, n.PPID, p.VPPID)
			}
			n.Built, n.NowSID, n.NowPGID = true, s.planned(p.session), s.planned(p.group)
		}
		out = append(out, n)
	}
	return out, nil
}

// outside returns the session and the process group that the root of the tree has from outside of it, if they cannot be
// made again: in this program's pid namespace the number may be in use. The tree then gets those of its new parent. In a
// namespace of its own every number is free.
func (s *Skeleton) outside(tree []*pstree.PstreeEntry) (session, group int) {
	root := tree[0]
	if !s.env.Sibling || root.GetSid() == root.GetPid() {
		return -1, -1
	}
	return int(root.GetSid()), int(root.GetPgid())
}

// leave ends a process of the skeleton that the source has no more. Its children fall to the one to whom they fell there,
// and its parent forgets it, so that its number is free.
func (s *Skeleton) leave(ctx context.Context, p *process, wanted map[int]*pstree.PstreeEntry) error {
	var heir *process
	for _, pid := range s.order {
		c := s.procs[pid]
		if c == nil || c.VPPID != p.VPID || wanted[pid] == nil {
			continue
		}
		c.VPPID = int(wanted[pid].GetPpid())
		heir = s.procs[c.VPPID]
	}
	if heir != nil {
		if err := heir.subreaper(ctx, true); err != nil {
			return err
		}
	}
	parent := p.VPPID
	err := s.end(ctx, p)
	if err == nil { // the tracer's part of waiting for it
		_, err = s.tracer.Wait(ctx, p.PID)
	}
	if err == nil {
		err = s.forget(ctx, parent, p.PID, p.VPID)
	}
	if heir != nil {
		err = errors.Join(err, heir.subreaper(ctx, false))
	}
	return err
}

// forget lets a parent wait for a child that has ended: a process of the tree, or whoever bears the roots.
func (s *Skeleton) forget(ctx context.Context, parent, pid, vpid int) error {
	by := s.parent
	if p := s.procs[parent]; p != nil {
		by = p.trap
	} else if s.env.Sibling {
		_, err := unix.Wait4(pid, nil, unix.WALL, nil)
		if err != nil && !errors.Is(err, unix.ECHILD) { // not ours, or taken by the tracer
			return fmt.Errorf("waiting for the end of process %d: %w", pid, err)
		}
		return nil
	}
	var b remote.Batch
	b.Try(unix.SYS_WAIT4, vpid, 0, unix.WALL, 0)
	return by.Run(ctx, &b)
}

// subreaper lets a process take the orphans below it, or no longer.
func (p *process) subreaper(ctx context.Context, on bool) error {
	return p.simple(ctx, "prctl(PR_SET_CHILD_SUBREAPER)", unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, on, 0, 0, 0)
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
