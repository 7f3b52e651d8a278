package remote

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/arch"
)

// takeBack brings a thread out of the server of a tracer that died, if it is in one: at once if its socket is closed
// or its other end can be had, else when its lease has passed. The thread is in an EventStop before and after.
func (s *Session) takeBack(ctx context.Context) error {
	asked := false
	for {
		regs, err := s.tracer.GetRegs(ctx, s.tid)
		if err != nil {
			return err
		}
		at, found := s.inServer(regs.IP())
		if !found {
			_, err := s.tracer.Stop(ctx, s.tid) // it may be in a system call's stop
			return err
		}
		phase := arch.ServerPhase(uint64(at), regs)
		if phase == arch.PhaseLeft {
			return s.finishServer(ctx, at, regs)
		}
		if phase == arch.PhaseServing && !asked {
			asked = true
			if err := s.askToLeave(Addr(arch.ServerMemory(regs))); err != nil {
				return err
			}
		}
		nr, _, entry, err := s.nextSyscall(ctx)
		if err != nil {
			return fmt.Errorf("waiting for an earlier stub to give the thread back: %w", err)
		}
		if !entry && nr == unix.SYS_MUNMAP && phase == arch.PhaseServing {
			if regs, err = s.tracer.GetRegs(ctx, s.tid); err != nil {
				return err
			}
			return s.finishServer(ctx, at, regs)
		}
	}
}

// askToLeave tells an old server to leave if its tracer died so early that the tracee still holds the other end of the
// socket, whose end it cannot see. With that closed, the server leaves because its tracer died, or will if it does.
func (s *Session) askToLeave(memory Addr) error {
	pair := make([]byte, 8)
	if err := s.space.mem.Read(memory, pair); err != nil {
		return fmt.Errorf("the memory of an earlier stub: %w", err)
	}
	other := int32(binary.LittleEndian.Uint32(pair[4:]))
	if other <= 0 {
		return nil
	}
	f, err := s.space.pull(int(other))
	if err != nil {
		return nil // the lease ends it
	}
	defer f.Close()
	bell := make([]byte, doorbellSize)
	bell[15] = 0x80
	_, err = f.Write(bell)
	return err
}

// finishServer does what is left to a server that has unmapped its memory.
func (s *Session) finishServer(ctx context.Context, at Addr, regs arch.Regs) error {
	b := make([]byte, arch.ServerSize())
	if err := s.space.mem.Read(at, b); err != nil {
		return err
	}
	if _, err := s.tracer.Settle(ctx, s.tid); err != nil {
		return err
	}
	regs, mask := arch.ServerProgram(b, uint64(at), regs)
	if err := s.tracer.SetSigMask(ctx, s.tid, mask); err != nil {
		return err
	}
	if err := s.tracer.SetRegs(ctx, s.tid, regs); err != nil {
		return err
	}
	return s.space.mem.Write(at, make([]byte, len(b)))
}

// inServer returns the place of the server that ip is in, if any. One never reaches over the end of a page.
func (s *Session) inServer(ip uint64) (Addr, bool) {
	page := make([]byte, arch.PageSize)
	start := Addr(ip &^ (arch.PageSize - 1))
	if err := s.space.mem.Read(start, page); err != nil {
		return 0, false // what it executes cannot be read, so it is none of ours
	}
	for _, f := range arch.FindServers(page) {
		if at := start.Add(uint64(f.Offset)); within(ip, at) {
			return at, true
		}
	}
	return 0, false
}
