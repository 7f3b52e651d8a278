package ptrace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/arch"
)

const (
	ntPrstatus = 1
	// maxXState bounds the xsave area: AVX-512 with AMX tiles takes some 11 KiB, SVE at its longest 8.5 KiB.
	maxXState = 64 << 10
)

// GetRegs returns the general registers of a stopped thread.
func (t *Tracer) GetRegs(ctx context.Context, tid int) (arch.Regs, error) {
	var r arch.Regs
	err := t.stoppedCall(ctx, "reading registers", tid, func() (err error) { r, err = getRegs(tid); return err })
	return r, err
}

// SetRegs sets the general registers of a stopped thread. With a system call in progress in them, the kernel applies
// its rules for interrupted calls when the thread goes on (see arch.Restart).
func (t *Tracer) SetRegs(ctx context.Context, tid int, r arch.Regs) error {
	return t.stoppedCall(ctx, "setting registers", tid, func() error { return t.setRegs(tid, &r) })
}

// setRegs sets the registers of a stopped thread, on the tracer's thread.
func (t *Tracer) setRegs(tid int, r *arch.Regs) error {
	err := setRegs(tid, r)
	if err == nil {
		t.tracees[tid].rewound = false
	}
	return err
}

// GetXState returns all registers that GetRegs does not: on amd64 the xsave area in its standard form.
func (t *Tracer) GetXState(ctx context.Context, tid int) ([]byte, error) {
	b := make([]byte, maxXState)
	err := t.stoppedCall(ctx, "reading the extended registers", tid, func() error {
		n, err := ptraceRegset(unix.PTRACE_GETREGSET, tid, arch.XStateRegset, b)
		b = b[:n:n]
		return err
	})
	return b, err
}

// SetXState sets what GetXState returned. EINVAL or EFAULT: it comes from a processor with other features.
func (t *Tracer) SetXState(ctx context.Context, tid int, b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("setting the extended registers of thread %d: none given", tid)
	}
	return t.stoppedCall(ctx, "setting the extended registers", tid, func() error {
		_, err := ptraceRegset(unix.PTRACE_SETREGSET, tid, arch.XStateRegset, b)
		return err
	})
}

// GetSigMask returns the blocked signals of a stopped thread, bit n-1 for signal n. Inside sigsuspend(2) and its like
// it is the mask that the thread will have after the call.
func (t *Tracer) GetSigMask(ctx context.Context, tid int) (uint64, error) {
	b := make([]byte, 8)
	err := t.stoppedCall(ctx, "PTRACE_GETSIGMASK", tid, func() error {
		_, err := ptraceBuffer(unix.PTRACE_GETSIGMASK, tid, 8, b)
		return err
	})
	return binary.LittleEndian.Uint64(b), err
}

// SetSigMask sets the blocked signals of a stopped thread. SIGKILL and SIGSTOP cannot be blocked and are left out.
func (t *Tracer) SetSigMask(ctx context.Context, tid int, mask uint64) error {
	b := binary.LittleEndian.AppendUint64(nil, mask)
	return t.stoppedCall(ctx, "PTRACE_SETSIGMASK", tid, func() error {
		_, err := ptraceBuffer(unix.PTRACE_SETSIGMASK, tid, 8, b)
		return err
	})
}

// SigInfo is a siginfo_t as the kernel lays it out (include/uapi/asm-generic/siginfo.h).
type SigInfo [128]byte

// Signal returns si_signo.
func (s *SigInfo) Signal() unix.Signal { return unix.Signal(binary.LittleEndian.Uint32(s[0:])) }

// Code returns si_code: negative for a signal that user space queued.
func (s *SigInfo) Code() int32 { return int32(binary.LittleEndian.Uint32(s[8:])) }

// PeekSigInfo returns the pending signals of a stopped thread, oldest first: its own, or those of its process.
func (t *Tracer) PeekSigInfo(ctx context.Context, tid int, shared bool) ([]SigInfo, error) {
	var out []SigInfo
	err := t.stoppedCall(ctx, "PTRACE_PEEKSIGINFO", tid, func() error {
		const chunk = 64
		b := make([]byte, chunk*len(SigInfo{}))
		for {
			args := peekArgs{off: uint64(len(out)), nr: chunk}
			if shared {
				args.flags = unix.PTRACE_PEEKSIGINFO_SHARED
			}
			n, err := ptracePeekSigInfo(tid, &args, b)
			if err != nil {
				return err
			}
			for i := range n {
				out = append(out, SigInfo(b[i*len(SigInfo{}):]))
			}
			// Fewer than asked for need not be the last: the kernel also breaks off when this thread has a signal pending, such as
			// the runtime's own (ptrace_peek_siginfo in kernel/ptrace.c).
			if n == 0 {
				return nil
			}
		}
	})
	return out, err
}

// GetSigInfo returns the signal of a SignalStop. EINVAL: the thread is in another kind of stop.
func (t *Tracer) GetSigInfo(ctx context.Context, tid int) (SigInfo, error) {
	var s SigInfo
	err := t.stoppedCall(ctx, "PTRACE_GETSIGINFO", tid, func() error {
		_, err := ptraceBuffer(unix.PTRACE_GETSIGINFO, tid, 0, s[:])
		return err
	})
	return s, err
}

// EventMsg returns the number that belongs to a TaskStop: of clone and fork the new thread's id, as this process
// sees it; of exit the status; of exec the former thread id.
func (t *Tracer) EventMsg(ctx context.Context, tid int) (uint64, error) {
	var msg uint64
	err := t.stoppedCall(ctx, "PTRACE_GETEVENTMSG", tid, func() (err error) { msg, err = eventMsg(tid); return err })
	return msg, err
}

func eventMsg(tid int) (uint64, error) {
	b := make([]byte, 8)
	_, err := ptraceBuffer(unix.PTRACE_GETEVENTMSG, tid, 0, b)
	return binary.LittleEndian.Uint64(b), err
}

// Rseq is a thread's registration for restartable sequences (struct ptrace_rseq_configuration). Addr is 0 without one.
type Rseq struct {
	Addr      Addr
	Size      uint32
	Signature uint32
	Flags     uint32
}

// GetRseq returns the rseq registration of a stopped thread; Linux 5.13.
func (t *Tracer) GetRseq(ctx context.Context, tid int) (Rseq, error) {
	b := make([]byte, 24)
	err := t.stoppedCall(ctx, "PTRACE_GET_RSEQ_CONFIGURATION", tid, func() error {
		_, err := ptraceBuffer(unix.PTRACE_GET_RSEQ_CONFIGURATION, tid, uintptr(len(b)), b)
		return unsupported(err, "5.13")
	})
	le := binary.LittleEndian
	return Rseq{Addr: Addr(le.Uint64(b)), Size: le.Uint32(b[8:]), Signature: le.Uint32(b[12:]), Flags: le.Uint32(b[16:])}, err
}

// Dispatch is a thread's syscall user dispatch (struct ptrace_sud_config): with Mode 1, system calls from outside
// [Offset, Offset+Len) raise SIGSYS while the byte at Selector says so.
type Dispatch struct{ Mode, Selector, Offset, Len uint64 }

// GetDispatch returns the syscall user dispatch of a stopped thread; Linux 6.4.
func (t *Tracer) GetDispatch(ctx context.Context, tid int) (Dispatch, error) {
	b := make([]byte, 32)
	err := t.stoppedCall(ctx, "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", tid, func() error {
		_, err := ptraceBuffer(unix.PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, uintptr(len(b)), b)
		return unsupported(err, "6.4")
	})
	le := binary.LittleEndian
	return Dispatch{Mode: le.Uint64(b), Selector: le.Uint64(b[8:]), Offset: le.Uint64(b[16:]), Len: le.Uint64(b[24:])}, err
}

// SetDispatch sets what GetDispatch returned.
func (t *Tracer) SetDispatch(ctx context.Context, tid int, d Dispatch) error {
	var b []byte
	for _, v := range []uint64{d.Mode, d.Selector, d.Offset, d.Len} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return t.stoppedCall(ctx, "PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG", tid, func() error {
		_, err := ptraceBuffer(unix.PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, uintptr(len(b)), b)
		return unsupported(err, "6.4")
	})
}

// unsupported names the kernel that a ptrace request needs: an older one answers EIO to a request that it does not know.
func unsupported(err error, since string) error {
	if errors.Is(err, unix.EIO) {
		return fmt.Errorf("%w (needs Linux %s): %w", arch.ErrUnsupported, since, err)
	}
	return err
}
