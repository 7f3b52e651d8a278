//go:build linux

package moves

import (
	"context"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestNewTerminal moves a shell out of an operator's session and terminal; at the destination it has another one, to attach to.
func TestNewTerminal(t *testing.T) {
	s := begin(t, time.Minute)
	outer := s.Terminal("host1", 30, 90, "/usr/bin/env", "PS1=ready> ", "TERM=dumb", "setsid", "--ctty", "--wait",
		"/bin/sh", "-c", "/bin/bash --norc --noprofile -i; echo 'the shell is gone'; cat")
	outer.Types("\n")
	outer.Await("ready> ")
	outer.Types("stty -ixon; x=kept; trap 'echo drawn' WINCH; echo shell$((0))=$$.\n")
	outer.Await("shell0=")
	pid := strings.TrimSuffix(outer.Await("."), ".")
	outer.Await("ready> ")
	text := s.Fails(1, "host1", cluster.Migrate, "move", "--pid", pid, "--to", "host2")
	s.mention(text, "terminal", "--tty new", pid)
	r := s.MoveOn("host1", "--pid", pid, "--to", "host2", "--tty", "new", "--max-downtime", "10s")
	name := s.nameOf("host2", r.DestinationPID)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := cluster.Hosts.Host("host1").Exec(ctx, cluster.Migrate, "stop", name, "--grace", "1s"); err != nil && !strings.Contains(err.Error(), "ended") {
			t.Errorf("stopping %s: %v", name, err)
		}
	})
	outer.Await("the shell is gone")
	a := s.Terminal("host3", 20, 70, cluster.Migrate, "attach", name)
	a.Types("\n")
	a.Await("ready> ")
	a.Types("echo $x $(stty size) $(stty -a | grep -o -- '-ixon ')\n")
	a.Await("kept 20 70 -ixon")
	s.Move(name, "host3", "--max-downtime", "10s")
	a.Types("sh -c 'echo up$((1+1)); exec cat'\n")
	a.Await("up2\r\n")
	a.Types("typed\n")
	a.Await("typed\r\ntyped\r\n") // by the terminal and by cat
	a.Types("\x03")
	a.Await("ready> ")
	a.Types("exit 6\n")
	if code := a.Code(); code != 6 {
		t.Errorf("attach exits with %d, the shell with 6", code)
	}
}

// TestExternalUnix moves a program that is connected to a daemon of its host; at the destination it talks to the daemon there.
func TestExternalUnix(t *testing.T) {
	s := begin(t, time.Minute)
	const path = "/run/outside.sock"
	daemon := s.Script("daemon.py")
	for _, host := range []string{"host1", "host2"} {
		s.On(host, "rm", "-f", path)
		ctx, cancel := context.WithCancel(s.Ctx)
		cmd := cluster.Hosts.Host(host).Command(ctx, "/usr/bin/python3", daemon, path, host)
		if err := cmd.Start(); err != nil {
			cancel()
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cancel()
			_ = cmd.Wait() // it was killed
		})
		s.On(host, "timeout", "30", "sh", "-c", "until [ -S "+path+" ]; do sleep 0.05; done")
	}
	s.Workload("client", "", "/usr/bin/python3", s.Script("asks.py"), path)
	s.Logs("client", "it is host1\n")
	text := s.Fails(3, "host1", cluster.Migrate, "plan", "client", "--to", "host2")
	s.mention(text, path, "--external-unix")
	s.Move("client", "host2", "--external-unix", path+"=reconnect", "--max-downtime", "10s")
	s.Logs("client", "it is host2\n")
}
