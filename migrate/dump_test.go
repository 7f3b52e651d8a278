//go:build linux

package main

import (
	"bufio"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/restore"
)

// TestWaitForPassesSignalsOn: what a restore in the foreground gets, the tree's root gets, and its exit code comes back.
func TestWaitForPassesSignalsOn(t *testing.T) {
	for _, c := range []struct {
		script string
		signal unix.Signal
		code   int
	}{
		{"sleep 60 & trap \"kill $!; exit 7\" USR1; echo ready; wait", unix.SIGUSR1, 7},
		{"echo ready; exec sleep 60", unix.SIGTERM, 128 + int(unix.SIGTERM)},
		{"echo ready; exit 3", unix.SIGINT, 3},
	} {
		cmd := exec.Command("sh", "-c", c.script)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		signals := make(chan os.Signal, 1)
		if c.signal != unix.SIGINT {
			signals <- c.signal
		}
		err = waitFor(&restore.Restored{PID: cmd.Process.Pid}, signals)
		var exit *exitError
		if !errors.As(err, &exit) || exit.code != c.code {
			t.Errorf("%q: %v, want exit code %d", c.script, err, c.code)
		}
	}
}

// TestExplain: the steps of a dump are printed, also of one that fails.
func TestExplain(t *testing.T) {
	kerneltest.Root(t)
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil { // what a test was given is not to go with the program
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "100")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = sleeper.Process.Kill(), sleeper.Wait() }()
	for pid, steps := range map[int]string{ended.Process.Pid: "total", sleeper.Process.Pid: "obstacles freeze layout pages state write total"} {
		var text strings.Builder
		root := newRootCommand()
		root.SetArgs([]string{"dump", "--explain", "--leave-running", "--pid", strconv.Itoa(pid), "--dir", filepath.Join(t.TempDir(), "dump")})
		root.SetErr(&text)
		err := root.ExecuteContext(t.Context())
		if (err == nil) != (pid == sleeper.Process.Pid) {
			t.Errorf("pid %d: %v", pid, err)
		}
		rest := text.String()
		for _, step := range strings.Fields(steps) {
			_, after, ok := strings.Cut(rest, step+"\n")
			if !ok {
				t.Errorf("%q is not in its place in:\n%s", step, text.String())
			}
			rest = after
		}
	}
}
