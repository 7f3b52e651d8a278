//go:build linux

package task

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// StopTable gathers which processes of a tree a signal has stopped, and whose parents have waited for that. Only a parent
// can be asked, and parents are dumped before their children.
type StopTable struct {
	Held []*engine.Process
	told map[int]bool // by the id that the tree knows
}

// Of waitid(2): what is not in package unix as it is needed here, and where si_pid stands in siginfo_t.
const (
	pPID   = 1
	siPID  = 16
	siSize = 128
)

// dumpStopped records a group stop, and asks a parent whether it has yet to be told of those of its children.
func dumpStopped(d *dumper) error {
	if d.Held != 0 {
		d.thread.Core.Tc.TaskState = proto.Uint32(images.TaskStopped)
		d.thread.Core.Tc.StopSigno = proto.Uint32(uint32(d.Held))
	}
	t := d.Stops
	if t == nil {
		return nil
	}
	if d.Held != 0 {
		d.proc.Extra.StopTold = t.told[d.Proc.VPID]
	}
	for _, c := range t.Held {
		if c.VPPID != d.Proc.VPID {
			continue
		}
		info := d.batch.Buffer(siSize)
		asked := d.batch.Try(unix.SYS_WAITID, pPID, c.VPID, info, unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT, 0)
		d.then(func() error {
			if asked.Err() == nil && binary.LittleEndian.Uint32(info.Bytes()[siPID:]) == 0 {
				if t.told == nil {
					t.told = map[int]bool{}
				}
				t.told[c.VPID] = true
			}
			return nil
		})
	}
	return nil
}

// stopSignal is the signal by which a process is to be stopped.
func stopSignal(img *images.Process) unix.Signal {
	switch s := unix.Signal(img.Leader().GetCore().GetTc().GetStopSigno()); s {
	case unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return s
	}
	return unix.SIGSTOP
}

// RestoreStopped stops a process of a skeleton by a signal, if the image says so, while its actions are the default ones.
// Its threads are then in a group stop, in which they run batches all the same, and into which they go back when they
// are detached. If the parent had waited for the stop, it does so again: parent is nil if it is not of the tree. What its
// parent hears of it goes when it gets its signals.
func RestoreStopped(ctx context.Context, tracer *ptrace.Tracer, p *engine.Process, img *images.Process, parent remote.Caller) error {
	if img.Leader().GetCore().GetTc().GetTaskState() != images.TaskStopped {
		return nil
	}
	tid := p.Threads[0].TID
	mask, err := tracer.GetSigMask(ctx, tid)
	if err != nil {
		return err
	}
	if err := tracer.SetSigMask(ctx, tid, 0); err != nil {
		return err
	}
	if err := stopLeader(ctx, tracer, p.PID, tid, stopSignal(img)); err != nil {
		return fmt.Errorf("pid %d: stopping it again: %w", img.PID, err)
	}
	if err := tracer.SetSigMask(ctx, tid, mask); err != nil {
		return err
	}
	for _, th := range p.Threads[1:] {
		stop, err := tracer.Resume(ctx, th.TID, nil, ptrace.Run, 0)
		for err == nil && stop.Kind == ptrace.EventStop {
			stop, err = tracer.Resume(ctx, th.TID, nil, ptrace.Run, 0)
		}
		if err != nil || stop.Kind != ptrace.GroupStop {
			return fmt.Errorf("pid %d: stopping its thread %d again: %v, %w", img.PID, th.VTID, stop, err)
		}
	}
	if parent == nil || !img.Extra.GetStopTold() {
		return nil
	}
	b := &remote.Batch{}
	b.Try(unix.SYS_WAIT4, img.PID, 0, unix.WUNTRACED|unix.WNOHANG|unix.WALL, 0)
	return parent.Run(ctx, b)
}

// stopLeader sends SIGSTOP and delivers sig in its place. Other than SIGSTOP, that does nothing to an orphaned process
// group (kernel/signal.c, get_signal); the thread then runs into the trap of its stub once more, and SIGSTOP stops it.
func stopLeader(ctx context.Context, tracer *ptrace.Tracer, pid, tid int, sig unix.Signal) error {
	regs, err := tracer.GetRegs(ctx, tid)
	if err != nil {
		return err
	}
	if sig != unix.SIGSTOP {
		again, ok, err := beforeTrap(pid, regs.IP())
		if err != nil {
			return err
		}
		if !ok {
			sig = unix.SIGSTOP
		} else {
			r := regs
			r.SetIP(again)
			if err := tracer.SetRegs(ctx, tid, r); err != nil {
				return err
			}
		}
	}
	if err := unix.Tgkill(pid, tid, unix.SIGSTOP); err != nil {
		return err
	}
	for deliver := unix.Signal(0); ; {
		stop, err := tracer.Resume(ctx, tid, nil, ptrace.Run, deliver)
		deliver = 0
		switch {
		case err != nil:
			return err
		case stop.Kind == ptrace.GroupStop:
			return tracer.SetRegs(ctx, tid, regs)
		case stop.Kind == ptrace.SignalStop && stop.Signal == unix.SIGSTOP:
			deliver = sig
		case stop.Kind == ptrace.SignalStop && stop.Signal == unix.SIGTRAP && sig != unix.SIGSTOP:
			return stopLeader(ctx, tracer, pid, tid, unix.SIGSTOP)
		case stop.Kind == ptrace.SignalStop && stop.Signal != unix.SIGCHLD, stop.Kind == ptrace.Exited:
			return fmt.Errorf("it stopped by %v instead", stop)
		}
	}
}

// beforeTrap returns where a thread that has run into a trap of one byte runs into it again.
func beforeTrap(pid int, ip uint64) (uint64, bool, error) {
	mem, err := ptrace.OpenMemory(pid)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = mem.Close() }() // opened for reading: nothing is lost
	var b [1]byte
	if err := mem.Read(ptrace.Addr(ip-1), b[:]); err != nil {
		return 0, false, err
	}
	return ip - 1, b[0] == 0xcc, nil
}
