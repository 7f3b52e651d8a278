//go:build linux

package programs

import (
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestShellAtTerminal moves an interactive bash with job control: a job in the background, a stopped one, an editor of the line with
// its history, variables and functions, and a builtin that waits for a line.
func TestShellAtTerminal(t *testing.T) {
	s := begin(t, time.Minute)
	s.Run("shell", []string{"-t", "--env", "PS1=ready> ", "--env", "TERM=xterm", "--env", "HISTFILE="}, "/bin/bash", "--norc", "--noprofile", "-i")
	k := s.Terminal("host3", 30, 100, cluster.Migrate, "attach", "shell")
	k.Types("bind 'set enable-bracketed-paste off'; echo up $((6*7))\n")
	k.Await("up 42\r\n")
	move := func(to string) { s.Move("shell", to, "--files", "shared", "--max-downtime", "5s") }

	// Of what is typed the terminal shows the line first, so the answers are written otherwise than the questions.
	k.Types("f() { echo \"f of $1 says $((x+$1))\"; }; x=40\n")
	k.Types("(while :; do sleep 0.01; done) &\n")
	k.Types("cat | sed -u 's/^/seen /'\n")
	k.Types("one\n")
	k.Await("seen one\r\n")
	k.Types("\x1a") // ^Z
	k.Await("Stopped")
	k.Types("read -p \"ask$((1+1))> \" answer rest\n")
	k.Await("ask2> ")
	k.Types("half")
	k.Await("half")
	move("host2")
	k.Types("way through\n") // read still waits, and has the first half
	k.Types("echo \"<$answer><$rest>\"\n")
	k.Await("<halfway><through>\r\n")
	k.Types("jobs\n")
	jobs := k.Await("Stopped") + k.Await("\r\n")
	if !strings.Contains(jobs, "Running") {
		t.Errorf("the job in the background is gone: %q", jobs)
	}
	k.Types("f 2\n")
	k.Await("f of 2 says 42\r\n")
	k.Types("fg\n")
	k.Await("sed -u") // it prints the job that goes on
	k.Types("two\n")
	k.Await("seen two\r\n")
	move("host1") // in the foreground now
	k.Types("three\n")
	k.Await("seen three\r\n")
	k.Types("\x04") // the end of its input
	k.Await("ready> ")
	k.Types("\x1b[A\x1b[A5\n") // up to "f 2", which becomes "f 25"
	k.Await("f of 25 says 65\r\n")
	k.Await("ready> ")       // before it, keys of control are the terminal's
	k.Types("\x12<$ans\n\n") // a search in the history, which the first newline ends
	k.Await("<halfway><through>\r\n")
	k.Resize(31, 101)
	k.Types("until [ \"$(stty size)\" = '31 101' ]; do sleep 0.01; done; echo resized $((x+1))\n")
	k.Await("resized 41\r\n")
	k.Types("kill %1; wait %1; echo killed $?\n")
	k.Await("killed 143\r\n")
	k.Types("exit 9\n")
	if code := k.Code(); code != 9 {
		t.Errorf("attach exits with %d, the shell with 9", code)
	}
}
