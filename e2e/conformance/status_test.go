//go:build linux

package conformance

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/procfs"
)

// loops is a program that ends by its own exit on SIGUSR1, and by the signal on others.
const loops = `#!/bin/bash
trap 'exit 7' USR1
mkfifo fifo; exec 3<>fifo
touch ready.new; mv ready.new ready
while :; do read -r -t 0.02 -u 3; done
`

// TestExitStatus: a restore in the foreground ends as the program does, also in a pid namespace of its own, whose pid 1 then ends too.
func TestExitStatus(t *testing.T) {
	kerneltest.Root(t)
	bin := build(t)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte(loops), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{"same", "new"} {
		for _, c := range []struct {
			name   string
			signal unix.Signal
			above  bool // to the process above the program
			code   int
		}{
			{"exit", unix.SIGUSR1, false, 7},
			{"signal", unix.SIGTERM, false, 128 + int(unix.SIGTERM)},
			{"pid1", unix.SIGKILL, true, 128 + int(unix.SIGKILL)},
		} {
			if c.above && namespace == "same" {
				continue // the process above is the command
			}
			t.Run(namespace+"-"+c.name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				w := start(ctx, t, bin, t.TempDir(), program)
				dir := w.dump(ctx, t)
				w.mustBeGone(t)
				pidfile := filepath.Join(w.dir, "pid")
				cmd := exec.CommandContext(ctx, bin, "restore", "--dir", dir, "--pid-namespace", namespace, "--pidfile", pidfile)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				pid := 0
				for pid == 0 {
					text, _ := os.ReadFile(pidfile) // it is written once the tree runs
					pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
					select {
					case err := <-ended:
						t.Fatalf("restore ended: %v", err)
					case <-time.After(time.Millisecond):
					}
				}
				st, err := procfs.Host.Stat(pid)
				if err != nil {
					t.Fatal(err)
				}
				to := pid
				if c.above {
					to = st.PPID
				}
				if err := unix.Kill(to, c.signal); err != nil {
					t.Fatal(err)
				}
				err = <-ended
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != c.code {
					t.Errorf("restore ended with %v, want exit code %d", err, c.code)
				}
				for _, p := range []int{pid, st.PPID} {
					if err := unix.Kill(p, 0); !errors.Is(err, unix.ESRCH) {
						t.Errorf("pid %d is left: %v", p, err)
					}
				}
			})
		}
	}
}
