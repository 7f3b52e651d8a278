package ptrace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// Seize begins to trace a thread without stopping it. Options are unix.PTRACE_O_*; PTRACE_O_TRACESYSGOOD is always
// set. The error is ErrTraced if another program traces it, ErrGone if it has ended, or EPERM.
func (t *Tracer) Seize(ctx context.Context, tid, options int) error {
	return t.do(ctx, func() error { return t.seize(tid, options) })
}

func (t *Tracer) seize(tid, options int) error {
	options |= unix.PTRACE_O_TRACESYSGOOD
	if te := t.tracees[tid]; te != nil && te.unwanted {
		te.unwanted = false
		return nil
	} else if te != nil && !te.ended {
		return fmt.Errorf("seizing thread %d: already traced by this tracer", tid)
	}
	err := ptrace(unix.PTRACE_SEIZE, tid, 0, uintptr(options))
	switch {
	case err == nil:
		t.tracees[tid] = &tracee{options: options}
		return nil
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("seizing thread %d: %w", tid, ErrGone)
	case !errors.Is(err, unix.EPERM):
		return fmt.Errorf("seizing thread %d: %w", tid, err)
	}
	switch state, tracer, perr := taskState(tid); {
	case perr != nil || state == 'Z' || state == 'X':
		return fmt.Errorf("seizing thread %d: %w", tid, ErrGone)
	case tracer == t.tid: // a new task that was attached automatically, seen here before its birth was
		t.tracees[tid] = &tracee{options: options}
		return nil
	case tracer != 0:
		return fmt.Errorf("seizing thread %d: %w (process %d); detach it first", tid, ErrTraced, tracer)
	}
	return fmt.Errorf("seizing thread %d: %w (is CAP_SYS_PTRACE there, and does kernel.yama.ptrace_scope allow it?)", tid, err)
}

// taskState returns the state letter of a thread and the thread that traces it, or 0 (proc_pid_status(5)).
func taskState(tid int) (state byte, tracer int, err error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case key == "State" && value != "":
			state = value[0]
		case key == "TracerPid":
			tracer, err = strconv.Atoi(value)
		}
	}
	return state, tracer, err
}

// SeizeAll seizes and stops every thread of a process, also those that are born meanwhile, and returns their stops,
// the leader first, all of kind EventStop or GroupStop. Threads that this tracer has already are only stopped.
// Signals that arrive meanwhile are delivered. A leader that has ended while other threads live is left out.
// On an error all that it has seized run on: a thread that cannot be stopped at the moment, as one that waits for a disk, is let
// go when it stops.
func (t *Tracer) SeizeAll(ctx context.Context, pid, options int) (_ []Stop, err error) {
	stops := map[int]Stop{}
	had, err := t.traced(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.giveUp(context.WithoutCancel(ctx), pid, had))
		}
	}()
	for {
		tids, err := Threads(pid)
		if err != nil {
			return nil, err
		}
		var fresh []int
		for _, tid := range tids {
			if _, known := stops[tid]; !known {
				fresh = append(fresh, tid)
			}
		}
		if len(fresh) == 0 {
			return inOrder(tids, stops), nil
		}
		if err := t.stopThreads(ctx, fresh, options|unix.PTRACE_O_TRACECLONE, stops); err != nil {
			return nil, fmt.Errorf("stopping process %d: %w", pid, err)
		}
	}
}

// inOrder lists the stops of the threads that are still there.
func inOrder(tids []int, stops map[int]Stop) []Stop {
	out := make([]Stop, 0, len(tids))
	for _, tid := range tids {
		if s := stops[tid]; s.Kind != Exited {
			out = append(out, s)
		}
	}
	return out
}

// traced lists the threads that somebody wants to be traced.
func (t *Tracer) traced(ctx context.Context) (map[int]bool, error) {
	out := map[int]bool{}
	return out, t.do(ctx, func() error {
		for tid, te := range t.tracees {
			if !te.ended && !te.unwanted {
				out[tid] = true
			}
		}
		return nil
	})
}

// giveUp lets the threads of a process go that are traced and were not before: at once where they are stopped, else when they
// stop, as they have been asked to.
func (t *Tracer) giveUp(ctx context.Context, pid int, had map[int]bool) error {
	return t.do(ctx, func() error {
		var errs []error
		for tid, te := range t.tracees {
			if had[tid] || te.ended {
				continue
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, tid)); err != nil {
				continue // it has ended, or is of another process
			}
			te.unwanted = true
			if !te.stopped {
				t.takeStop(tid, te)
			}
			if !te.stopped {
				continue // reapDead looks again at each SIGCHLD
			}
			if err := t.detachStopped(tid, 0); !errors.Is(err, ErrGone) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// stopThreads seizes, interrupts and awaits threads, and notes their stops; Exited for those that end.
func (t *Tracer) stopThreads(ctx context.Context, tids []int, options int, stops map[int]Stop) error {
	first := true
	waiting := tids
	return t.await(ctx, "stopping all threads", tids[0], func() (bool, error) {
		if first {
			first = false
			for _, tid := range tids {
				if err := t.seizeStop(tid, options); errors.Is(err, ErrGone) {
					stops[tid] = Stop{TID: tid, Kind: Exited}
				} else if err != nil {
					return false, err
				}
			}
		}
		var left []int
		for _, tid := range waiting {
			if _, known := stops[tid]; known {
				continue
			}
			stop, done, err := t.settle(tid)
			switch {
			case errors.Is(err, ErrGone):
				stops[tid] = Stop{TID: tid, Kind: Exited}
			case err != nil:
				return false, err
			case done:
				stops[tid] = stop
			default:
				left = append(left, tid)
			}
		}
		waiting = left
		return len(left) == 0, nil
	})
}

func (t *Tracer) seizeStop(tid, options int) error {
	te := t.tracees[tid]
	if te == nil || te.ended || te.unwanted {
		if err := t.seize(tid, options); err != nil {
			return err
		}
	} else if te.stopped {
		return nil
	}
	return t.explain("PTRACE_INTERRUPT", tid, unix.PtraceInterrupt(tid))
}

// Threads lists the threads of a process, the leader first. The error is ErrGone if it has ended.
func Threads(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task") // sorted by name, not by number
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
	} else if err != nil {
		return nil, fmt.Errorf("threads of process %d: %w", pid, err)
	}
	tids := []int{pid}
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("threads of process %d: /proc/%d/task/%s is no thread", pid, pid, e.Name())
		}
		if tid != pid {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

// SetOptions replaces the options of a stopped thread; PTRACE_O_TRACESYSGOOD is always set.
func (t *Tracer) SetOptions(ctx context.Context, tid, options int) error {
	return t.stoppedCall(ctx, "PTRACE_SETOPTIONS", tid, func() error {
		options |= unix.PTRACE_O_TRACESYSGOOD
		err := ptrace(unix.PTRACE_SETOPTIONS, tid, 0, uintptr(options))
		if err == nil {
			t.tracees[tid].options = options
		}
		return err
	})
}

// Options returns the options with which a thread is traced, and whether this tracer traces it and has it stopped.
func (t *Tracer) Options(ctx context.Context, tid int) (options int, traced, stopped bool, err error) {
	err = t.do(ctx, func() error {
		if te := t.tracees[tid]; te != nil && !te.ended {
			options, traced, stopped = te.options, true, te.stopped
		}
		return nil
	})
	return options, traced, stopped, err
}

// Detach lets a thread go; a running one is stopped for it. It delivers sig if the thread is in a SignalStop; with sig
// 0 there, the signal that stopped it is delivered. A thread of a stopped process goes back into its group stop, and is
// there when Detach returns. A thread that has ended or is not traced is no error.
func (t *Tracer) Detach(ctx context.Context, tid int, sig unix.Signal) error {
	held, err := t.detach(ctx, tid, sig)
	if held && err == nil {
		err = awaitGroupStop(ctx, tid)
	}
	return err
}

// DetachAll is Detach of several threads without a signal. Those of stopped processes go back into their group stops all
// at once.
func (t *Tracer) DetachAll(ctx context.Context, tids ...int) error {
	var errs []error
	var back []int
	for _, tid := range tids {
		held, err := t.detach(ctx, tid, 0)
		if held && err == nil {
			back = append(back, tid)
		}
		errs = append(errs, err)
	}
	for _, tid := range back {
		errs = append(errs, awaitGroupStop(ctx, tid))
	}
	return errors.Join(errs...)
}

// detach lets a thread go, and tells whether it goes back into a group stop.
func (t *Tracer) detach(ctx context.Context, tid int, sig unix.Signal) (held bool, err error) {
	_, traced, stopped, err := t.Options(ctx, tid)
	if err != nil || !traced {
		return false, err
	}
	if !stopped {
		if _, err := t.Stop(ctx, tid); errors.Is(err, ErrGone) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("detaching: %w", err)
		}
	}
	err = t.do(ctx, func() error {
		if te := t.tracees[tid]; te != nil {
			held = te.stop.Kind == GroupStop
		}
		return t.detachStopped(tid, sig)
	})
	if errors.Is(err, ErrGone) {
		return false, nil
	}
	return held, err
}

// A thread on its way back into a group stop needs a processor for some microseconds, for which it may have to wait.
const (
	backTime  = time.Second
	backTicks = 2 // of processor time: a thread that SIGCONT has let run uses more
)

// awaitGroupStop returns when a thread that was detached in a group stop stands still. On its way there it executes
// nothing of its program, but /proc shows it as running (kernel/ptrace.c, __ptrace_unlink), which a parent that has been
// told of the stop never sees without a tracer. A thread that has been told to go on since is not waited for.
func awaitGroupStop(ctx context.Context, tid int) error {
	var first *procfs.Stat
	for end := time.Now().Add(backTime); ; {
		now, err := procfs.Host.Stat(tid)
		if err != nil || now.State != 'R' || time.Now().After(end) {
			return nil // also if it has ended
		}
		if first == nil {
			first = now
		}
		if now.UTime+now.STime > first.UTime+first.STime+backTicks {
			return nil
		}
		select {
		case <-time.After(100 * time.Microsecond): // only its parent is told of a stop, and not again of this one
		case <-ctx.Done():
			return fmt.Errorf("thread %d on its way back into its group stop: %w", tid, context.Cause(ctx))
		}
	}
}

// detachStopped is Detach of a stopped thread, on the tracer's thread.
func (t *Tracer) detachStopped(tid int, sig unix.Signal) error {
	return t.onStopped("PTRACE_DETACH", tid, func() error {
		if stop := t.tracees[tid].stop; stop.Kind == SignalStop && sig == 0 {
			sig = stop.Signal
		}
		t.unwind(t.tracees[tid])
		err := ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(sig))
		if err == nil {
			delete(t.tracees, tid)
		}
		return err
	})
}
