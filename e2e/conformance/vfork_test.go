//go:build linux

package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"migrate/engine/kernel/kerneltest"
)

// TestVforkIsNamed: a process in vfork(2) cannot be stopped, whether or not it shares its memory with the child. The dump says so
// within bounds, and leaves both running.
func TestVforkIsNamed(t *testing.T) {
	kerneltest.Root(t)
	bin := build(t)
	for _, name := range []string{"shared", "copy"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			w := start(ctx, t, bin, dir, compile(ctx, t, "testdata/vfork.c"))
			out, err := exec.CommandContext(ctx, bin, "dump", "--pid", strconv.Itoa(w.pid), "--dir", filepath.Join(t.TempDir(), "image")).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "pid "+strconv.Itoa(w.pid)+", the process: it waits in vfork(2) until pid ") {
				t.Fatalf("the dump of a process in vfork: %v\n%s", err, out)
			}
			select {
			case <-w.exited:
				t.Error("the process has ended")
			default:
			}
		})
	}
}
