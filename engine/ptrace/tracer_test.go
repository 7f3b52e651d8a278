package ptrace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/kernel/kerneltest"
)

// TestMain lets the test binary be its own tracee: many goroutines, each locked to a thread.
func TestMain(m *testing.M) {
	switch os.Getenv("PTRACE_TEST_TARGET") {
	case "vfork":
		vforkMain()
	case "queue":
		queueMain()
	}
	if os.Getenv("PTRACE_TEST_TARGET") != "" {
		var locked sync.WaitGroup
		locked.Add(20)
		for range 20 {
			go func() {
				runtime.LockOSThread()
				locked.Done()
				for {
					unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
				}
			}()
		}
		locked.Wait()
		os.Stdout.WriteString("x")
		for {
			go func() { runtime.LockOSThread() }() // a thread that ends with its goroutine
			time.Sleep(200 * time.Microsecond)
		}
	}
	os.Exit(m.Run())
}

func start(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func newTracer(t testing.TB) (*Tracer, context.Context) {
	t.Helper()
	tracer := New()
	t.Cleanup(func() { tracer.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return tracer, ctx
}

func TestStopSleeper(t *testing.T) {
	kerneltest.Root(t)
	tracer, ctx := newTracer(t)
	pid := start(t, "sleep", "100").Process.Pid
	for { // until it sleeps
		call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(call), fmt.Sprint(unix.SYS_CLOCK_NANOSLEEP)+" ") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := tracer.Seize(ctx, pid, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := tracer.GetRegs(ctx, pid); !errors.Is(err, ErrRunning) {
		t.Errorf("registers of a running thread: %v", err)
	}
	stop, err := tracer.Stop(ctx, pid)
	if err != nil || stop.Kind != EventStop {
		t.Fatalf("stop %v, %v", stop, err)
	}
	regs, err := tracer.GetRegs(ctx, pid)
	if err != nil || regs.Restart() != arch.RestartBlock {
		t.Errorf("a sleeper's call is %v, %v", regs.Restart(), err)
	}
	x, err := tracer.GetXState(ctx, pid)
	if err != nil || len(x) < 512 {
		t.Errorf("xstate of %d bytes, %v", len(x), err)
	}
	if err := tracer.SetXState(ctx, pid, x); err != nil {
		t.Error(err)
	}
	if err := tracer.SetSigMask(ctx, pid, 1<<(unix.SIGUSR1-1)); err != nil {
		t.Error(err)
	}
	if m, err := tracer.GetSigMask(ctx, pid); err != nil || m != 1<<(unix.SIGUSR1-1) {
		t.Errorf("mask %#x, %v", m, err)
	}
	unix.Kill(pid, unix.SIGUSR1)
	if q, err := tracer.PeekSigInfo(ctx, pid, true); err != nil || len(q) != 1 || q[0].Signal() != unix.SIGUSR1 {
		t.Errorf("shared queue %v, %v", q, err)
	}
	if q, err := tracer.PeekSigInfo(ctx, pid, false); err != nil || len(q) != 0 {
		t.Errorf("private queue %v, %v", q, err)
	}
	if r, err := tracer.GetRseq(ctx, pid); err != nil || r.Addr == 0 {
		t.Errorf("rseq of a glibc program: %+v, %v", r, err)
	}
	if d, err := tracer.GetDispatch(ctx, pid); err != nil || d.Mode != 0 {
		t.Errorf("dispatch %+v, %v", d, err)
	}
	if err := tracer.Detach(ctx, pid, 0); err != nil {
		t.Error(err)
	}
	if err := tracer.Detach(ctx, pid, 0); err != nil {
		t.Errorf("detached twice: %v", err)
	}
}

func TestDeathIsAnError(t *testing.T) {
	kerneltest.Root(t)
	tracer, ctx := newTracer(t)
	cmd := start(t, "sleep", "100")
	pid := cmd.Process.Pid
	if err := tracer.Seize(ctx, pid, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := tracer.Stop(ctx, pid); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	for range 1000 { // the kill takes a moment
		if _, err := tracer.GetRegs(ctx, pid); err != nil {
			if !errors.Is(err, ErrGone) {
				t.Errorf("%v", err)
			}
			break
		}
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the parent's own wait: %v", err)
	}
	if err := tracer.Seize(ctx, pid, 0); !errors.Is(err, ErrGone) {
		t.Errorf("seizing a dead process: %v", err)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	kerneltest.Root(t)
	tracer, ctx := newTracer(t)
	pid := start(t, "sleep", "100").Process.Pid
	if err := tracer.Seize(ctx, pid, 0); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := tracer.Wait(short, pid); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting: %v", err)
	}
	if stop, err := tracer.Stop(ctx, pid); err != nil || stop.Kind != EventStop {
		t.Errorf("afterwards: %v, %v", stop, err)
	}
}

// stopped starts a program and stops it by a signal.
func stopped(t *testing.T, name string, args ...string) int {
	t.Helper()
	pid := start(t, name, args...).Process.Pid
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, unix.WUNTRACED, nil); err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestGroupStopIsKept: whoever has been told that a process is stopped does not see it run when its tracer lets go.
func TestGroupStopIsKept(t *testing.T) {
	kerneltest.Root(t)
	tracer, ctx := newTracer(t)
	pid := stopped(t, "sleep", "100")
	for i := range 1000 {
		stops, err := tracer.SeizeAll(ctx, pid, 0)
		if err != nil || stops[0].Held != unix.SIGSTOP {
			t.Fatalf("%+v, %v", stops, err)
		}
		if i%2 == 0 {
			err = tracer.Detach(ctx, pid, 0)
		} else {
			err = tracer.DetachAll(ctx, pid)
		}
		if err != nil {
			t.Fatal(err)
		}
		if state, _, err := taskState(pid); err != nil || state != 'T' {
			t.Fatalf("after detach %d it is in state %c, %v", i, state, err)
		}
	}
}

// TestContinuedIsNotAwaited: a thread that was told to go on while it was traced is let go at once.
func TestContinuedIsNotAwaited(t *testing.T) {
	kerneltest.Root(t)
	tracer, ctx := newTracer(t)
	pid := stopped(t, "sh", "-c", "while :; do :; done")
	if stops, err := tracer.SeizeAll(ctx, pid, 0); err != nil || stops[0].Held == 0 {
		t.Fatalf("%+v, %v", stops, err)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := tracer.Detach(ctx, pid, 0); err != nil {
		t.Fatal(err)
	}
	if state, _, err := taskState(pid); err != nil || state != 'R' {
		t.Errorf("it goes on in state %c, %v", state, err)
	}
}

func TestSeizeAllOfBusyProcess(t *testing.T) {
	kerneltest.Root(t)
	tracer, ctx := newTracer(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PTRACE_TEST_TARGET=1")
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	out.Read(make([]byte, 1))
	for range 20 {
		stops, err := tracer.SeizeAll(ctx, cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(stops) < 20 || stops[0].TID != cmd.Process.Pid {
			t.Fatalf("%d threads, the first is %d", len(stops), stops[0].TID)
		}
		for _, s := range stops {
			if state, _, err := taskState(s.TID); err != nil || state != 't' {
				t.Errorf("thread %d is in state %c, %v", s.TID, state, err)
			}
		}
		for _, s := range stops {
			if err := tracer.Detach(ctx, s.TID, 0); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestCloseLetsGo: once Close has returned, another tracer can have the thread, which runs.
func TestCloseLetsGo(t *testing.T) {
	kerneltest.Root(t)
	pid := start(t, "sleep", "60").Process.Pid
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i := range 300 {
		tracer := New()
		if err := tracer.Seize(ctx, pid, 0); err != nil {
			t.Fatalf("the tracer before has not let go (%d): %v", i, err)
		}
		if _, err := tracer.Stop(ctx, pid); err != nil {
			t.Fatal(err)
		}
		if err := tracer.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDebuggedProcessIsNamed(t *testing.T) {
	kerneltest.Root(t)
	tracer, ctx := newTracer(t)
	other, _ := newTracer(t)
	pid := start(t, "sleep", "100").Process.Pid
	if err := other.Seize(ctx, pid, 0); err != nil {
		t.Fatal(err)
	}
	if err := tracer.Seize(ctx, pid, 0); !errors.Is(err, ErrTraced) {
		t.Errorf("%v", err)
	}
}

// vforkMain has one thread that waits for a vfork to end, where no tracer can stop it, while the others go on.
func vforkMain() {
	go func() {
		runtime.LockOSThread()
		nap := unix.Timespec{Nsec: 1e8}
		os.Stdout.WriteString("x")
		pid, _, _ := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_VFORK|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if pid == 0 { // a copy of this process with one thread: system calls only
			for { // until it is killed
				unix.RawSyscall(unix.SYS_NANOSLEEP, address(&nap), 0, 0)
			}
		}
	}()
	for {
		time.Sleep(time.Millisecond)
	}
}

// startTarget starts this test binary as the target of that name, and returns when it has said that it is ready.
func startTarget(t *testing.T, name string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PTRACE_TEST_TARGET="+name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestSeizeAllGivesUp: a process of which one thread cannot be stopped in time runs on, and so does that thread later.
func TestSeizeAllGivesUp(t *testing.T) {
	tracer, ctx := newTracer(t)
	cmd := startTarget(t, "vfork")
	pid := cmd.Process.Pid
	born := childrenOf(t, pid)
	for ; len(born) == 0; born = childrenOf(t, pid) { // until the thread is in vfork
		time.Sleep(time.Millisecond)
	}
	child, err := strconv.Atoi(born[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(child, unix.SIGKILL) }() // killed already, and not waited for, if all went well
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := tracer.SeizeAll(short, pid, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it is stopped: %v", err)
	}
	if err := unix.Kill(child, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		tids, err := Threads(pid)
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, tid := range tids {
			if _, tracedBy, err := taskState(tid); err == nil && tracedBy != 0 {
				left++
			}
		}
		if left == 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d threads are still traced after the vfork", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	tids, err := Threads(pid)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, tid := range tids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, tid))
		if err == nil {
			all = append(all, strings.Fields(string(b))...)
		}
	}
	return all
}

// queued is how many signals wait in the target of TestPeekSigInfoUnderSignals.
const queued = 500

// queueMain blocks a signal in a thread, queues it there, and waits.
func queueMain() {
	runtime.LockOSThread()
	const rtmax = 64
	set := unix.Sigset_t{Val: [16]uint64{1 << (rtmax - 1)}}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
		panic(err)
	}
	for i := range queued {
		info := SigInfo{rtmax}
		info[8], info[9], info[10], info[11] = 0xff, 0xff, 0xff, 0xff // SI_QUEUE
		info[24], info[25] = byte(i), byte(i>>8)
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(os.Getpid()), uintptr(unix.Gettid()), rtmax, address(&info), 0, 0); errno != 0 {
			panic(errno)
		}
	}
	os.Stdout.WriteString("x")
	for {
		unix.Nanosleep(&unix.Timespec{Sec: 1}, nil)
	}
}

// TestPeekSigInfoUnderSignals reads a long queue while the reading thread is sent signals itself.
func TestPeekSigInfoUnderSignals(t *testing.T) {
	tracer, ctx := newTracer(t)
	cmd := startTarget(t, "queue")
	stops, err := tracer.SeizeAll(ctx, cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
				_ = unix.Tgkill(os.Getpid(), tracer.tid, unix.SIGURG) // as the runtime does to preempt
			}
		}
	}()
	defer func() { close(quit); <-done }()
	for range 10 {
		most := 0
		for _, st := range stops {
			list, err := tracer.PeekSigInfo(ctx, st.TID, false)
			if err != nil {
				t.Fatal(err)
			}
			most = max(most, len(list))
		}
		if most != queued {
			t.Fatalf("%d of %d signals were read", most, queued)
		}
	}
}
