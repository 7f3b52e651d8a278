package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ptrace"
)

// tracerMain is the tracer that gets killed: it waits for a byte, opens a session, says so and runs batches for ever.
func tracerMain() {
	var pid int
	var mode string
	if _, err := fmt.Sscanf(os.Getenv("REMOTE_TEST_TRACER"), "%d %s", &pid, &mode); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx := context.Background()
	tracer := ptrace.New()
	os.Stdout.WriteString("r")
	os.Stdin.Read(make([]byte, 1))
	if mode == "freeze" { // the whole process stands still, but for the borrowed thread
		if _, err := tracer.SeizeAll(ctx, pid, 0); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	s, err := Open(ctx, tracer, pid, Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Stdout.WriteString("o")
	for {
		var b Batch
		for range 1000 {
			b.Call(unix.SYS_GETPPID)
		}
		if err := s.Run(ctx, &b); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if mode == "close" {
			if err := s.Close(); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			if s, err = Open(ctx, tracer, pid, Options{}); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
}

// killTracer starts a tracer on a process and kills it some time, up to most, after it has begun. opened: by then it
// had opened its session.
func killTracer(t testing.TB, pid int, mode string, most time.Duration) (opened bool) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("REMOTE_TEST_TRACER=%d %s", pid, mode))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 200)
	if _, err := out.Read(said[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Duration(rand.Int64N(int64(most))))
	cmd.Process.Kill()
	n, _ := out.Read(said)
	if n > 1 {
		t.Errorf("the tracer said %s", said[:n])
	}
	cmd.Wait()
	return n > 0
}

// TestTracerKilled kills tracers at random instants of their life: while they open a session, while a batch runs, between
// batches, while they close it. Whatever the program was doing must come out as if nothing had happened.
func TestTracerKilled(t *testing.T) {
	kerneltest.Root(t)
	const each = 60
	type job struct {
		mode   string
		result int64
		err    int64
		again  bool
	}
	jobs := []job{{mode: "loop"}, {mode: "nanosleep"}, {mode: "poll"}, {mode: "futex", result: -1, err: int64(unix.ETIMEDOUT)}, {mode: "epoll_wait", again: true}}
	for _, j := range jobs {
		t.Run(j.mode, func(t *testing.T) {
			var opened, told atomic.Int64
			lot, scale := 6, time.Duration(1) // how many at a time; loops take the processors from their tracers
			if j.mode == "loop" {
				lot, scale = 2, 5
			}
			slots := make(chan struct{}, lot)
			var all sync.WaitGroup
			for i := range each {
				slots <- struct{}{}
				all.Go(func() {
					defer func() { <-slots }()
					const ms = 700
					g := startTarget(t, j.mode, ms)
					kind := []string{"batches", "close"}[i%2]
					most := []time.Duration{2 * time.Millisecond, 6 * time.Millisecond, 30 * time.Millisecond}[i%3]
					open := killTracer(t, g.pid, kind, most*scale)
					if open {
						opened.Add(1)
					}
					if j.mode == "loop" {
						g.counting(t)
						g.unharmed(t)
						return
					}
					// A tracer that dies before its first batch leaves the lease of that to pass (bootLease), and a call
					// that starts again does so at every stop. The rest is a busy machine.
					to := (ms + 500 + 1000) * time.Millisecond
					g.unharmed(t)
					if j.again && (!open || kind == "close") && g.ended(t) == unix.EINTR {
						told.Add(1) // see below
						return
					}
					g.ends(t, j.result, j.err, (ms-5)*time.Millisecond, to)
				})
			}
			all.Wait()
			t.Logf("%d tracers killed, %d of them after their session was open", each, opened.Load())
			// epoll_wait fails with EINTR for any stop (signal(7)). If the tracer dies after the kernel has stopped the
			// thread and before it can mend that, some tens of microseconds on an idle machine, the program sees it.
			if n := told.Load(); n > each/4 {
				t.Errorf("%d of %d calls failed with EINTR for the stop alone", n, each)
			} else if j.again {
				t.Logf("%d calls failed with EINTR for the stop alone", n)
			}
		})
	}
}

// goTargetMain is a Go program that is borrowed: goroutines that compute, sleep, wait for each other and use sockets.
func goTargetMain() {
	runtime.GOMAXPROCS(4)
	var sum atomic.Int64
	for range 50 {
		ping, pong := make(chan int), make(chan int)
		go func() {
			for v := range ping {
				pong <- deep(v % 50)
			}
		}()
		go func() {
			for i := 0; ; i++ {
				ping <- i
				if got, want := <-pong, i%50; got != want {
					fmt.Printf("deep(%d) = %d\n", want, got)
					os.Exit(3)
				}
				sum.Add(1)
				if i%64 == 0 {
					time.Sleep(time.Duration(i%3) * time.Millisecond)
				}
			}
		}()
	}
	go func() {
		for {
			runtime.GC()
			time.Sleep(5 * time.Millisecond)
		}
	}()
	for last := int64(-1); ; {
		time.Sleep(20 * time.Millisecond)
		if now := sum.Load(); now == last {
			os.Stdout.WriteString("s")
		} else {
			last = now
			os.Stdout.WriteString("+")
		}
	}
}

// deep grows its goroutine's stack, so that the runtime moves it.
func deep(n int) int {
	var pad [128]byte
	if n == 0 {
		return int(pad[0])
	}
	return deep(n-1) + 1 + int(pad[n])
}

func startGoTarget(t *testing.T) (pid int, alive func()) {
	t.Helper()
	kerneltest.Root(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "REMOTE_TEST_GOTARGET=1")
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	pid = startCmd(t, cmd)
	progress := func() int {
		b, err := os.ReadFile(out.Name())
		if err != nil || strings.Trim(string(b), "+s") != "" {
			t.Fatalf("the Go program: %v\n%s", err, b)
		}
		return strings.Count(string(b), "+")
	}
	return pid, func() {
		t.Helper()
		before := progress()
		until(t, "the Go program to go on", func() bool { return progress() > before+2 })
	}
}

// TestSessionsInGoProgram borrows each thread of a Go program, in turn, while the others run: stacks of 2 KiB,
// preemption by signals, a garbage collector that stops the world.
func TestSessionsInGoProgram(t *testing.T) {
	tracer, ctx := newTracer(t)
	pid, alive := startGoTarget(t)
	alive()
	for range 5 {
		tids, err := ptrace.Threads(pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			s := open(t, ctx, tracer, tid)
			ids(t, ctx, s)
			closeSession(t, s)
		}
	}
	alive()
}

func TestTracerOfGoProgramKilled(t *testing.T) {
	pid, alive := startGoTarget(t)
	alive()
	for range 20 {
		tids, err := ptrace.Threads(pid)
		if err != nil {
			t.Fatal(err)
		}
		killTracer(t, pid, "freeze", 20*time.Millisecond)
		killTracer(t, tids[rand.IntN(len(tids))], "batches", 6*time.Millisecond)
	}
	alive()
}

// TestTwoSessions borrows two threads of one process at a time: the second server stands behind another mapping's code
// if the vDSO has no room for two.
func TestTwoSessions(t *testing.T) {
	tracer, ctx := newTracer(t)
	pid, alive := startGoTarget(t)
	alive()
	tids, err := ptrace.Threads(pid)
	if err != nil || len(tids) < 2 {
		t.Fatal(tids, err)
	}
	one := open(t, ctx, tracer, tids[0])
	two, err := Open(ctx, tracer, tids[1], Options{})
	switch { // the Go program is static: there may be no second place
	case err == nil:
		ids(t, ctx, two)
		closeSession(t, two)
	case !errors.Is(err, ErrNoRoom):
		t.Error(err)
	}
	ids(t, ctx, one)
	closeSession(t, one)
	alive()
}
