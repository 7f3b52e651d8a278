//go:build linux

package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

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
