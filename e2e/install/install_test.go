//go:build linux

// Package install installs a cluster as an operator would: init on one host, join on the others.
package install

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"migrate/e2e/lab"
	"migrate/engine/kernel/kerneltest"
)

const migrate = "/usr/local/bin/migrate"

// site is hosts on which nothing is installed.
type site struct {
	*testing.T
	ctx   context.Context
	hosts *lab.Lab
}

func bare(t *testing.T, n int) *site {
	t.Helper()
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	state, err := os.MkdirTemp("/var/lib", "migrate-e2e-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	program := filepath.Join(state, "migrate")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "migrate/migrate")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l, err := lab.Up(ctx, lab.Options{StateDir: filepath.Join(state, "lab"), Hosts: n, Program: program, Unenrolled: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	return &site{t, ctx, l}
}

func (s *site) on(host string, args ...string) string {
	s.Helper()
	out, err := s.hosts.Host(host).Exec(s.ctx, args...)
	if err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
	return out
}

// fails runs a command that must fail and say why.
func (s *site) fails(why, host string, args ...string) {
	s.Helper()
	out, err := s.hosts.Host(host).Exec(s.ctx, args...)
	if err == nil || !strings.Contains(err.Error(), why) {
		s.Fatalf("want %q, got %v\n%s", why, err, out)
	}
}

// start starts the agent of a host, as its service manager would, and returns when n hosts are up.
func (s *site) start(host string, n int) {
	s.Helper()
	if err := s.hosts.Host(host).StartAgent(s.ctx); err != nil {
		s.Fatal(err)
	}
	s.await(host, fmt.Sprint(n, " hosts"), func(nodes string) bool { return strings.Count(nodes, `"up": true`) == n })
}

// await asks for the hosts of the cluster until they are as wanted. There is nothing to be told by.
func (s *site) await(host, what string, ok func(nodes string) bool) {
	s.Helper()
	for {
		out, err := s.hosts.Host(host).Exec(s.ctx, migrate, "nodes", "-o", "json")
		if err == nil && ok(out) {
			return
		}
		select {
		case <-s.ctx.Done():
			log, _ := s.hosts.Host(host).AgentLog(context.WithoutCancel(s.ctx))
			s.Fatalf("not %s: %v\n%s\n%s", what, err, out, log)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *site) token(args ...string) string {
	s.Helper()
	return strings.TrimSpace(s.on("host1", append([]string{migrate, "token", "create"}, args...)...))
}

// TestInstall makes a cluster of three servers and a host that is none, moves a program between hosts that have joined, and
// then loses the first server.
func TestInstall(t *testing.T) {
	s := bare(t, 4)
	s.on("host1", migrate, "init", "--advertise", "10.77.0.11", "--bridge", "br0")
	s.fails("belongs to a cluster already", "host1", migrate, "init", "--advertise", "10.77.0.11")
	s.start("host1", 1)
	for i, host := range []string{"host2", "host3"} {
		s.on(host, migrate, "join", "10.77.0.11", "--token", s.token("--server"), "--server", "--bridge", "br0")
		s.start(host, i+2)
		s.await("host1", host+" votes", func(nodes string) bool { return strings.Count(nodes, `"voter": true`) == i+2 })
	}
	s.on("host4", migrate, "join", "10.77.0.11", "--token", s.token(), "--bridge", "br0")
	s.start("host4", 4)
	s.fails("no server of the cluster", "host4", migrate, "token", "create")

	s.on("host1", migrate, "run", "--name", "w", "--host", "host4", "--", "sh", "-c", "while :; do sleep 0.1; done")
	s.on("host1", migrate, "move", "w", "--to", "host2")
	s.fails("is a node, which gives orders for what is on it alone", "host4", migrate, "move", "w", "--to", "host3")
	s.fails("is a node, which gives orders for what is on it alone", "host4", migrate, "stop", "w")
	s.fails("on it alone", "host4", migrate, "logs", "w")
	s.on("host2", migrate, "move", "w", "--to", "host3")
	if err := s.hosts.Host("host1").Kill(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.on("host3", migrate, "move", "w", "--to", "host4")
	if out := s.on("host2", migrate, "ps"); !regexp.MustCompile(`w +host4 `).MatchString(out) {
		t.Errorf("w is elsewhere:\n%s", out)
	}
	s.on("host4", migrate, "move", "w", "--to", "host2") // what is its own
}

// TestTokens: one token lets one host in, once, in time, and only into its own cluster.
func TestTokens(t *testing.T) {
	s := bare(t, 4)
	s.on("host1", migrate, "init", "--advertise", "10.77.0.11")
	s.start("host1", 1)
	const to = "10.77.0.11"
	s.fails("not a whole token", "host2", migrate, "join", to, "--token", "mj1_abc")
	s.fails("with --token", "host2", migrate, "join", to)
	s.fails("no such token", "host2", migrate, "join", to, "--token", forged(t, s.token()))
	s.fails("does not let hosts join", "host2", migrate, "join", "10.77.0.13", "--token", s.token())

	s.on("host4", migrate, "init", "--name", "other", "--advertise", "10.77.0.14")
	if err := s.hosts.Host("host4").StartAgent(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.await("host4", "up", func(nodes string) bool { return strings.Contains(nodes, `"up": true`) })
	s.fails("not the cluster that the token is from", "host2", migrate, "join", "10.77.0.14", "--token", s.token())

	short := s.token("--ttl", "1ms")
	s.fails("expired", "host2", migrate, "join", to, "--token", short)
	s.fails("lets no server join", "host2", migrate, "join", to, "--token", s.token(), "--server")
	s.fails("named \"host1\"", "host2", migrate, "join", to, "--token", s.token(), "--name", "host1")
	s.fails("cannot be called", "host2", migrate, "join", to, "--token", s.token(), "--name", "no/name")

	token := s.token()
	type result struct {
		host string
		err  error
	}
	done := make(chan result, 2)
	for _, host := range []string{"host2", "host3"} {
		go func() {
			_, err := s.hosts.Host(host).Exec(s.ctx, migrate, "join", to, "--token", token)
			done <- result{host, err}
		}()
	}
	a, b := <-done, <-done
	if a.err != nil {
		a, b = b, a
	}
	if a.err != nil || b.err == nil || !strings.Contains(b.err.Error(), "used already, by "+a.host) {
		t.Fatalf("%s: %v; %s: %v", a.host, a.err, b.host, b.err)
	}
	for _, path := range []string{"/etc/migrate/agent.yaml", "/etc/migrate/tls"} {
		if _, err := s.hosts.Host(b.host).Exec(s.ctx, "test", "!", "-e", path); err != nil {
			t.Errorf("%s of the host that was refused: %v", path, err)
		}
	}
	s.fails("used already", b.host, migrate, "join", to, "--token", token)
	s.on(b.host, migrate, "join", to, "--token", s.token())
	if out, err := s.hosts.Host("host1").Exec(s.ctx, "grep", "-rc", token, "/var/lib/migrate", "/etc/migrate"); err == nil {
		t.Errorf("the token is on disk: %s", out)
	}
}

// forged is a token of the same authority with another secret.
func forged(t *testing.T, token string) string {
	t.Helper()
	b := []byte(token)
	if b[5] == 'A' {
		b[5] = 'B'
	} else {
		b[5] = 'A'
	}
	return string(b)
}
