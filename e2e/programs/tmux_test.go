//go:build linux

package programs

import (
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestTmux moves a terminal multiplexer with a shell that has a job in one window and a program that counts in another. It is spoken to by its
// own command on the host where it is.
func TestTmux(t *testing.T) {
	s := begin(t, time.Minute)
	s.program("tmux")
	const socket = "/srv/tmux-moved"
	s.Run("tmux", nil, s.program("tmux"), "-S", socket, "-f", "/dev/null", "-D")
	at := "host1"
	tmux := func(args ...string) string {
		t.Helper()
		return s.On(at, append([]string{"/bin/sh", "-c", "exec timeout 10 tmux -N -u -S " + socket + ` "$@" </dev/null`, "tmux"}, args...)...)
	}
	await := func(window, text string) {
		t.Helper()
		for !strings.Contains(tmux("capture-pane", "-p", "-S", "-", "-t", "test:"+window), text) {
			if s.Ctx.Err() != nil {
				t.Fatalf("window %s never shows %q:\n%s", window, text, tmux("capture-pane", "-p", "-t", "test:"+window))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	types := func(window string, keys ...string) {
		t.Helper()
		tmux(append([]string{"send-keys", "-t", "test:" + window}, keys...)...)
	}
	for s.Ctx.Err() == nil { // it makes its socket when it is ready, and nothing tells
		if _, err := cluster.Hosts.Host(at).Exec(s.Ctx, "test", "-S", socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	tmux("new-session", "-d", "-s", "test", "-n", "shell", "-x", "100", "-y", "30", "env", "PS1=ready> ", "HISTFILE=", "bash", "--norc", "--noprofile", "-i")
	tmux("new-window", "-d", "-t", "test", "-n", "count", "bash", "-c", "i=0; while :; do echo count $((i++)); sleep 0.05; done")
	await("shell", "ready>")
	types("shell", "cat | sed -u 's/^/seen /'", "Enter")
	types("shell", "one", "Enter")
	await("shell", "seen one")
	await("count", "count 5")
	for _, to := range []string{"host2", "host3"} {
		s.Move("tmux", to, "--files", "shared", "--max-downtime", "5s")
		at = to
		types("shell", "to "+to, "Enter")
		await("shell", "seen to "+to)
		before := tmux("capture-pane", "-p", "-t", "test:count")
		for tmux("capture-pane", "-p", "-t", "test:count") == before && s.Ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
	await("shell", "seen one") // what was said before
	types("shell", "C-c")
	types("shell", "echo $((6*7)) again", "Enter")
	await("shell", "42 again")
	tmux("resize-window", "-t", "test:shell", "-x", "90", "-y", "25")
	types("shell", "stty size", "Enter")
	await("shell", "25 90")
}
