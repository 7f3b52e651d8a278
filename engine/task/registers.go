//go:build linux

package task

import (
	"context"
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	"migrate/arch"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/ptrace"
)

// dumpRegisters takes the registers as the stop left them, the kernel's mark of an interrupted system call
// included. So at the destination the kernel itself decides how the call goes on, with the pending signals and the
// handlers that it finds there. Only a call that says EINTR because of the stop itself is marked to start again.
func dumpRegisters(d *dumper) error {
	r := d.Regs
	if !r.Is64Bit() {
		return fmt.Errorf("it runs 32-bit code: %w", ErrNotCarried)
	}
	e := d.thread.Extra
	if r.Restart() == arch.RestartSpurious && !d.signalToHandle() {
		r.SetReturn(noHandlerRestart)
	}
	e.Regs, e.Xstate = r.Marshal(), d.XState
	e.SyscallNr, e.SawSyscall = r.SyscallNr(), r.Restart() != arch.RestartNone
	describeRegisters(d.thread.Core, e, r, d.XState)
	d.thread.Core.ThreadCore.BlkSigset = proto.Uint64(d.SigMask)
	if d.leader {
		d.thread.Core.Tc.BlkSigset = proto.Uint64(d.SigMask)
	}
	return nil
}

// noHandlerRestart is -ERESTARTNOHAND: EINTR if a handler runs, else the call starts again.
const noHandlerRestart = -514

// signalToHandle reports whether a signal was pending that the thread does not block.
func (d *dumper) signalToHandle() bool {
	for _, l := range [][]ptrace.SigInfo{d.Pending, d.Shared} {
		for i := range l {
			if n := int(l[i].Signal()); n >= 1 && n <= numSignals && d.SigMask>>(n-1)&1 == 0 {
				return true
			}
		}
	}
	return false
}

// RestoreRegisters gives a thread of a skeleton what must come last: what the kernel knows about its interrupted
// wait, extended registers, signal mask, the rseq section that was in progress, and the general registers. The stub
// must be gone, all threads of the process stopped, and the memory in place; afterwards the thread only needs to be
// detached.
func RestoreRegisters(ctx context.Context, t *Target, tid int, img *images.Thread) error {
	return t.Tracer.OnThread(ctx, func(ctx context.Context) error { return restoreRegisters(ctx, t, tid, img) })
}

func restoreRegisters(ctx context.Context, t *Target, tid int, img *images.Thread) error {
	e := img.Extra
	if e.GetGoarch() != goarch {
		return fmt.Errorf("thread %d: registers are those of %s, this host is %s", img.TID, e.GetGoarch(), goarch)
	}
	var r arch.Regs
	if err := r.Unmarshal(e.GetRegs()); err != nil {
		return fmt.Errorf("thread %d: regs: %w", img.TID, err)
	}
	setCall(&r, e)
	r, err := restoreRestartBlock(ctx, t, tid, img, r)
	if err != nil {
		return fmt.Errorf("thread %d: interrupted wait: %w", img.TID, err)
	}
	if err := t.Tracer.SetXState(ctx, tid, e.GetXstate()); err != nil {
		return fmt.Errorf("thread %d: extended registers (%d bytes, features 0x%x): %w", img.TID, len(e.GetXstate()), e.GetXfeatures(), err)
	}
	if d := e.GetDispatch(); d != nil {
		sud := ptrace.Dispatch{Mode: d.GetMode(), Selector: d.GetSelector(), Offset: d.GetOffset(), Len: d.GetLen()}
		if err := t.Tracer.SetDispatch(ctx, tid, sud); err != nil {
			return fmt.Errorf("thread %d: syscall user dispatch: %w", img.TID, err)
		}
	}
	if q := img.Core.GetThreadCore().GetRseqEntry(); q.GetRseqCsPointer() != 0 {
		// The kernel compares it with the instruction pointer when the thread next returns to user space, so it may
		// not be there while anything else of ours runs in the thread.
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], q.GetRseqCsPointer())
		if err := t.Memory.Write(ptrace.Addr(q.GetRseqAbiPointer()+rseqCSOffset), b[:]); err != nil {
			return fmt.Errorf("thread %d: rseq section: %w", img.TID, err)
		}
	}
	if err := t.Tracer.SetSigMask(ctx, tid, img.Core.GetThreadCore().GetBlkSigset()); err != nil {
		return fmt.Errorf("thread %d: signal mask: %w", img.TID, err)
	}
	if err := t.Tracer.SetRegs(ctx, tid, r); err != nil {
		return fmt.Errorf("thread %d: registers: %w", img.TID, err)
	}
	return nil
}

func dispatchMessage(c ptrace.Dispatch) *imagespb.SyscallDispatch {
	return &imagespb.SyscallDispatch{Mode: c.Mode, Selector: c.Selector, Offset: c.Offset, Len: c.Len}
}
