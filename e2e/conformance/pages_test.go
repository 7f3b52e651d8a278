//go:build linux

package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// TestChangedPages: a checkpoint whose pages are missing or others is refused, and nothing of the program is left.
func TestChangedPages(t *testing.T) {
	kerneltest.Root(t)
	bin := build(t)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	program := filepath.Join(t.TempDir(), "program")
	compileTo(ctx, t, program, "../workloads/c/anon_private.c")
	w := start(ctx, t, bin, t.TempDir(), program)
	dir := w.dump(ctx, t)
	w.mustBeGone(t)
	for _, c := range []struct {
		name   string
		change func(file string) error
	}{
		{"pages-*.img", os.Remove},
		{"pagemap-*.img", os.Remove},
		{"pages-*.img", func(file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			at := slices.IndexFunc(b, func(x byte) bool { return x != 0 })
			b[at] ^= 1
			return os.WriteFile(file, b, 0o600)
		}},
	} {
		broken := filepath.Join(t.TempDir(), "image")
		if err := os.CopyFS(broken, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		list, err := filepath.Glob(filepath.Join(broken, c.name))
		if err != nil || len(list) == 0 {
			t.Fatalf("no %s in %s: %v", c.name, broken, err)
		}
		if err := c.change(list[0]); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(ctx, bin, "restore", "--dir", broken, "--detach").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "pages-") {
			t.Errorf("%s changed: %v\n%s", c.name, err, out)
		}
		for unix.Kill(w.pid, 0) == nil { // killed, and not reaped yet
			if ctx.Err() != nil {
				t.Fatalf("%s changed: pid %d is there", c.name, w.pid)
			}
			time.Sleep(time.Millisecond)
		}
	}
	w.restore(ctx, t, dir)
	w.check(ctx, t)
}
