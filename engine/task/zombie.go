//go:build linux

package task

import (
	"context"
	"errors"
	"fmt"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// ended reports whether a process is a zombie or gone.
func ended(pid int) bool {
	s, err := procfs.Host.Stat(pid)
	return err != nil || s.State == 'Z' || s.State == 'X'
}

func checkZombie(c *checker) error {
	if c.zombie && unix.WaitStatus(c.stat.ExitCode).CoreDump() {
		c.refuse("the process", "it has ended with a core dump and waits for its parent to ask; that cannot be made again without dumping core", "let its parent wait for it")
	}
	return nil
}

// IsZombie reports whether the process has ended and waits for its parent.
func IsZombie(fs procfs.FS, pid int) (bool, error) {
	s, err := fs.Stat(pid)
	if err != nil {
		return false, err
	}
	return s.State == 'Z', nil
}

// DumpZombie records a process that has ended and waits for its parent.
func DumpZombie(fs procfs.FS, p *engine.Process) (*images.Process, error) {
	s, err := fs.Stat(p.PID)
	if err != nil {
		return nil, err
	}
	if s.State != 'Z' {
		return nil, fmt.Errorf("pid %d: is no zombie", p.PID)
	}
	return &images.Process{PID: uint32(p.VPID), Threads: []*images.Thread{{
		TID: uint32(p.VPID),
		Core: &criu_core.CoreEntry{
			Mtype: machine().Enum(),
			Tc: &criu_core.TaskCoreEntry{
				TaskState: proto.Uint32(images.TaskDead), ExitCode: proto.Uint32(uint32(s.ExitCode)),
				Personality: proto.Uint32(0), Flags: proto.Uint32(0), BlkSigset: proto.Uint64(0), Comm: proto.String(s.Comm),
			},
		},
	}}}, nil
}

// RestoreZombie makes a process of a skeleton end as the image says. Its sessions and groups must be set. When it
// returns the process is a zombie of its parent, or reaped if the parent ignores SIGCHLD.
func RestoreZombie(ctx context.Context, tracer *ptrace.Tracer, caller remote.Caller, img *images.Process) error {
	tc := img.Leader().GetCore().GetTc()
	status := unix.WaitStatus(tc.GetExitCode())
	b := &remote.Batch{}
	b.Try(unix.SYS_PRCTL, unix.PR_SET_NAME, b.String(tc.GetComm()), 0, 0, 0)
	if status.Exited() {
		b.Call(unix.SYS_EXIT_GROUP, status.ExitStatus())
		if err := caller.Run(ctx, b); err != nil && !errors.Is(err, remote.ErrGone) {
			return fmt.Errorf("pid %d: ending as a zombie: %w", img.PID, err)
		}
		return nil
	}
	if err := caller.Run(ctx, b); err != nil {
		return fmt.Errorf("pid %d: name of a zombie: %w", img.PID, err)
	}
	return endBySignal(ctx, tracer, caller, status.Signal())
}

// endBySignal makes a traced thread that is alone in its process end by a signal, with no core dump.
func endBySignal(ctx context.Context, tracer *ptrace.Tracer, caller remote.Caller, sig unix.Signal) error {
	b := &remote.Batch{}
	b.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, b.Buffer(16), 0)
	action := b.Buffer(32) // SIG_DFL
	b.Try(unix.SYS_RT_SIGACTION, int(sig), action, 0, 8)
	if err := caller.Run(ctx, b); err != nil {
		return err
	}
	tid := caller.TID()
	if err := unix.Tgkill(caller.PID(), tid, sig); err != nil {
		return err
	}
	if sig != unix.SIGKILL {
		if err := tracer.SetSigMask(ctx, tid, 0); err != nil {
			return err
		}
	}
	// The signal stops the thread once more, on its way to be delivered.
	for {
		stop, err := tracer.Resume(ctx, tid, nil, ptrace.Run, sig)
		if errors.Is(err, ptrace.ErrGone) || err == nil && stop.Kind == ptrace.Exited {
			return nil
		}
		if err != nil {
			return err
		}
		if stop.Kind == ptrace.SignalStop && stop.Signal != sig {
			return fmt.Errorf("pid %d: ending by signal %v: stopped by %v instead", caller.PID(), sig, stop.Signal)
		}
	}
}
