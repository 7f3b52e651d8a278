package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

// ErrNoRoom means that a process has no place for a server: neither behind its vDSO nor behind the code of a file.
var ErrNoRoom = errors.New("no room for the stub")

// tailGap is left untouched between the last byte of what a page holds and a server, in case that the former ends
// with zeros which mean something.
const tailGap = 64

// placing lets one server at a time look for its place: a place is free until it is written.
var placing sync.Mutex

// placeServer writes a server behind the vDSO or, if that has no room, behind the code of a mapped file, both of which
// end somewhere in a page whose rest is zero. build returns the server's bytes for the address that was found.
func placeServer(s *space, maps []mapping, build func(at Addr) ([]byte, error)) (Addr, error) {
	placing.Lock()
	defer placing.Unlock()
	size := uint64(arch.ServerSize())
	for _, m := range candidates(maps) {
		at, ok, err := zeroTail(s, m, size)
		if err != nil {
			return 0, err
		}
		if !ok {
			continue
		}
		b, err := build(at)
		if err != nil {
			return 0, err
		}
		return at, s.mem.Write(at, b)
	}
	return 0, fmt.Errorf("process %d: %w: its vDSO and its executable file mappings end with fewer than %d zero bytes",
		s.pid, ErrNoRoom, size+tailGap)
}

// candidates returns the mappings that may have room at their end: the vDSO, then private executable file mappings.
func candidates(maps []mapping) []mapping {
	var out []mapping
	if v, ok := vdso(maps); ok {
		out = append(out, v)
	}
	for _, m := range maps {
		if m.inode != 0 && strings.HasPrefix(m.perms, "r-xp") {
			out = append(out, m)
		}
	}
	return out
}

// zeroTail looks for size zero bytes at the end of a mapping's last page.
func zeroTail(s *space, m mapping, size uint64) (Addr, bool, error) {
	page := make([]byte, arch.PageSize)
	if err := s.mem.Read(m.end-arch.PageSize, page); errors.Is(err, ErrGone) {
		return 0, false, err
	} else if err != nil {
		return 0, false, nil // such as a mapping beyond the end of its file
	}
	used := uint64(len(bytes.TrimRight(page, "\x00")))
	at := (uint64(arch.PageSize) - size) &^ 15
	if used+tailGap > at {
		return 0, false, nil
	}
	return (m.end - arch.PageSize).Add(at), true, nil
}

// reclaim removes servers that dead tracers left in the process of a stopped thread. The one of a thread that still
// runs in it, or will return into it from a signal handler, stays.
func reclaim(ctx context.Context, tracer *ptrace.Tracer, s *space, maps []mapping, tid int, regs arch.Regs) error {
	for _, m := range candidates(maps) {
		page := make([]byte, arch.PageSize)
		start := m.end - arch.PageSize
		if err := s.mem.Read(start, page); err != nil {
			continue // zeroTail reports what matters
		}
		for _, f := range arch.FindServers(page) {
			at := start.Add(uint64(f.Offset))
			idle, err := f.TID == tid && !returnsInto(s, maps, regs, at), error(nil)
			if f.TID != tid {
				idle, err = serverIdle(ctx, tracer, s, maps, f.TID, at)
			}
			if err != nil {
				return err
			}
			if idle {
				if err := s.mem.Write(at, make([]byte, arch.ServerSize())); err != nil {
					return fmt.Errorf("removing an old stub: %w", err)
				}
			}
		}
	}
	return nil
}

// serverIdle reports whether the thread that a server was made for has left it. A thread that is not traced is stopped
// for a moment to find out, and taken out of its server: its tracer must have died.
func serverIdle(ctx context.Context, tracer *ptrace.Tracer, s *space, maps []mapping, tid int, at Addr) (bool, error) {
	if owner, err := processOf(tid); err != nil || owner != s.pid && !sameMemory(owner, s.pid) {
		return true, nil // the thread ended
	}
	_, traced, stopped, err := tracer.Options(ctx, tid)
	switch {
	case err != nil:
		return false, err
	case traced && !stopped:
		return false, nil // it has a session now
	case !traced:
		if err := tracer.Seize(ctx, tid, 0); errors.Is(err, ErrGone) {
			return true, nil
		} else if err != nil {
			return false, nil // somebody else's; let it be
		}
		if _, err := tracer.Stop(ctx, tid); err != nil {
			return errors.Is(err, ErrGone), nil
		}
	}
	if err := takeBack(ctx, tracer, s, tid); err != nil {
		return false, err
	}
	regs, err := tracer.GetRegs(ctx, tid)
	idle := err == nil && !returnsInto(s, maps, regs, at)
	if !traced {
		err = errors.Join(err, tracer.Detach(ctx, tid, 0))
	}
	return idle, err
}

// sameMemory reports whether two processes share their memory (kcmp(2), KCMP_VM).
func sameMemory(a, b int) bool {
	const kcmpVM = 1
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && r == 0
}

func within(ip uint64, at Addr) bool {
	return ip >= uint64(at) && ip < uint64(at)+uint64(arch.ServerSize())
}

// returnsInto reports whether the thread's stack, above its stack pointer, holds an address inside the server: a signal
// handler that was called as the server gave the mask back will return there.
func returnsInto(s *space, maps []mapping, regs arch.Regs, at Addr) bool {
	const most = 1 << 20
	sp := Addr(regs.SP() &^ 7)
	for _, m := range maps {
		if sp < m.start || sp >= m.end {
			continue
		}
		stack := make([]byte, min(uint64(m.end-sp), most))
		if err := s.mem.Read(sp, stack); err != nil {
			return true
		}
		for ; len(stack) >= 8; stack = stack[8:] {
			if within(littleEndian(stack), at) {
				return true
			}
		}
		return false
	}
	return true
}

// restartable returns the address at which a thread goes on that was stopped inside a restartable sequence: its abort
// handler, as the kernel would have it (kernel/rseq.c, rseq_ip_fixup). The kernel itself no longer sees that the
// thread was there once its registers are changed.
func restartable(ctx context.Context, tracer *ptrace.Tracer, s *space, tid int, ip uint64) (uint64, error) {
	r, err := tracer.GetRseq(ctx, tid)
	if errors.Is(err, arch.ErrUnsupported) || err == nil && r.Addr == 0 {
		return ip, nil
	} else if err != nil {
		return ip, err
	}
	word := make([]byte, 8)
	if err := s.mem.Read(r.Addr.Add(8), word); err != nil { // struct rseq: cpu_id_start, cpu_id, rseq_cs
		return ip, fmt.Errorf("rseq area of thread %d: %w", tid, err)
	}
	cs := Addr(littleEndian(word))
	if cs == 0 {
		return ip, nil
	}
	d := make([]byte, 32) // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip
	if err := s.mem.Read(cs, d); err != nil {
		return ip, fmt.Errorf("rseq_cs of thread %d: %w", tid, err)
	}
	if start, length := littleEndian(d[8:]), littleEndian(d[16:]); ip-start < length {
		return littleEndian(d[24:]), nil
	}
	return ip, nil
}

// lendable says why a thread cannot be borrowed, if it cannot.
func lendable(regs arch.Regs) error {
	if arch.ServerSize() == 0 {
		return arch.ErrUnsupported
	}
	if !regs.Is64Bit() {
		return fmt.Errorf("%w: it runs 32-bit code", arch.ErrUnsupported)
	}
	return nil
}

// guards is what stands between a thread and its system calls, taken out of the way while it is borrowed. If the tracer
// dies meanwhile, the kernel puts seccomp back at once, so that a strict filter may kill the thread for the calls by
// which the server leaves; and the dispatch of system calls stays off.
type guards struct {
	seccomp  bool
	dispatch ptrace.Dispatch
}

// lowerGuards takes a stopped thread's guards away.
func lowerGuards(ctx context.Context, tracer *ptrace.Tracer, tid int) (g guards, err error) {
	mode, err := statusField(tid, "Seccomp")
	if err != nil {
		return g, err
	}
	options, _, _, err := tracer.Options(ctx, tid)
	if err != nil {
		return g, err
	}
	if mode != 0 && options&unix.PTRACE_O_SUSPEND_SECCOMP == 0 {
		if err := tracer.SuspendSeccomp(ctx, tid, true); err != nil {
			return g, fmt.Errorf("%w (it cannot be suspended: %w)", ErrSeccomp, err)
		}
		g.seccomp = true
	}
	d, err := tracer.GetDispatch(ctx, tid)
	if errors.Is(err, arch.ErrUnsupported) {
		return g, nil // before Linux 6.4 it cannot be asked for; before 5.11 there is none
	}
	if err == nil && d.Mode != 0 {
		if err = tracer.SetDispatch(ctx, tid, ptrace.Dispatch{}); err == nil {
			g.dispatch = d
		}
	}
	return g, err
}

// raise puts a stopped thread's guards back.
func (g guards) raise(ctx context.Context, tracer *ptrace.Tracer, tid int) error {
	var errs []error
	if g.dispatch.Mode != 0 {
		errs = append(errs, tracer.SetDispatch(ctx, tid, g.dispatch))
	}
	if g.seccomp {
		errs = append(errs, tracer.SuspendSeccomp(ctx, tid, false))
	}
	return errors.Join(errs...)
}
