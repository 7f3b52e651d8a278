//go:build linux

package dump

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/task"
	"migrate/engine/thread"
)

// frozen is a process all of whose threads are stopped.
type frozen struct {
	*engine.Process
	stops   []ptrace.Stop      // of the threads, in their order
	threads []task.ThreadState // their registers, as the freeze found them
	zombie  bool               // it has ended, and its parent does not know yet

	source *task.Source // after State
	memory *ptrace.Memory
}

func isZombie(fs procfs.FS, pid int) bool {
	z, err := task.IsZombie(fs, pid)
	return err == nil && z
}

// maxPasses bounds how often the tree is listed anew while it is being stopped. Each pass stops everything that it
// finds and waits for what is ending, so only what is born between two passes keeps it going.
const maxPasses = 100

// endingTime is how long a process may take to end: the kernel takes its memory and files apart meanwhile.
const endingTime = 10 * time.Second

// Freeze stops every thread of every process of the tree, also those that are born meanwhile. On failure the tree runs
// on.
func (s *Source) Freeze(ctx context.Context) (err error) {
	if s.frozen != nil {
		return nil
	}
	stopped := map[int]*frozen{}
	defer func() {
		if err != nil {
			for _, f := range stopped {
				err = errors.Join(err, s.letGo(context.WithoutCancel(ctx), f))
			}
		}
	}()
	s.stoppedAt = time.Now()
	for range maxPasses {
		tree, ending, err := s.find()
		if err != nil {
			return err
		}
		fresh := len(ending) > 0
		for _, p := range tree {
			if stopped[p.PID] != nil {
				continue
			}
			fresh = true
			stops, err := s.tracer.SeizeAll(ctx, p.PID, 0)
			zombie := errors.Is(err, ptrace.ErrGone) || err == nil && len(stops) == 0
			if zombie && !isZombie(s.fs, p.PID) {
				ending = append(ending, p.Group())
				continue
			}
			if err != nil && !zombie {
				return fmt.Errorf("freezing pid %d: %w", p.PID, err)
			}
			stopped[p.PID] = &frozen{stops: stops, zombie: zombie}
		}
		if !fresh {
			return s.settle(ctx, tree, stopped)
		}
		for _, pid := range ending {
			if err := awaitEnd(ctx, s.fs, pid); err != nil {
				return fmt.Errorf("freezing pid %d: %w", s.target.PID, err)
			}
		}
	}
	return fmt.Errorf("the tree of pid %d bears processes faster than they can be stopped", s.target.PID)
}

// awaitEnd returns when a process that is ending waits for its parent, or is gone.
func awaitEnd(ctx context.Context, fs procfs.FS, pid int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, endingTime, fmt.Errorf("it has not come to its end in %v", endingTime))
	defer cancel()
	fd, err := thread.Pidfd(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pid %d, which is ending: pidfd_open: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }() // a handle: nothing is lost
	if err = ns.AwaitExit(ctx, fd); err == nil && !isZombie(fs, pid) {
		err = ns.AwaitReleased(ctx, fd)
	}
	if err != nil {
		return fmt.Errorf("pid %d, which is ending: %w", pid, err)
	}
	return nil
}

// settle describes the stopped tree, now that nothing in it changes any more.
func (s *Source) settle(ctx context.Context, tree []*engine.Process, stopped map[int]*frozen) error {
	list := make([]*frozen, 0, len(tree))
	for _, p := range tree {
		f := stopped[p.PID]
		f.Process = p
		if f.zombie {
			list = append(list, f)
			continue
		}
		if err := f.match(); err != nil {
			return err
		}
		states, err := task.ReadThreadStates(ctx, s.tracer, p.Threads, f.stops)
		if err != nil {
			return fmt.Errorf("pid %d: %w", p.PID, err)
		}
		f.threads = states
		list = append(list, f)
	}
	s.frozen = list
	s.procs = tree
	return task.FindShared(tree)
}

// match puts the stops into the order of the threads.
func (f *frozen) match() error {
	byTID := make(map[int]ptrace.Stop, len(f.stops))
	for _, st := range f.stops {
		byTID[st.TID] = st
	}
	f.stops = f.stops[:0]
	for _, th := range f.Threads {
		st, ok := byTID[th.TID]
		if !ok {
			return fmt.Errorf("pid %d: thread %d is not stopped", f.PID, th.TID)
		}
		f.stops = append(f.stops, st)
	}
	return nil
}

// restartUnlessHandled is -ERESTARTNOHAND (include/linux/errno.h): the kernel makes the system call again, unless a handler
// runs first; then the program sees EINTR.
const restartUnlessHandled = -514

// letGo lets the threads of a process run on as if they had never been stopped: a system call that says EINTR only because
// of the stop is made again.
func (s *Source) letGo(ctx context.Context, f *frozen) error {
	errs := []error{f.close()}
	for _, th := range f.threads {
		if r := th.Regs; r.Restart() == arch.RestartSpurious {
			r.SetReturn(restartUnlessHandled)
			errs = append(errs, s.tracer.SetRegs(ctx, th.Thread.TID, r))
		}
	}
	tids := make([]int, 0, len(f.stops))
	for _, st := range f.stops {
		tids = append(tids, st.TID)
	}
	return errors.Join(append(errs, s.tracer.DetachAll(ctx, tids...))...)
}

// letAllGo lets the whole tree run on. What a signal has stopped comes first: it stands still again before its parent can look.
func (s *Source) letAllGo(ctx context.Context) error {
	var errs []error
	for _, held := range []bool{true, false} {
		for _, f := range s.frozen {
			if (len(f.stops) > 0 && f.stops[0].Held != 0) == held {
				errs = append(errs, s.letGo(ctx, f))
			}
		}
	}
	return errors.Join(errs...)
}

// close gives back what State has opened.
func (f *frozen) close() error {
	if f.memory == nil {
		return nil
	}
	err := f.memory.Close()
	f.memory = nil
	return err
}
