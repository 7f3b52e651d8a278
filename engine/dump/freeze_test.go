//go:build linux

package dump

import (
	"bufio"
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/procfs"
)

// A process that is ending when the tree stops is a zombie of it afterwards: without it, its parent's wait(2) would find no child.
func TestFreezeWaitsForWhatIsEnding(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// dd says what it has done just before it ends. That takes a while if its memory is much and of small pages.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0) }()
	cmd := exec.CommandContext(ctx, "sh", "-c", "while dd if=/dev/zero of=/dev/null bs=256M count=1; do :; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() { _ = unix.Kill(-pid, unix.SIGKILL); _ = cmd.Wait() })
	src, err := Open(ctx, Options{Target: Target{PID: pid}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := src.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	turns := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if !strings.Contains(lines.Text(), "copied") {
			continue
		}
		if turns++; turns > 5 {
			return
		}
		if err := src.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		kids, err := procfs.Host.Children(pid, pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range kids {
			if !slices.ContainsFunc(src.Processes(), func(p *engine.Process) bool { return p.PID == k }) {
				t.Fatalf("pid %d is a child of the stopped pid %d, and was left out", k, pid)
			}
		}
		if err := src.Thaw(ctx); err != nil {
			t.Fatal(err)
		}
	}
	t.Errorf("the program ended after %d turns", turns)
}

// What was copied of a program is worth nothing once its process executes another.
func TestReplaced(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", "echo ready; read x; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	lines.Scan()
	src, err := Open(ctx, Options{Target: Target{PID: cmd.Process.Pid}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := src.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	if err := src.Track(ctx); err != nil {
		t.Fatal(err)
	}
	if err := src.Track(ctx); err != nil {
		t.Fatalf("nothing has changed: %v", err)
	}
	if _, err := in.Write([]byte("go\nnow it is cat\n")); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if err := src.Track(ctx); !errors.Is(err, ErrReplaced) {
		t.Errorf("once it is %q: %v", lines.Text(), err)
	}
}
