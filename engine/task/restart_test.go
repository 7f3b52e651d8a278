//go:build linux

package task

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/images/imagespb"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ptrace"
)

func needRoot(t testing.TB) { t.Helper(); kerneltest.Root(t) }

// stopped starts a command and stops it once it sleeps in a system call.
func stopped(t *testing.T, name string, args ...string) (*ptrace.Tracer, int) {
	t.Helper()
	needRoot(t)
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	tracer := ptrace.New()
	t.Cleanup(func() { _ = tracer.Close() })
	return tracer, cmd.Process.Pid
}

func TestThreadReader(t *testing.T) {
	needRoot(t)
	r, err := OpenThreadReader()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tracer, pid := stopped(t, "sleep", "100")
	for call := ""; !strings.HasPrefix(call, strconv.Itoa(unix.SYS_CLOCK_NANOSLEEP)+" "); time.Sleep(time.Millisecond) { // nothing tells when it has gone to sleep
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		if call = string(text); err != nil || ctx.Err() != nil {
			t.Fatalf("it does not sleep, but is in %q: %v", call, err)
		}
	}
	if _, err := tracer.SeizeAll(ctx, pid, 0); err != nil {
		t.Fatal(err)
	}
	regs, err := tracer.GetRegs(ctx, pid)
	if err != nil || regs.Restart() != arch.RestartBlock {
		t.Fatalf("%v, %v", regs.Restart(), err)
	}
	state, err := r.Read(pid)
	if err != nil {
		t.Fatal(err)
	}
	b := state.Restart
	kind, err := r.KindOf(b)
	if err != nil {
		t.Fatal(err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	left := time.Duration(b.SleepUntil - now.Nano())
	if kind != imagespb.RestartBlock_NANOSLEEP || left > 100*time.Second || left < 95*time.Second {
		t.Errorf("%+v, %v left", b, left)
	}
	start := time.Now()
	for range 100 {
		if _, err := r.Read(pid); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v each", time.Since(start)/100)
}
