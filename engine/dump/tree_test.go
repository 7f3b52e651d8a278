//go:build linux

package dump

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/procfs"
)

// TestOrphansComeAndGo lists a workload whose processes are born, orphaned and reaped all the time: one that is gone by the time that it is
// looked at is not missed.
func TestOrphansComeAndGo(t *testing.T) {
	kerneltest.Root(t)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 1000 & while :; do (true & true &); done")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	for { // until it has begun
		if c, err := children(procfs.Host, cmd.Process.Pid); err != nil || len(c) > 0 {
			break
		}
	}
	for range 5000 {
		tree, _, err := findTree(procfs.Host, Target{Init: cmd.Process.Pid})
		if err != nil {
			t.Fatal(err)
		}
		if len(tree) == 0 {
			t.Fatal("nothing runs")
		}
	}
}

// TestRootsThatCannotBe: what is no tree to dump is said before anything is compared or traced.
func TestRootsThatCannotBe(t *testing.T) {
	kerneltest.Root(t)
	ended := exec.Command("true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ended.Wait() }() // its code is 0
	if err := unix.Waitid(unix.P_PID, ended.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]error{0: ErrNoProcess, -4: ErrNoProcess, ended.Process.Pid: ErrEnded, os.Getpid(): ErrSelf, os.Getppid(): ErrSelf} {
		src, err := Open(t.Context(), Options{Target: Target{PID: pid}})
		if !errors.Is(err, want) {
			t.Errorf("pid %d: %v, want %v", pid, err, want)
		}
		if err == nil {
			if err := src.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}
