package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

// Run implements Caller.
func (t *Trap) Run(ctx context.Context, b *Batch) error {
	t.region.mu.Lock()
	defer t.region.mu.Unlock()
	_, err := t.run(ctx, b, false)
	return err
}

// Exec runs a batch whose last call is an execve(2) and returns nil when that has succeeded, with the thread stopped
// in its PTRACE_EVENT_EXEC. The Trap is then of no use but for TID and Close. When a call fails, the error is as that
// of Run, and the Trap goes on.
func (t *Trap) Exec(ctx context.Context, b *Batch) error {
	t.region.mu.Lock()
	defer t.region.mu.Unlock()
	options, _, _, err := t.tracer.Options(ctx, t.tid)
	if err != nil {
		return err
	}
	if err := t.tracer.SetOptions(ctx, t.tid, options|unix.PTRACE_O_TRACEEXEC); err != nil {
		return err
	}
	replaced, err := t.run(ctx, b, true)
	if replaced {
		t.region.start = 0
		return nil
	}
	if err == nil {
		err = errors.New("a batch for Exec ended without executing anything")
	}
	return errors.Join(err, t.tracer.SetOptions(ctx, t.tid, options))
}

// Exit ends the thread alone (exit(2)), without waiting until the kernel is done with it. Other threads of the process go on;
// the Trap is then of no use but for TID and Close.
func (t *Trap) Exit(ctx context.Context, status int) error {
	t.region.mu.Lock()
	defer t.region.mu.Unlock()
	options, _, _, err := t.tracer.Options(ctx, t.tid)
	if err != nil {
		return err
	}
	if err := t.tracer.SetOptions(ctx, t.tid, options|unix.PTRACE_O_TRACEEXIT); err != nil {
		return err
	}
	var b Batch
	b.Call(unix.SYS_EXIT, status)
	if _, err := t.run(ctx, &b, false); !errors.Is(err, errExiting) {
		return errors.Join(fmt.Errorf("thread %d did not end", t.tid), err)
	}
	return t.tracer.Detach(ctx, t.tid, 0) // or the end of the process would be told to the tracer and not to its parent
}

// errExiting: the thread is on its way to its end, and executes nothing of the program any more.
var errExiting = errors.New("it ends")

// run runs a batch, larger ones in memory mapped for them, with region.mu held. replaced: the thread executed another
// program, which is an error unless exec is set.
func (t *Trap) run(ctx context.Context, b *Batch, exec bool) (replaced bool, err error) {
	if b.Len() == 0 {
		return false, nil
	}
	if t.region.start == 0 {
		return false, fmt.Errorf("a batch for thread %d, whose stub was removed", t.tid)
	}
	if err := t.finish(ctx); err != nil {
		return false, err
	}
	place := t.region.scratch()
	if b.Size() > scratchSize {
		size := (uint64(b.Size()) + arch.PageSize - 1) &^ (arch.PageSize - 1)
		var large Batch
		mapped := large.Call(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
		if _, err := t.runAt(ctx, &large, place, false); err != nil {
			return false, fmt.Errorf("memory for a batch of %d bytes: %w", b.Size(), err)
		}
		defer func() {
			if !replaced && !t.running {
				var unmap Batch
				unmap.Call(unix.SYS_MUNMAP, uint64(mapped.value), size)
				_, uerr := t.runAt(ctx, &unmap, t.region.scratch(), false)
				err = errors.Join(err, uerr)
			}
		}()
		place = Addr(mapped.value)
	}
	return t.runAt(ctx, b, place, exec)
}

// runAt lays the batch out at place, runs it and reads it back.
func (t *Trap) runAt(ctx context.Context, b *Batch, place Addr, exec bool) (replaced bool, err error) {
	image := b.Encode(place)
	if err := t.space.mem.Write(place, image); err != nil {
		return false, err
	}
	t.births = t.births[:0]
	regs := t.base.WithBatch(uint64(t.region.start), uint64(place), b.Len())
	if disturbsTrap(b) {
		err = t.step(ctx, b, &regs, place)
	} else {
		replaced, err = t.toTrap(ctx, &regs)
	}
	if err != nil {
		return false, err
	}
	if replaced {
		if !exec {
			return true, fmt.Errorf("thread %d executed another program in the middle of a batch", t.tid)
		}
		return true, nil
	}
	if err := t.space.mem.Read(place, image); err != nil {
		return false, err
	}
	return false, b.Decode(image)
}

// toTrap lets the thread run, from regs on or, if that is nil, from where it is, until the stub traps.
func (t *Trap) toTrap(ctx context.Context, regs *arch.Regs) (replaced bool, err error) {
	t.running = true
	var stop ptrace.Stop
	if regs == nil {
		stop, err = t.tracer.Wait(ctx, t.tid)
	} else {
		stop, err = t.tracer.Resume(ctx, t.tid, regs, ptrace.Run, 0)
	}
	for {
		if err != nil {
			return false, fmt.Errorf("a batch in thread %d: %w", t.tid, err)
		}
		done, replaced, err := t.atStop(ctx, stop)
		if done || err != nil {
			t.running = false
			return replaced, err
		}
		stop, err = t.tracer.Resume(ctx, t.tid, nil, ptrace.Run, 0)
		if err != nil {
			return false, fmt.Errorf("a batch in thread %d: %w", t.tid, err)
		}
	}
}

// atStop says what a stop in the middle of a batch means. done: the batch is over.
func (t *Trap) atStop(ctx context.Context, stop ptrace.Stop) (done, replaced bool, err error) {
	switch {
	case stop.Kind == ptrace.Exited:
		return true, false, fmt.Errorf("a batch in thread %d: %w (status %#x)", t.tid, ErrGone, uint32(stop.Status))
	case stop.Kind == ptrace.TaskStop && stop.Event == unix.PTRACE_EVENT_EXEC:
		return true, true, nil
	case stop.Kind == ptrace.TaskStop && stop.Event == unix.PTRACE_EVENT_EXIT:
		return true, false, errExiting
	case stop.Kind == ptrace.TaskStop:
		child, err := t.tracer.EventMsg(ctx, t.tid)
		t.births = append(t.births, int(child))
		return false, false, err
	case stop.Kind == ptrace.SignalStop && stop.Signal == unix.SIGTRAP:
		return true, false, nil
	case stop.Kind == ptrace.SignalStop && isFault(stop.Signal):
		regs, err := t.tracer.GetRegs(ctx, t.tid)
		return true, false, errors.Join(fmt.Errorf("the stub in thread %d at %v: %v at %#x", t.tid, t.region.start, stop.Signal, regs.IP()), err)
	}
	return false, false, nil // an interrupt, a group stop or a signal that nobody is to get: go on
}

func isFault(sig unix.Signal) bool {
	return sig == unix.SIGSEGV || sig == unix.SIGBUS || sig == unix.SIGILL || sig == unix.SIGFPE || sig == unix.SIGSYS
}

// finish waits for the end of a batch that was given up.
func (t *Trap) finish(ctx context.Context) error {
	if !t.running {
		return nil
	}
	_, err := t.toTrap(ctx, nil)
	return err
}

// disturbsTrap reports whether a call of the batch may make SIGTRAP useless as the end of it: the kernel, forced to
// deliver a signal that is blocked or ignored, resets its action to the default (kernel/signal.c, force_sig_info_to_task).
func disturbsTrap(b *Batch) bool {
	for _, r := range b.calls {
		switch {
		case r.nr == unix.SYS_RT_SIGACTION && r.args[0] == uint64(unix.SIGTRAP), r.nr == unix.SYS_RT_SIGPROCMASK:
			return true
		case r.nr == unix.SYS_RT_SIGQUEUEINFO && r.args[1] == uint64(unix.SIGTRAP), r.nr == unix.SYS_RT_TGSIGQUEUEINFO && r.args[2] == uint64(unix.SIGTRAP):
			return true // its sender has blocked it
		}
	}
	return false
}

// step runs a batch from system call to system call, so that it ends without the trap.
func (t *Trap) step(ctx context.Context, b *Batch, regs *arch.Regs, place Addr) error {
	for i, r := range b.calls {
		for stops := 0; stops < 2; {
			stop, err := t.tracer.Resume(ctx, t.tid, regs, ptrace.ToSyscall, 0)
			regs = nil
			if err != nil {
				return fmt.Errorf("a batch in thread %d: %w", t.tid, err)
			}
			if stop.Kind == ptrace.SyscallStop {
				stops++
			} else if done, _, err := t.atStop(ctx, stop); done || err != nil {
				return errors.Join(fmt.Errorf("a batch in thread %d, made step by step, ended early", t.tid), err)
			}
		}
		after, err := t.tracer.GetRegs(ctx, t.tid)
		if err != nil {
			return err
		}
		failed := after.Return() < 0 && after.Return() >= -4095 && !r.lenient
		if failed || i == len(b.calls)-1 { // the stub has not stored this result
			word := binary.LittleEndian.AppendUint64(nil, uint64(after.Return()))
			return t.space.mem.Write(place.Add(uint64(i*RecordSize+56)), word)
		}
	}
	return nil
}
