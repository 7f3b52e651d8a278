package ptrace

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Call makes one system call in a stopped thread with the instruction at insn and returns its result, -4095..-1 for
// an error of the call. The thread is left stopped right behind the instruction, with the registers of the call: this
// is for threads that are being built, not for living programs. A new task that the call makes is in newTID, traced.
// The error is that of the tracing.
func (t *Tracer) Call(ctx context.Context, tid int, insn Addr, nr int, args ...uint64) (result int64, newTID int, err error) {
	regs, err := t.GetRegs(ctx, tid)
	if err != nil {
		return 0, 0, err
	}
	var six [6]uint64
	copy(six[:], args)
	call := regs.WithCall(uint64(insn), nr, six)
	next := &call
	for stops := 0; stops < 2; {
		stop, err := t.Resume(ctx, tid, next, ToSyscall, 0)
		next = nil
		switch {
		case err != nil:
			return 0, 0, fmt.Errorf("system call %d in thread %d: %w", nr, tid, err)
		case stop.Kind == SyscallStop:
			stops++
		case stop.Kind == Exited:
			return 0, 0, fmt.Errorf("system call %d in thread %d: %w", nr, tid, ErrGone)
		case stop.Kind == TaskStop:
			if msg, err := t.EventMsg(ctx, tid); err == nil && isBirth(stop.Event) {
				newTID = int(msg)
			}
		case stop.Kind == EventStop: // attached or interrupted a moment ago; it has not run yet
		default:
			return 0, 0, fmt.Errorf("system call %d in thread %d: stopped by %v", nr, tid, stop)
		}
	}
	after, err := t.GetRegs(ctx, tid)
	return after.Return(), newTID, err
}

// isBirth reports whether a TaskStop is that of a thread that made a new task.
func isBirth(event int) bool {
	return event == unix.PTRACE_EVENT_CLONE || event == unix.PTRACE_EVENT_FORK || event == unix.PTRACE_EVENT_VFORK
}
