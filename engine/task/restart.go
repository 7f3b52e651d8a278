//go:build linux

package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/ptrace"
)

// A wait with a time-out that a stop interrupts (nanosleep, poll, futex) goes on by restart_syscall(2): the kernel
// keeps the end of the wait in the thread's restart block, where ptrace does not reach, and which another kernel
// does not have. So it is read at the source, and made anew at the destination:
//
//   - Read: a small BPF program (thread_bpf.go) copies the block out of the kernel, exactly. Where that cannot be,
//     nanosleep has written the rest into the memory that the program gave for it, if it gave any; else the wait is
//     taken to begin at the freeze, so it ends too late by the time that had passed, at most by its own length.
//   - Make anew: the restored thread makes the same call itself with the time that is left, and is interrupted before
//     it sleeps: stopped at the entry of the call, it is told to stop again, so the call finds a signal pending and
//     returns at once, leaving its own restart block. Then it gets the program's registers, unchanged, which say
//     that the call was interrupted, and the kernel goes on from there as the source's would have.
//
// Calls that answer EINTR to a stop (epoll_wait and the others of arch.RestartSpurious) have no restart block. They
// are made again with their whole time-out: they may wait longer, by at most its length. To write a shorter one into
// the argument register would show the program a register that a system call never changes.

// scratchBelow is how far below the stack pointer the arguments of the new call are put for a moment: beyond the red
// zone of either processor. What was there is put back, so it does not matter whether it is still the stack.
const scratchBelow = 512

// futex operations (include/uapi/linux/futex.h).
const (
	futexWait       = 0
	futexWaitBitset = 9
	futexPrivate    = 128
	futexRealtime   = 256
	futexCmdMask    = 127
	futexMatchAny   = 0xffffffff
)

func dumpRestartBlock(d *dumper) error {
	if d.Regs.Restart() != arch.RestartBlock {
		return nil
	}
	if d.kernel != nil {
		var err error
		if d.thread.Extra.Restart, err = d.exactBlock(d.kernel.Restart); err != nil || d.thread.Extra.Restart != nil {
			return err
		}
	}
	d.thread.Extra.Restart = d.guessBlock()
	return nil
}

// exactBlock turns the kernel's block, which counts in the host's clocks, into a message. It is nil for a kind that
// is not known.
func (d *dumper) exactBlock(b RestartState) (*imagespb.RestartBlock, error) {
	kind := d.kindOfWait()
	if kind == imagespb.RestartBlock_NONE {
		var err error
		if kind, err = d.RestartBlocks.KindOf(b); err != nil {
			return nil, err
		}
	}
	offsets, err := d.FS.ClockOffsets(d.Proc.PID)
	if err != nil {
		return nil, err
	}
	rb := &imagespb.RestartBlock{Kind: kind, Exact: true}
	switch kind {
	case imagespb.RestartBlock_NANOSLEEP:
		rb.Clock, rb.Rmtp, rb.Expires = b.Clock, b.Rmtp, b.SleepUntil
	case imagespb.RestartBlock_POLL:
		rb.Clock, rb.Address, rb.Count, rb.Expires, rb.Forever = unix.CLOCK_MONOTONIC, b.PollFDs, uint64(b.PollCount), b.PollUntil, !b.PollTimed
	case imagespb.RestartBlock_FUTEX:
		rb.Address, rb.Count, rb.Bitset, rb.Expires = b.FutexAddr, uint64(b.FutexValue), b.FutexBitset, b.FutexUntil
		rb.Flags = uint32(d.Regs.SyscallArgs()[1])
		rb.Clock = unix.CLOCK_MONOTONIC
		if rb.Flags&futexRealtime != 0 {
			rb.Clock = unix.CLOCK_REALTIME
		}
	default:
		return nil, nil
	}
	switch rb.Clock {
	case unix.CLOCK_MONOTONIC:
		rb.Expires += int64(offsets.Monotonic)
	case unix.CLOCK_BOOTTIME:
		rb.Expires += int64(offsets.Boottime)
	}
	return rb, nil
}

// kindOfWait is kindOfCall for the call that the thread was in.
func (d *dumper) kindOfWait() imagespb.RestartBlock_Kind {
	nr := d.Regs.SyscallNr()
	if nr == sysClockNanosleep && cpuClock(int(int32(d.Regs.SyscallArgs()[0]))) {
		return imagespb.RestartBlock_CPU_NANOSLEEP
	}
	return kindOfCall(nr)
}

// kindOfCall tells from the number of a system call what kind of restart block it leaves.
func kindOfCall(nr int64) imagespb.RestartBlock_Kind {
	switch nr {
	case sysNanosleep, sysClockNanosleep:
		return imagespb.RestartBlock_NANOSLEEP
	case sysPoll:
		return imagespb.RestartBlock_POLL
	case sysFutex:
		return imagespb.RestartBlock_FUTEX
	}
	return imagespb.RestartBlock_NONE
}

// guessBlock makes the best of what the registers and the memory tell. Nil: the call is made again as it was.
func (d *dumper) guessBlock() *imagespb.RestartBlock {
	a := d.Regs.SyscallArgs()
	rb := &imagespb.RestartBlock{Kind: kindOfCall(d.Regs.SyscallNr()), Clock: unix.CLOCK_MONOTONIC}
	now := d.Clocks.GetMonotonic()
	switch d.Regs.SyscallNr() {
	case sysNanosleep, sysClockNanosleep:
		request, rest := a[0], a[1]
		if d.Regs.SyscallNr() == sysClockNanosleep {
			request, rest = a[2], a[3]
			if clock := int32(a[0]); clock == unix.CLOCK_BOOTTIME {
				rb.Clock, now = clock, d.Clocks.GetBoottime()
			} else if cpuClock(int(clock)) {
				return nil
			}
		}
		rb.Rmtp, rb.Exact = rest, rest != 0
		from := request
		if rb.Exact {
			from = rest
		}
		left, err := d.timespec(from)
		if err != nil {
			return nil
		}
		rb.Expires = now + int64(left)
	case sysPoll:
		timeout := int32(a[2])
		rb.Address, rb.Count, rb.Forever, rb.Exact = a[0], a[1], timeout < 0, timeout < 0
		rb.Expires = now + int64(timeout)*int64(time.Millisecond)
	case sysFutex:
		if a[1]&futexCmdMask != futexWait {
			return nil // its time-out is a point in time, so the same call ends when it should
		}
		left, err := d.timespec(a[3])
		if err != nil {
			return nil
		}
		rb.Address, rb.Count, rb.Flags, rb.Bitset, rb.Expires = a[0], a[2], uint32(a[1]), futexMatchAny, now+int64(left)
	default:
		return nil
	}
	return rb
}

// timespec reads a struct timespec of the program.
func (d *dumper) timespec(addr uint64) (time.Duration, error) {
	var b [16]byte
	if err := d.Memory.Read(ptrace.Addr(addr), b[:]); err != nil {
		return 0, err
	}
	return timespecAt(b[:], 0), nil
}

// restoreRestartBlock gives a stopped thread a restart block of its own and returns the registers with which it goes
// on. The thread must have no stub any more and must not have reached its program's registers yet.
func restoreRestartBlock(ctx context.Context, t *Target, tid int, img *images.Thread, r arch.Regs) (arch.Regs, error) {
	if r.Restart() != arch.RestartBlock {
		return r, nil
	}
	rb := img.Extra.GetRestart()
	if rb.GetKind() == imagespb.RestartBlock_NONE || rb.GetKind() == imagespb.RestartBlock_CPU_NANOSLEEP {
		if r.SyscallNr() == restartCall {
			return r.Interrupted(), nil // which call it was is not known; EINTR is what it says for a handler
		}
		r.SetReturn(noHandlerRestart)
		return r, nil
	}
	now, err := Clocks(t.FS, tid)
	if err != nil {
		return r, err
	}
	nr, args, arg := newCall(rb, now)
	ip := r.Again().IP()
	result, err := t.interruptedCall(ctx, tid, r.WithCall(ip, nr, args), r.SP(), arg, argOf(rb))
	if err != nil {
		return r, err
	}
	if result != restartBlockResult { // the wait was over
		r.SetReturn(result)
		r.ClearSyscall()
	}
	return r, nil
}

// restartBlockResult is -ERESTART_RESTARTBLOCK.
const restartBlockResult = -516

// argOf returns which argument of the new call is the address of its time, or -1.
func argOf(rb *imagespb.RestartBlock) int {
	switch rb.GetKind() {
	case imagespb.RestartBlock_NANOSLEEP:
		return 2
	case imagespb.RestartBlock_FUTEX:
		return 3
	}
	return -1
}

// newCall returns the call that waits until the same end, and the struct timespec that it needs, if any.
func newCall(rb *imagespb.RestartBlock, now *imagespb.Clocks) (nr int, args [6]uint64, ts []byte) {
	clock := now.GetMonotonic()
	if rb.GetClock() == unix.CLOCK_BOOTTIME {
		clock = now.GetBoottime()
	}
	left := time.Duration(max(1, rb.GetExpires()-clock))
	ts = make([]byte, 16)
	switch rb.GetKind() {
	case imagespb.RestartBlock_NANOSLEEP:
		putTimespec(ts, left)
		return sysClockNanosleep, [6]uint64{uint64(rb.GetClock()), 0, 0, rb.GetRmtp()}, ts
	case imagespb.RestartBlock_POLL:
		ms := int64(-1)
		if !rb.GetForever() {
			ms = min(int64((left+time.Millisecond-1)/time.Millisecond), 1<<31-1)
		}
		return sysPoll, [6]uint64{rb.GetAddress(), rb.GetCount(), uint64(ms)}, nil
	default:
		// As a point in time, so that nothing is lost to rounding.
		putTimespec(ts, time.Duration(max(0, rb.GetExpires())))
		op := uint64(futexWaitBitset | rb.GetFlags()&(futexPrivate|futexRealtime))
		return sysFutex, [6]uint64{rb.GetAddress(), op, rb.GetCount(), 0, 0, uint64(rb.GetBitset())}, ts
	}
}

// interruptedCall lets the thread make a system call that is interrupted before it can sleep, and returns its result.
// If argIndex is not -1, arg is put into memory for the time of the call and its address becomes that argument.
func (t *Target) interruptedCall(ctx context.Context, tid int, regs arch.Regs, sp uint64, arg []byte, argIndex int) (_ int64, err error) {
	if argIndex >= 0 {
		at := ptrace.Addr((sp - scratchBelow) &^ 15)
		old := make([]byte, len(arg))
		if err := t.Memory.Read(at, old); err != nil {
			return 0, fmt.Errorf("memory below the stack pointer: %w", err)
		}
		if err := t.Memory.Write(at, arg); err != nil {
			return 0, fmt.Errorf("memory below the stack pointer: %w", err)
		}
		defer func() { err = errors.Join(err, t.Memory.Write(at, old)) }()
		a := regs.SyscallArgs()
		a[argIndex] = uint64(at)
		regs = regs.WithCall(regs.IP(), callNumber(regs), a)
	}
	stop, err := t.Tracer.Resume(ctx, tid, &regs, ptrace.ToSyscall, 0)
	for err == nil && (stop.Kind == ptrace.EventStop || stop.Kind == ptrace.GroupStop) { // a stop that was asked for before
		stop, err = t.Tracer.Resume(ctx, tid, &regs, ptrace.ToSyscall, 0)
	}
	if err != nil {
		return 0, err
	}
	if stop.Kind != ptrace.SyscallStop {
		return 0, fmt.Errorf("it stopped (%v) instead of making a system call", stop)
	}
	if err := t.Tracer.Interrupt(ctx, tid); err != nil {
		return 0, err
	}
	if stop, err = t.Tracer.Resume(ctx, tid, nil, ptrace.Run, 0); err != nil {
		return 0, err
	}
	if stop.Kind != ptrace.EventStop && stop.Kind != ptrace.GroupStop {
		return 0, fmt.Errorf("it stopped (%v) instead of being interrupted", stop)
	}
	after, err := t.Tracer.GetRegs(ctx, tid)
	return after.Return(), err
}
