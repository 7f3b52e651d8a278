package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

// closeTimeout bounds how long Close waits for a batch that was given up and still runs in the tracee, and for the
// tracee itself.
const closeTimeout = 30 * time.Second

// Close gives the thread back as it was: the server's memory unmapped, its socket closed, its place zero again, the
// signal mask and the registers as Open found them, and an interrupted call in them, which the kernel then treats by its
// own rules. A thread that ran before Open runs again; one that this tracer had stopped is left stopped; one that the
// tracer did not have is detached. The error is ErrLost if the server had left by itself, which is no harm to the
// program. A program that has ended is no error.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := s.settleDebt(ctx)
	if errors.Is(err, ErrLost) || errors.Is(err, ErrGone) {
		err = nil // found out below
	}
	s.closed = true
	s.tending()
	s.mu.Unlock() // keepAlive may be waiting for it
	s.tended.Wait()
	s.mu.Lock()
	back := s.tracer.OnThread(ctx, func(ctx context.Context) error {
		return errors.Join(s.leave(ctx), s.letGo(ctx))
	})
	if errors.Is(back, ErrGone) {
		back = nil
	}
	if err = errors.Join(err, back, s.socket.Close(), s.space.release()); err != nil {
		return fmt.Errorf("giving thread %d back: %w", s.tid, err)
	}
	return nil
}

// leave stops the thread where it waits for a doorbell, sends the one to leave, and gives the thread back.
func (s *Session) leave(ctx context.Context) error {
	if _, err := s.tracer.Stop(ctx, s.tid); err != nil {
		return err
	}
	regs, err := s.tracer.GetRegs(ctx, s.tid)
	if err != nil {
		return err
	}
	if !within(regs.IP(), s.at) {
		return ErrLost
	}
	if err := s.sendLeave(); err != nil {
		return fmt.Errorf("%w (%w)", ErrLost, err)
	}
	return s.giveBack(ctx)
}

// sendLeave asks the server to leave.
func (s *Session) sendLeave() error {
	bell := make([]byte, doorbellSize)
	bell[15] = 0x80 // a negative number of records
	_, err := s.socket.Write(bell)
	return err
}

// giveBack follows the server, which is on its way out, until it has unmapped its memory, and then does the rest in its
// place, so that the kernel sees the interrupted call as if nothing had been in between. Should this process die
// before the registers are set, the server does it, and after that there is nothing left to do.
func (s *Session) giveBack(ctx context.Context) error {
	for s.memory != 0 {
		nr, result, entry, err := s.nextSyscall(ctx)
		if err != nil {
			return err
		}
		if entry || nr != unix.SYS_MUNMAP {
			continue
		}
		if result != 0 {
			return fmt.Errorf("unmapping the stub's memory: %w", unix.Errno(-result))
		}
		break
	}
	if _, err := s.tracer.Settle(ctx, s.tid); err != nil {
		return err
	}
	if err := s.tracer.SetSigMask(ctx, s.tid, s.mask); err != nil {
		return err
	}
	regs := s.regs
	if regs.Restart() == arch.RestartSpurious && !ptrace.HandlerDue(s.tid) {
		regs = regs.Restarted()
	}
	if err := s.tracer.SetRegs(ctx, s.tid, regs); err != nil {
		return err
	}
	return s.verify(ctx, regs)
}

// verify zeroes the server's place and checks what the thread was given.
func (s *Session) verify(ctx context.Context, want arch.Regs) error {
	zero, now := make([]byte, arch.ServerSize()), make([]byte, arch.ServerSize())
	if err := s.space.mem.Write(s.at, zero); err != nil {
		return fmt.Errorf("removing the stub: %w", err)
	}
	if err := s.space.mem.Read(s.at, now); err != nil {
		return err
	}
	regs, err := s.tracer.GetRegs(ctx, s.tid)
	if err != nil {
		return err
	}
	mask, err := s.tracer.GetSigMask(ctx, s.tid)
	if err != nil {
		return err
	}
	if !bytes.Equal(zero, now) || regs != want || mask&^unblockable != s.mask&^unblockable {
		return fmt.Errorf("thread %d was not given back as it was: registers %+v, want %+v; mask %#x, want %#x", s.tid, regs, want, mask, s.mask)
	}
	return nil
}

const unblockable = 1<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1)

// letGo returns a thread to the tracer's care that it had before Open.
func (s *Session) letGo(ctx context.Context) error {
	if _, _, stopped, err := s.tracer.Options(ctx, s.tid); err == nil && stopped {
		if err := s.guards.raise(ctx, s.tracer, s.tid); err != nil && !errors.Is(err, ErrGone) {
			return err
		}
	}
	switch {
	case s.seized:
		return s.tracer.Detach(ctx, s.tid, 0)
	case s.running:
		if _, _, stopped, err := s.tracer.Options(ctx, s.tid); err != nil || !stopped {
			return err
		}
		if s.stop.Kind == ptrace.GroupStop {
			return s.tracer.Listen(ctx, s.tid)
		}
		return s.tracer.Cont(ctx, s.tid, 0)
	}
	return nil
}
