//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/remote"
	"migrate/engine/task"
)

// builder carries out the plan of a tree.
type builder struct {
	*Skeleton
	wanted  map[int]*pstree.PstreeEntry
	helpers map[int]*remote.Trap // by the number that the plan gives them
}

func (b *builder) run(ctx context.Context, steps []task.Step) error {
	for _, st := range steps {
		var err error
		switch st.Op {
		case task.Fork:
			err = b.fork(ctx, st)
		case task.SetSID:
			err = b.call(ctx, st.PID, unix.SYS_SETSID)
			b.enter(st.PID, st.PID, st.PID)
			if p := b.procs[st.PID]; p != nil && err == nil {
				err = b.takeTerminal(ctx, p)
			}
		case task.SetPGID:
			err = b.call(ctx, st.PID, unix.SYS_SETPGID, 0, st.PGID)
			if p := b.procs[st.PID]; p != nil {
				p.group = st.PGID
			}
		case task.End:
			err = b.endHelper(ctx, st.PID, st.By)
		}
		if err != nil {
			return fmt.Errorf("building the tree: %v: %w", st, err)
		}
	}
	return nil
}

// trap is that of a process of the tree, of a helper, or of whoever bears the roots.
func (b *builder) trap(pid int) *remote.Trap {
	if p := b.procs[pid]; p != nil {
		return p.trap
	}
	if h := b.helpers[pid]; h != nil {
		return h
	}
	return b.parent
}

func (b *builder) call(ctx context.Context, pid, nr int, args ...any) error {
	var batch remote.Batch
	batch.Call(nr, args...)
	return b.trap(pid).Run(ctx, &batch)
}

func (b *builder) enter(pid, session, group int) {
	if p := b.procs[pid]; p != nil {
		p.session, p.group = session, group
	}
}

func (b *builder) fork(ctx context.Context, st task.Step) error {
	flags := b.shareFlags(st)
	if st.Sibling || st.By == 1 && b.env.Sibling && !b.isContainer() {
		flags = unix.CLONE_PARENT
	}
	maker := b.trap(st.By)
	if st.Orphan {
		helper, err := b.makeHelper(ctx, maker, st.PID, flags)
		if err != nil {
			return err
		}
		b.helpers[0] = helper // until it ends, which adopt sees to
		maker = helper
	}
	if err := b.ripen(ctx, b.procs[st.By]); err != nil {
		return err
	}
	root := b.ownHeader.GetOwn() != 0 && len(b.procs) == 0 && !st.Helper // of a tree that is no container: that is born by bearRoot
	if root {
		flags |= ns.Flags(b.ownHeader)
	}
	trap, err := maker.CloneProcess(ctx, max(st.PID, 0), flags)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the id %d is taken in the pid namespace of the tree: %w", st.PID, err)
	}
	if err != nil {
		return err
	}
	if st.Helper {
		b.helpers[st.PID] = trap
	} else if err := b.bear(ctx, st, trap); err != nil {
		return err
	}
	if root {
		if err := b.fillNamespaces(ctx, trap); err != nil {
			return err
		}
	}
	if p := b.procs[st.PID]; p != nil && !st.Helper {
		if err := b.enterNamespaces(ctx, p); err != nil {
			return err
		}
	}
	if st.By == 1 && b.env.Cgroup != nil { // those born of it are in its cgroup by birth
		if err := b.env.Cgroup.Add(trap.PID()); err != nil {
			return err
		}
	}
	if st.Orphan {
		return b.adopt(ctx, st)
	}
	return nil
}

// shareFlags says what a new process is to share with its maker.
func (b *builder) shareFlags(st task.Step) uint64 {
	own, theirs := b.sharing[st.PID], b.sharing[st.By]
	flags := uint64(0)
	for _, s := range []struct {
		own, theirs int
		flag        uint64
	}{{own.VM, theirs.VM, unix.CLONE_VM}, {own.Files, theirs.Files, unix.CLONE_FILES}, {own.FS, theirs.FS, unix.CLONE_FS}, {own.Sighand, theirs.Sighand, unix.CLONE_SIGHAND}} {
		if s.own != 0 && s.own == s.theirs {
			flags |= s.flag
		}
	}
	return flags
}

// bear notes a new process of the tree.
func (b *builder) bear(ctx context.Context, st task.Step, trap *remote.Trap) error {
	e := b.wanted[st.PID]
	p := &process{trap: trap, threads: map[int]*remote.Trap{}, Process: engine.Process{
		PID: trap.PID(), VPID: st.PID, VPPID: int(e.GetPpid()), VPGID: int(e.GetPgid()), VSID: int(e.GetSid()),
		Threads: []engine.Thread{{TID: trap.TID(), VTID: st.PID}}, Caller: trap, Shared: b.sharing[st.PID],
	}}
	if by := b.procs[st.By]; by != nil {
		p.session, p.group = by.session, by.group
	} else if st.By != 1 { // a helper's are its own number, which it leads
		p.session, p.group = int(e.GetSid()), int(e.GetSid())
	}
	if by := b.procs[st.By]; by != nil && by.filled && !st.Orphan {
		p.from = by
	}
	b.procs[st.PID] = p
	// The descriptors of the parent are not the child's, and a sibling's helper may have had some.
	var batch remote.Batch
	batch.Call(unix.SYS_CLOSE_RANGE, 0, uint32(1<<32-1), 0)
	if err := trap.Run(ctx, &batch); err != nil {
		return fmt.Errorf("closing inherited descriptors: %w", err)
	}
	return nil
}

// makeHelper makes a process of any number but the one given.
func (b *builder) makeHelper(ctx context.Context, by *remote.Trap, not int, flags uint64) (*remote.Trap, error) {
	helper, err := by.CloneProcess(ctx, 0, flags)
	if err != nil {
		return nil, err
	}
	st, err := procfs.Host.Status(helper.PID())
	if err != nil || len(st.NSPID) == 0 || st.NSPID[len(st.NSPID)-1] != not {
		return helper, err
	}
	other, err := by.CloneProcess(ctx, 0, flags) // while the first one lives
	return other, errors.Join(err, b.kill(ctx, helper), reap(ctx, by, not))
}

// adopt ends the helper that has made an orphan, while the orphan's parent-to-be takes orphans.
func (b *builder) adopt(ctx context.Context, st task.Step) error {
	heir := b.procs[st.Parent]
	if heir != nil {
		if err := heir.subreaper(ctx, true); err != nil {
			return err
		}
	}
	err := b.endHelper(ctx, 0, st.By)
	if heir != nil {
		err = errors.Join(err, heir.subreaper(ctx, false))
	}
	return err
}

// endHelper ends a helper and lets its parent wait for it.
func (b *builder) endHelper(ctx context.Context, n, parent int) error {
	h := b.helpers[n]
	delete(b.helpers, n)
	st, err := procfs.Host.Status(h.PID())
	if err != nil {
		return err
	}
	if err := b.kill(ctx, h); err != nil {
		return err
	}
	if t := b.helpers[parent]; t != nil {
		return reap(ctx, t, st.NSPID[len(st.NSPID)-1])
	}
	return b.forget(ctx, parent, h.PID(), st.NSPID[len(st.NSPID)-1])
}

func reap(ctx context.Context, by *remote.Trap, vpid int) error {
	var batch remote.Batch
	batch.Try(unix.SYS_WAIT4, vpid, 0, unix.WALL, 0)
	return by.Run(ctx, &batch)
}

// kill ends a helper.
func (b *builder) kill(ctx context.Context, h *remote.Trap) error {
	err := unix.Kill(h.PID(), unix.SIGKILL)
	if err == nil {
		_, err = b.tracer.Wait(ctx, h.TID())
	}
	return errors.Join(err, h.Close())
}

// abandon ends the helpers of a plan that failed.
func (b *builder) abandon(ctx context.Context) error {
	var errs []error
	for _, h := range b.helpers {
		errs = append(errs, b.kill(ctx, h))
	}
	return errors.Join(errs...)
}
