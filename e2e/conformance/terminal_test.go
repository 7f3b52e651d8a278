//go:build linux

package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tmuxProgram is a terminal multiplexer with a shell that has jobs in one window and an editor in another: sessions,
// pseudoterminals and a socket that all belong to one tree.
func tmuxProgram(_ context.Context, t *testing.T, dir string) []string {
	return []string{lookPath(t, "tmux"), "-S", filepath.Join(dir, "tmux"), "-f", "/dev/null", "-D"}
}

// tmux gives the multiplexer a command and returns what it says.
func tmux(ctx context.Context, t *testing.T, w *workload, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx, "tmux", append([]string{"-N", "-u", "-S", filepath.Join(w.dir, "tmux")}, args...)...)
	cmd.Dir = w.dir
	out, err := cmd.CombinedOutput()
	for err != nil && (strings.Contains(string(out), "connecting") || strings.Contains(string(out), "no server")) && again(ctx) { // it does not listen yet
		cmd = exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
		cmd.Dir = w.dir
		out, err = cmd.CombinedOutput()
	}
	if err != nil {
		t.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// shows waits until a window shows a text.
func shows(ctx context.Context, t *testing.T, w *workload, window, text string) {
	t.Helper()
	for {
		screen := tmux(ctx, t, w, "capture-pane", "-p", "-t", "test:"+window)
		if strings.Contains(screen, text) {
			return
		}
		if !again(ctx) {
			t.Fatalf("window %s does not show %q:\n%s", window, text, screen)
		}
	}
}

// types sends keys until a window shows a text: not every program takes them at every time.
func types(ctx context.Context, t *testing.T, w *workload, window, text string, keys ...string) {
	t.Helper()
	for !strings.Contains(tmux(ctx, t, w, "capture-pane", "-p", "-t", "test:"+window), text) {
		tmux(ctx, t, w, append([]string{"send-keys", "-t", "test:" + window}, keys...)...)
		if !again(ctx) {
			t.Fatalf("window %s does not show %q", window, text)
		}
	}
}

func startJobs(ctx context.Context, t *testing.T, w *workload) {
	t.Helper()
	lines := "first line\n" + strings.Repeat("more\n", 50) + "last line\n"
	if err := os.WriteFile(filepath.Join(w.dir, "text"), []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	tmux(ctx, t, w, "new-session", "-d", "-s", "test", "-n", "shell", "-x", "80", "-y", "20", "env PS1='ready> ' bash --norc --noprofile -i")
	tmux(ctx, t, w, "new-window", "-t", "test", "-n", "pager", lookPath(t, "less")+" text")
	shows(ctx, t, w, "shell", "ready>")
	shows(ctx, t, w, "pager", "first line")
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "sleep 1000 &", "Enter", "sh -c 'echo up; exec cat'", "Enter")
	shows(ctx, t, w, "shell", "\nup")
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "one", "Enter")
	shows(ctx, t, w, "shell", "one\none")
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "C-z")
	shows(ctx, t, w, "shell", "Stopped")
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "echo half") // a line that is not complete
	shows(ctx, t, w, "shell", "echo half")
}

func checkJobs(ctx context.Context, t *testing.T, w *workload) {
	t.Helper()
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "way", "Enter", "jobs", "Enter")
	shows(ctx, t, w, "shell", "\nhalfway")
	shows(ctx, t, w, "shell", "Running")
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "fg %2", "Enter")
	types(ctx, t, w, "shell", "two\ntwo", "two", "Enter") // before the job has the terminal, the shell takes it
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "C-c")
	shows(ctx, t, w, "shell", "^C\nready>")
	tmux(ctx, t, w, "send-keys", "-t", "test:shell", "kill %1; wait; echo all $(jobs | wc -l) done", "Enter")
	shows(ctx, t, w, "shell", "\nall 0 done")
	tmux(ctx, t, w, "send-keys", "-t", "test:pager", "G")
	shows(ctx, t, w, "pager", "last line")
	tmux(ctx, t, w, "resize-window", "-t", "test:pager", "-x", "60", "-y", "10")
	types(ctx, t, w, "pager", "first line", "g") // while it draws its window anew, it takes no notice
	tmux(ctx, t, w, "kill-server")
}
