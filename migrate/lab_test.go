package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/e2e/lab"
	"migrate/engine/kernel/kerneltest"
)

// labRun runs `migrate lab ARGS` and returns what it prints and its exit code.
func labRun(ctx context.Context, dir, stdin string, args ...string) (stdout string, code int, err error) {
	var out bytes.Buffer
	cmd := newLabCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append([]string{"--state-dir", dir}, args...))
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err = cmd.ExecuteContext(ctx)
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		code = exit.code
	case err != nil:
		code = 1
	}
	return out.String(), code, err
}

func TestLabVerbs(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "lab")
	l, err := lab.Up(ctx, lab.Options{StateDir: dir, Hosts: 2, Agent: []string{"sleep", "1000"}, Detach: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	steps := []struct {
		name  string
		stdin string
		args  []string
		code  int
		want  string
	}{
		{"stdin and output", "hello\n", []string{"exec", "host1", "--", "sh", "-c", "cat; hostname"}, 0, "hello\nhost1\n"},
		{"exit code", "", []string{"exec", "host2", "--", "sh", "-c", "exit 42"}, 42, ""},
		{"signal", "", []string{"exec", "host2", "--", "sh", "-c", "kill -TERM $$"}, 143, ""},
		{"no such command", "", []string{"exec", "host2", "--", "nonesuch"}, 127, ""},
		{"not a command", "", []string{"exec", "host2", "--", "/etc/passwd"}, 126, ""},
		{"environment", "", []string{"exec", "-e", "X=1", "-C", "/usr", "host2", "--", "sh", "-c", "echo $X $PWD"}, 0, "1 /usr\n"},
		{"no such host", "", []string{"exec", "host9", "--", "true"}, 1, ""},
		{"client", "", []string{"exec", "client", "--", "hostname"}, 0, "client\n"},
		{"cut", "", []string{"cut", "host1", "host2", "--one-way", "--plane", "raft"}, 0, ""},
		{"cut is shown", "", []string{"status"}, 0, "cut: host1 -> host2 (raft)"},
		{"half a pair", "", []string{"cut", "host1", "--one-way"}, 1, ""},
		{"no such plane", "", []string{"cut", "host1", "host2", "--plane", "x"}, 1, ""},
		{"heal", "", []string{"heal"}, 0, ""},
		{"stall", "", []string{"stall", "host1"}, 0, ""},
		{"reboot", "", []string{"reboot", "host1"}, 0, ""},
		{"kill", "", []string{"kill", "host2"}, 0, ""},
		{"killed is shown", "", []string{"status"}, 0, "killed"},
		{"up again", "", []string{"up"}, 1, ""},
	}
	for _, s := range steps {
		out, code, err := labRun(ctx, dir, s.stdin, s.args...)
		if code != s.code || !strings.Contains(out, s.want) {
			t.Errorf("%s: migrate lab %s: exit code %d (want %d), %q (want %q), %v", s.name, strings.Join(s.args, " "), code, s.code, out, s.want, err)
		}
	}
	out, _, err := labRun(ctx, dir, "", "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Hosts []struct {
			Name, State, Agent string
			BootID             string `json:"boot_id"`
		}
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Hosts) != 2 || status.Hosts[0].State != "up" || status.Hosts[0].BootID == "" {
		t.Errorf("%s: %v", out, err)
	}
	if _, code, err := labRun(ctx, dir, "", "down"); code != 0 {
		t.Errorf("down: %v", err)
	}
	if _, code, err := labRun(ctx, dir, "", "down"); code != 0 {
		t.Errorf("down twice: %v", err)
	}
	if _, _, err := labRun(ctx, dir, "", "status"); !errors.Is(err, lab.ErrNoLab) {
		t.Errorf("status without a lab: %v", err)
	}
}

// TestLabExecPassesSignals sends this very process what a terminal's Ctrl-C would.
func TestLabExecPassesSignals(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	l, err := lab.Up(ctx, lab.Options{StateDir: filepath.Join(t.TempDir(), "lab"), Hosts: 1, Agent: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
	}()
	c := l.Host("host1").Command(ctx, "sh", "-c", "trap 'exit 9' INT; echo ready; while :; do sleep 0.01; done")
	r, w := io.Pipe()
	c.Stdout = w
	go func() {
		// Once the command speaks, signals are being passed on.
		if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err == nil {
			_ = unix.Kill(unix.Getpid(), unix.SIGINT)
		}
	}()
	var exit *exitError
	if err := runPassingSignals(c); !errors.As(err, &exit) || exit.code != 9 {
		t.Errorf("got %v, want exit code 9", err)
	}
}

func TestLabVerbsHaveExamples(t *testing.T) {
	for _, c := range newLabCommand().Commands() {
		if c.Short == "" || !strings.Contains(c.Example, "migrate lab "+c.Name()) {
			t.Errorf("%s: no help or no example", c.Name())
		}
	}
}
