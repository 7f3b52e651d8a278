//go:build linux

package conformance

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"migrate/engine/kernel/kerneltest"
)

// TestPingAnswerIsNotLost: an answer that waits at a ping socket cannot be carried, which is said, and the program reads it then.
func TestPingAnswerIsNotLost(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	bin := build(t)
	w := start(ctx, t, bin, t.TempDir(), compile(ctx, t, "testdata/ping_answer.c"))
	out, err := exec.CommandContext(ctx, bin, "dump", "--pid", strconv.Itoa(w.pid), "--dir", filepath.Join(t.TempDir(), "image")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "(ping socket): packets wait at the socket") {
		t.Fatalf("the dump of a ping socket with an answer: %v\n%s", err, out)
	}
	w.check(ctx, t)
}
