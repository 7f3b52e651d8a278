package remote

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

// takeBack brings a thread out of the server of a tracer that died, if it is in one: at once if its socket is closed
// or its other end can be had, else when its lease has passed. The thread is in an EventStop before and after.
func takeBack(ctx context.Context, tracer *ptrace.Tracer, s *space, tid int) error {
	asked := false
	for {
		regs, err := tracer.GetRegs(ctx, tid)
		if err != nil {
			return err
		}
		at, found := inServer(s, regs.IP())
		if !found {
			_, err := tracer.Stop(ctx, tid) // it may be in a system call's stop
			return err
		}
		phase := arch.ServerPhase(uint64(at), regs)
		if phase == arch.PhaseLeft {
			return finishServer(ctx, tracer, s, tid, at, regs)
		}
		if phase == arch.PhaseServing && !asked {
			asked = true
			if err := askToLeave(s, Addr(arch.ServerMemory(regs))); err != nil {
				return err
			}
		}
		nr, _, entry, err := nextSyscall(ctx, tracer, tid)
		if err != nil {
			return fmt.Errorf("waiting for an earlier stub to give the thread back: %w", err)
		}
		if !entry && nr == unix.SYS_MUNMAP && phase == arch.PhaseServing {
			if regs, err = tracer.GetRegs(ctx, tid); err != nil {
				return err
			}
			return finishServer(ctx, tracer, s, tid, at, regs)
		}
	}
}

// askToLeave tells an old server to leave if its tracer died so early that the tracee still holds the other end of the
// socket, whose end it cannot see. With that closed, the server leaves because its tracer died, or will if it does.
func askToLeave(s *space, memory Addr) error {
	pair := make([]byte, 8)
	if err := s.mem.Read(memory, pair); err != nil {
		return fmt.Errorf("the memory of an earlier stub: %w", err)
	}
	other := int32(binary.LittleEndian.Uint32(pair[4:]))
	if other <= 0 {
		return nil
	}
	f, err := s.pull(int(other))
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
func finishServer(ctx context.Context, tracer *ptrace.Tracer, s *space, tid int, at Addr, regs arch.Regs) error {
	b := make([]byte, arch.ServerSize())
	if err := s.mem.Read(at, b); err != nil {
		return err
	}
	if _, err := tracer.Settle(ctx, tid); err != nil {
		return err
	}
	regs, mask := arch.ServerProgram(b, uint64(at), regs)
	if err := tracer.SetSigMask(ctx, tid, mask); err != nil {
		return err
	}
	if err := tracer.SetRegs(ctx, tid, regs); err != nil {
		return err
	}
	return s.mem.Write(at, make([]byte, len(b)))
}

// inServer returns the place of the server that ip is in, if any. One never reaches over the end of a page.
func inServer(s *space, ip uint64) (Addr, bool) {
	page := make([]byte, arch.PageSize)
	start := Addr(ip &^ (arch.PageSize - 1))
	if err := s.mem.Read(start, page); err != nil {
		return 0, false // what it executes cannot be read, so it is none of ours
	}
	for _, f := range arch.FindServers(page) {
		if at := start.Add(uint64(f.Offset)); within(ip, at) {
			return at, true
		}
	}
	return 0, false
}
