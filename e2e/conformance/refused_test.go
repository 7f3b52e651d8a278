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

// TestRefused refuses what is not carried by its name, also what can only be seen in a stopped program, and leaves the program running with it.
func TestRefused(t *testing.T) {
	kerneltest.Root(t)
	bin := build(t)
	for name, words := range map[string][]string{
		"session_key":   {"session keyring holds the key", "ticket"},
		"ping_answer":   {"(ping socket): packets wait at the socket"},
		"deleted_mount": {"mounted there", "was deleted", "has it open", "(fd "},
		"udp_more":      {"UDP socket", "not complete", "MSG_MORE"},
		"bpffs":         {"type bpf", "objects", "(pinned)"},
		"landlock":      {"restricted by Landlock", "thread"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			w := start(ctx, t, bin, t.TempDir(), compile(ctx, t, filepath.Join("testdata", name+".c")))
			out, err := exec.CommandContext(ctx, bin, "dump", "--pid", strconv.Itoa(w.pid), "--dir", filepath.Join(t.TempDir(), "image")).CombinedOutput()
			for _, word := range words {
				if err == nil || !strings.Contains(string(out), word) {
					t.Errorf("the dump says %v, without %q: %s", err, word, out)
				}
			}
			w.check(ctx, t)
		})
	}
}
