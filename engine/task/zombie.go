//go:build linux

package task

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

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
	if status.CoreDump() {
		return endWithCore(ctx, tracer, caller, status.Signal())
	}
	if err := prepareEnd(ctx, caller, status.Signal(), 0); err != nil {
		return err
	}
	return endBySignal(ctx, tracer, caller, status.Signal())
}

// prepareEnd sets a limit for core files and lets the signal end the process.
func prepareEnd(ctx context.Context, caller remote.Caller, sig unix.Signal, core uint64) error {
	b := &remote.Batch{}
	limit := make([]byte, 16)
	binary.LittleEndian.PutUint64(limit, core)
	binary.LittleEndian.PutUint64(limit[8:], core)
	b.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, b.Bytes(limit), 0)
	action := b.Buffer(32) // SIG_DFL
	b.Try(unix.SYS_RT_SIGACTION, int(sig), action, 0, 8)
	return caller.Run(ctx, b)
}

// endWithCore makes a process end with a core dump, since nothing else sets that flag of its status. The dump, of next to
// nothing, goes into a directory that is removed; so the kernel must be set to dump where a process stands.
func endWithCore(ctx context.Context, tracer *ptrace.Tracer, caller remote.Caller, sig unix.Signal) (err error) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		return err
	}
	if strings.ContainsAny(string(pattern), "|/@") {
		return fmt.Errorf("pid %d: it has ended with a core dump, and this host sends core dumps to %q, so that none can be made again unseen; set kernel.core_pattern to \"core\"",
			caller.PID(), strings.TrimSpace(string(pattern)))
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &own); err != nil {
		return err
	}
	if own.Max == 0 {
		return fmt.Errorf("pid %d: it has ended with a core dump, and the hard limit of this program allows none (ulimit -Hc)", caller.PID())
	}
	dir, err := os.MkdirTemp("", "migrate-core-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/coredump_filter", caller.PID()), []byte("0"), 0); err != nil {
		return err
	}
	if err := enterDir(ctx, caller, dir); err != nil {
		return fmt.Errorf("pid %d: directory %s for a core dump: %w", caller.PID(), dir, err)
	}
	if err := prepareEnd(ctx, caller, sig, own.Max); err != nil {
		return err
	}
	return endBySignal(ctx, tracer, caller, sig)
}

// enterDir makes a directory of this program that of a process, which may have another root and be another user.
func enterDir(ctx context.Context, caller remote.Caller, dir string) (err error) {
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	const fd = 0 // a process that only ends needs no descriptors
	if err := caller.Push(ctx, []remote.PushFile{{File: f, FD: fd}}); err != nil {
		return err
	}
	b := &remote.Batch{}
	b.Call(unix.SYS_FCHDIR, fd)
	return caller.Run(ctx, b)
}

// endBySignal makes a traced thread that is alone in its process end by a signal whose action is the default.
func endBySignal(ctx context.Context, tracer *ptrace.Tracer, caller remote.Caller, sig unix.Signal) error {
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
