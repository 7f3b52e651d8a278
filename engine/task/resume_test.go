//go:build linux

package task

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
)

// copyMemory makes the writable memory of one instance that of another with the same mappings.
func copyMemory(t *testing.T, from, to *target) {
	t.Helper()
	maps, err := procfs.Host.Maps(from.pid())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.Prot&procfs.ProtWrite == 0 {
			continue
		}
		b := make([]byte, m.Size())
		if err := from.memory.Read(ptrace.Addr(m.Start), b); err != nil {
			t.Fatalf("%v: %v", m, err)
		}
		if err := to.memory.Write(ptrace.Addr(m.Start), b); err != nil {
			t.Fatalf("%v of the second instance: %v", m, err)
		}
	}
}

// waitAsleep waits until a process has gone to sleep in a system call; nothing announces that, so it polls.
func waitAsleep(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if s, err := procfs.Host.Stat(pid); err == nil && s.State == 'S' {
			return
		}
	}
	t.Fatal("the target does not sleep")
}

// TestWaitsContinue interrupts a program one second into a call that lasts two, and lets another instance go on with
// it: the call must end when it would have ended.
func TestWaitsContinue(t *testing.T) {
	for _, c := range []struct {
		how     string
		exact   bool // with the kernel's restart block, or without
		twice   bool // it has been interrupted before
		wantErr unix.Errno
		late    time.Duration // how much too late it may end
	}{
		{"nanosleep", true, false, 0, 0}, {"nanosleep-rest", true, false, 0, 0}, {"poll", true, false, 0, time.Millisecond},
		{"futex", true, false, unix.ETIMEDOUT, 0}, {"nanosleep-rest", false, false, 0, 0},
		{"nanosleep", false, false, 0, time.Second}, {"poll", false, false, 0, time.Second}, {"futex", false, false, unix.ETIMEDOUT, time.Second},
		{"epoll", true, false, 0, time.Second},
		{"nanosleep", true, true, 0, 0}, {"poll", true, true, 0, time.Millisecond}, {"futex", true, true, unix.ETIMEDOUT, 0},
	} {
		t.Run(fmt.Sprintf("%s/exact=%v/twice=%v", c.how, c.exact, c.twice), func(t *testing.T) {
			t.Parallel()
			endsInTime(t, c.late, func() time.Duration {
				begun, ended := moveWait(t, nil, c.how, c.exact, c.twice, c.wantErr)
				return ended - begun
			})
		})
	}
}

// The kernel keeps the end of a wait in the host's clock; the program, and the image, have that of its time namespace.
func TestWaitContinuesInTimeNamespace(t *testing.T) {
	const offset = 100_000
	under := []string{"unshare", "--time", "--monotonic", fmt.Sprint(offset), "--boottime", fmt.Sprint(offset)}
	endsInTime(t, 0, func() time.Duration {
		begun, ended := moveWait(t, under, "nanosleep", true, false, 0)
		return ended - begun - offset*time.Second
	})
}

// endsInTime measures a wait of two seconds that may end somewhat too late, once more each time that it took longer: the time that
// the program takes to begin and to say so is part of it, and that is long at times on a busy machine.
func endsInTime(t *testing.T, late time.Duration, wait func() time.Duration) {
	t.Helper()
	const tries, slack = 5, 300 * time.Millisecond
	for try := 1; ; try++ {
		slept := wait()
		t.Logf("it slept %v", slept)
		in := slept <= 2*time.Second+late+slack
		if slept < 2*time.Second || !in && try == tries {
			t.Errorf("it slept %v", slept)
		}
		if in || try == tries {
			return
		}
	}
}

// moveWait returns when the wait began and ended by the monotonic clock; begun is a little too early.
func moveWait(t *testing.T, under []string, how string, exact, twice bool, wantErr unix.Errno) (begun, ended time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	a, b := startUnder(t, under, "sleep"), startUnder(t, under, "sleep")
	waitAsleep(t, b.pid())
	waitAsleep(t, a.pid())
	begun = monotonic(t)
	a.say(how)
	if a.line() != "ready" {
		t.Fatal("the target is not ready")
	}
	waitAsleep(t, a.pid())
	time.Sleep(500 * time.Millisecond) // the wait is to have lasted a while
	if twice {
		tracer := ptrace.New()
		if _, err := tracer.SeizeAll(ctx, a.pid(), 0); err != nil {
			t.Fatal(err)
		}
		if err := tracer.Detach(ctx, a.pid(), 0); err != nil {
			t.Fatal(err)
		}
		_ = tracer.Close()
	}
	time.Sleep(500 * time.Millisecond)
	a.stop(ctx)
	clocks, err := Clocks(procfs.Host, a.pid())
	if err != nil {
		t.Fatal(err)
	}
	a.borrow(ctx)
	src := a.source(clocks)
	if exact {
		if src.RestartBlocks, err = OpenThreadReader(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = src.RestartBlocks.Close() }()
	}
	img, err := DumpProcess(ctx, src, a.states)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range a.loans {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("restart block: %v", img.Leader().Extra.GetRestart())
	b.stop(ctx)
	copyMemory(t, a, b)
	tgt := &Target{FS: procfs.Host, Tracer: b.tracer, Memory: b.memory, Proc: b.proc, Image: img, Header: &imagespb.Header{Clocks: clocks}}
	if err := RestoreRegisters(ctx, tgt, b.pid(), img.Leader()); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Process.Kill(); err != nil { // only one of them goes on
		t.Fatal(err)
	}
	if err := b.tracer.Detach(ctx, b.pid(), 0); err != nil {
		t.Fatal(err)
	}
	var r, errno int
	var sec, nsec int64
	if _, err := fmt.Sscanf(b.line(), "%d %d %d.%d", &r, &errno, &sec, &nsec); err != nil {
		t.Fatal(err)
	}
	if unix.Errno(errno) != wantErr || wantErr == 0 && r != 0 {
		t.Errorf("%s returned %d, %v", how, r, unix.Errno(errno))
	}
	return begun, time.Duration(sec)*time.Second + time.Duration(nsec)
}

func monotonic(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
