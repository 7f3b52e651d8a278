//go:build linux

// Package ns makes and describes what surrounds a process tree: namespaces with a pid 1 of their own, and the
// cgroup that holds a tree frozen. It takes no locks. What it makes is named by the caller and is removed by the
// caller; a function that fails removes what it had made.
package ns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/thread"
)

// Offsets are those of a time namespace: what is added to the host's clocks to give the tree's (time_namespaces(7)).
type Offsets struct{ Monotonic, Boottime time.Duration }

// Clocks reads CLOCK_MONOTONIC and CLOCK_BOOTTIME of the calling process's time namespace.
func Clocks() (monotonic, boottime time.Duration, err error) {
	var m, b unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &m); err != nil {
		return 0, 0, fmt.Errorf("clock_gettime: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &b); err != nil {
		return 0, 0, fmt.Errorf("clock_gettime: %w", err)
	}
	return time.Duration(m.Nano()), time.Duration(b.Nano()), nil
}

// Spec says which namespaces a workload gets. A pid and a time namespace it always gets.
type Spec struct {
	Net, Mount, UTS, IPC bool
	Offsets              Offsets
	// ExitLog, if not nil, receives {pid, status} as two 32-bit integers for each process that the pid 1 reaps.
	ExitLog *os.File
}

// Init is the pid 1 of a workload's namespaces. It is a program of a few instructions, has no threads, takes no
// ids from the workload, and outlives the agent that started it.
type Init struct {
	PID   int // in the pid namespace of this process
	pidfd int
}

// StartInit starts the pid 1 of a new set of namespaces. The new process is a child of this one, but does not end
// with it.
func StartInit(ctx context.Context, spec Spec) (*Init, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return start(ctx, "migrate-init", arch.InitELF(), func(image *os.File) (*Init, error) { return startIn(image, spec) })
}

// SeedBase is where the one page of a seed is loaded: as low as a kernel with default settings lets a program map.
const SeedBase = 0x10000

// StartSeed starts a process that does nothing and has next to nothing in its address space, in the namespaces of this
// process, except that with offsets it is in a new time namespace. Processes of a tree can be born beside it. It is a
// child of this process.
func StartSeed(ctx context.Context, offsets *Offsets) (*Init, error) {
	return start(ctx, "migrate-seed", arch.SeedELF(SeedBase), func(image *os.File) (*Init, error) {
		if offsets != nil {
			if err := newTimeNamespace(*offsets); err != nil {
				return nil, err
			}
		}
		return startProcess(image, 0, nil)
	})
}

// start runs fn with an executable file on a thread that ends with it: the time namespace for its children may have been
// changed for good.
func start(ctx context.Context, name string, elf []byte, fn func(image *os.File) (*Init, error)) (*Init, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	image, err := memoryFile(name, elf)
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }() // the new process has it mapped
	var init *Init
	err = thread.ThrowAway(func() (err error) {
		init, err = fn(image)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return init, nil
}

// memoryFile returns a file in memory that can be executed.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(fmt.Errorf("writing %s: %w", name, err), f.Close())
	}
	return f, nil
}

// newTimeNamespace makes the children of this thread live in a new time namespace.
func newTimeNamespace(o Offsets) error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("unshare of the time namespace: %w", err)
	}
	return writeOffsets(unix.Gettid(), o)
}

// startIn runs on a thread that is thrown away afterwards.
func startIn(image *os.File, spec Spec) (*Init, error) {
	if err := newTimeNamespace(spec.Offsets); err != nil {
		return nil, err
	}
	flags := uintptr(unix.CLONE_NEWPID)
	for _, n := range []struct {
		want bool
		flag uintptr
	}{{spec.Net, unix.CLONE_NEWNET}, {spec.Mount, unix.CLONE_NEWNS}, {spec.UTS, unix.CLONE_NEWUTS}, {spec.IPC, unix.CLONE_NEWIPC}} {
		if n.want {
			flags |= n.flag
		}
	}
	return startProcess(image, flags, spec.ExitLog)
}

// startProcess executes an image with /dev/null as its descriptors 0 to 2 and, if not nil, extra as 3.
func startProcess(image *os.File, flags uintptr, extra *os.File) (*Init, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	files := []*os.File{null, null, null}
	if extra != nil {
		files = append(files, extra)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", image.Fd())
	pidfd := -1
	p, err := os.StartProcess(path, []string{image.Name()}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: files,
		Sys: &syscall.SysProcAttr{Cloneflags: flags, Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		return nil, err
	}
	init := &Init{PID: p.Pid, pidfd: pidfd}
	if err := p.Release(); err != nil {
		return nil, errors.Join(err, init.Kill(context.Background()))
	}
	return init, nil
}

// writeOffsets sets the offsets of the time namespace that the children of thread tid will be in. It must be done
// before the first child exists (timens_offsets, EACCES afterwards).
func writeOffsets(tid int, o Offsets) error {
	path := "/proc/" + strconv.Itoa(tid) + "/timens_offsets"
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("time namespace: %w", err)
	}
	text := offsetLine(unix.CLOCK_MONOTONIC, o.Monotonic) + offsetLine(unix.CLOCK_BOOTTIME, o.Boottime)
	_, err = f.WriteString(text)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("writing %q to %s: %w", text, path, err)
	}
	return nil
}

// offsetLine is a line of timens_offsets: clock, seconds, nanoseconds, the latter never negative.
func offsetLine(clock int, d time.Duration) string {
	sec, nsec := d/time.Second, d%time.Second
	if nsec < 0 {
		sec, nsec = sec-1, nsec+time.Second
	}
	return fmt.Sprintf("%d %d %d\n", clock, int64(sec), int64(nsec))
}

// Kill ends the pid 1, and with it everything in its pid namespace, and returns when it is gone.
func (i *Init) Kill(ctx context.Context) error {
	err := unix.PidfdSendSignal(i.pidfd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing pid 1 of the workload (pid %d): %w", i.PID, err)
	}
	if err := i.Wait(ctx); err != nil {
		return err
	}
	return nil
}

// Wait returns when the pid 1 has ended, and reaps it when it is a child of this process.
func (i *Init) Wait(ctx context.Context) error {
	if err := AwaitExit(ctx, i.pidfd); err != nil {
		return fmt.Errorf("waiting for pid 1 of the workload (pid %d): %w", i.PID, err)
	}
	err := unix.Waitid(unix.P_PIDFD, i.pidfd, nil, unix.WEXITED, nil)
	if err != nil && !errors.Is(err, unix.ECHILD) {
		return fmt.Errorf("reaping pid 1 of the workload (pid %d): %w", i.PID, err)
	}
	return nil
}

// Descriptor duplicates a descriptor that the pid 1 holds (pidfd_getfd(2)): EBADF if it has none of that number.
func (i *Init) Descriptor(fd int) (int, error) { return unix.PidfdGetfd(i.pidfd, fd, 0) }

// Close lets go of the pid 1, which goes on.
func (i *Init) Close() error { return unix.Close(i.pidfd) }

// Adopt returns the Init of a workload that an earlier run of the program started.
func Adopt(pid int) (*Init, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pid 1 of the workload (pid %d): %w", pid, err)
	}
	return &Init{PID: pid, pidfd: fd}, nil
}

// AwaitExit returns when the process of the pidfd has ended (pidfd_open(2): it becomes readable).
func AwaitExit(ctx context.Context, pidfd int) error { return awaitPidfd(ctx, pidfd, unix.POLLIN) }

// AwaitReleased returns when nothing is left of the process of the pidfd (pidfd_poll in kernel/fork.c: POLLHUP, since Linux 6.9).
func AwaitReleased(ctx context.Context, pidfd int) error { return awaitPidfd(ctx, pidfd, 0) } // POLLHUP needs no asking

// AwaitReaped returns when nothing is left of a process that has ended, so that its id is free.
func AwaitReaped(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pid %d: pidfd_open: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return AwaitReleased(ctx, fd)
}

func awaitPidfd(ctx context.Context, pidfd int, events int16) error {
	wake, release, err := wakeOn(ctx)
	if err != nil {
		return err
	}
	defer release()
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: events}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if fds[0].Revents != 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// NetNS opens the network namespace of the process pid.
func NetNS(pid int) (*os.File, error) { return os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)) }
