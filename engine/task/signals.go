//go:build linux

package task

import (
	"encoding/binary"
	"slices"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

const (
	numSignals = 64
	sigsetSize = 8
	// sigactionSize is that of the kernel's struct sigaction: handler, flags, restorer, mask, a word each
	// (include/linux/signal_types.h, on processors with SA_RESTORER).
	sigactionSize = 32
)

// changeable reports whether a signal's action can be set. CRIU leaves the others out of its list.
func changeable(sig int) bool { return sig != int(unix.SIGKILL) && sig != int(unix.SIGSTOP) }

func dumpSigactions(d *dumper) error {
	var bufs []*remote.Data
	for sig := 1; sig <= numSignals; sig++ {
		if changeable(sig) {
			buf := d.batch.Buffer(sigactionSize)
			d.batch.Call(unix.SYS_RT_SIGACTION, sig, 0, buf, sigsetSize)
			bufs = append(bufs, buf)
		}
	}
	d.then(func() error {
		for _, buf := range bufs {
			w := buf.Bytes()
			le := binary.LittleEndian
			d.thread.Core.Tc.Sigactions = append(d.thread.Core.Tc.Sigactions, &criu_sa.SaEntry{
				Sigaction: proto.Uint64(le.Uint64(w)), Flags: proto.Uint64(le.Uint64(w[8:])),
				Restorer: proto.Uint64(le.Uint64(w[16:])), Mask: proto.Uint64(le.Uint64(w[24:])),
			})
		}
		return nil
	})
	return nil
}

// restoreSigactions sets all actions, also the default ones: a skeleton may have inherited ignored signals. That of
// SIGTRAP, by which the stub ends a batch, is left at its default unless the image has another.
func restoreSigactions(r *restorer) error {
	actions := r.thread.Core.GetTc().GetSigactions()
	// Children that have ended since the skeleton was built have announced themselves, which the image's own queue tells
	// of already. To ignore a signal empties its queue.
	ignore := make([]byte, sigactionSize)
	binary.LittleEndian.PutUint64(ignore, 1)
	r.batch.Call(unix.SYS_RT_SIGACTION, int(unix.SIGCHLD), r.batch.Bytes(ignore), 0, sigsetSize)
	sig := 0
	for _, a := range actions {
		for sig++; !changeable(sig); sig++ {
		}
		if sig == int(unix.SIGTRAP) && a.GetSigaction() == 0 {
			continue
		}
		var w [sigactionSize]byte
		for i, v := range []uint64{a.GetSigaction(), a.GetFlags(), a.GetRestorer(), a.GetMask()} {
			binary.LittleEndian.PutUint64(w[8*i:], v)
		}
		r.require(r.batch.Try(unix.SYS_RT_SIGACTION, sig, r.batch.Bytes(w[:]), 0, sigsetSize), "action of signal %d", sig)
	}
	return nil
}

// Flags of an alternate stack (include/uapi/linux/signal.h).
const (
	ssDisable    = 2
	ssAutoDisarm = 1 << 31
)

func dumpSigstack(d *dumper) error {
	set := func(sp, size uint64, flags uint32) {
		// SS_ONSTACK tells where the stack pointer was and is no state of its own.
		flags &= ssDisable | ssAutoDisarm
		if size == 0 {
			flags |= ssDisable
		}
		d.thread.Core.ThreadCore.Sas = &criu_core.ThreadSasEntry{SsSp: proto.Uint64(sp), SsSize: proto.Uint64(size), SsFlags: proto.Uint32(flags)}
	}
	if k := d.kernel; k != nil {
		set(k.StackAddr, k.StackSize, k.StackFlags)
		return nil
	}
	buf := d.batch.Buffer(24)
	d.batch.Call(unix.SYS_SIGALTSTACK, 0, buf)
	d.then(func() error {
		b := buf.Bytes()
		set(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint32(b[8:]))
		return nil
	})
	return nil
}

func restoreSigstack(r *restorer) error {
	s := r.core().GetSas()
	if s == nil {
		return nil
	}
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], s.GetSsSp())
	binary.LittleEndian.PutUint32(b[8:], s.GetSsFlags())
	binary.LittleEndian.PutUint64(b[16:], s.GetSsSize())
	r.require(r.batch.Try(unix.SYS_SIGALTSTACK, r.batch.Bytes(b[:]), 0), "alternate stack of %d bytes at 0x%x", s.GetSsSize(), s.GetSsSp())
	return nil
}

func dumpPending(d *dumper) error {
	queue := func(l []ptrace.SigInfo) *siginfo.SignalQueueEntry {
		q := &siginfo.SignalQueueEntry{}
		for i := range l {
			q.Signals = append(q.Signals, &siginfo.SiginfoEntry{Siginfo: l[i][:]})
		}
		return q
	}
	d.thread.Core.ThreadCore.SignalsP = queue(d.Pending)
	if d.leader {
		d.thread.Core.Tc.SignalsS = queue(d.Shared)
	}
	return nil
}

// restorePending queues the signals from inside, since only a process itself may send any si_code
// (kernel/signal.c, do_rt_sigqueueinfo). All are blocked while the skeleton is built, so they stay pending.
func restorePending(r *restorer) error {
	private := r.core().GetSignalsP().GetSignals()
	var shared []*siginfo.SiginfoEntry
	if r.leader {
		shared = r.thread.Core.GetTc().GetSignalsS().GetSignals()
	}
	if len(private)+len(shared) == 0 {
		return nil
	}
	if slices.ContainsFunc(slices.Concat(private, shared), func(s *siginfo.SiginfoEntry) bool {
		return binary.LittleEndian.Uint32(s.GetSiginfo()) == uint32(unix.SIGTRAP)
	}) {
		// The stub ends its batches by SIGTRAP, which is not blocked for that. This is the thread's last batch, and it is
		// run step by step; so nothing needs it any more.
		if err := r.blockTrap(); err != nil {
			return err
		}
	}
	tgid, tid := r.batch.Call(unix.SYS_GETPID), r.batch.Call(unix.SYS_GETTID)
	for _, s := range private {
		info := s.GetSiginfo()
		sig := binary.LittleEndian.Uint32(info)
		r.require(r.batch.Try(unix.SYS_RT_TGSIGQUEUEINFO, tgid, tid, sig, r.batch.Bytes(info)), "pending signal %d of the thread", sig)
	}
	for _, s := range shared {
		info := s.GetSiginfo()
		sig := binary.LittleEndian.Uint32(info)
		r.require(r.batch.Try(unix.SYS_RT_SIGQUEUEINFO, tgid, sig, r.batch.Bytes(info)), "pending signal %d of the process", sig)
	}
	return nil
}

// blockTrap blocks SIGTRAP, too, in all threads of the process: they get their own masks with their registers.
func (r *restorer) blockTrap() error {
	if err := r.flush(); err != nil {
		return err
	}
	for _, th := range r.Proc.Threads {
		if th.TID != r.tid() && !r.leader {
			continue // it may have batches to run yet
		}
		if err := r.Tracer.SetSigMask(r.ctx, th.TID, ^uint64(0)); err != nil {
			return err
		}
	}
	return nil
}

func dumpDispatch(d *dumper) error {
	if d.Dispatch.Mode != 0 {
		d.thread.Extra.Dispatch = dispatchMessage(d.Dispatch)
	}
	return nil
}
