//go:build linux

package moves

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// shell starts a shell with a terminal on host1.
func (s *scope) shell(name string, command ...string) {
	s.Helper()
	s.Run(name, []string{"-t", "--env", "PS1=ready> ", "--env", "TERM=dumb"}, command...)
}

// TestAttach has two operators at one shell, which moves from host to host with its jobs, half a line and the size of its window.
func TestAttach(t *testing.T) {
	s := begin(t, 2*time.Minute)
	s.shell("shell", "/bin/bash", "--norc", "--noprofile", "-i")
	a := s.Terminal("host2", 30, 90, cluster.Migrate, "attach", "shell")
	a.Types("\n")
	a.Await("ready> ")
	a.Types("echo size $(stty size) on $(tty)\n")
	a.Await("size 30 90 on /dev/pts/0")
	b := s.Terminal("host3", 20, 70, cluster.Migrate, "attach", "shell")
	b.Types("echo the second $((1+1)) $(stty size)\n")
	for _, k := range []*cluster.Keyboard{a, b} {
		k.Await("the second 2 20 70")
	}
	a.Types("sleep 1000 &\n")
	a.Await("ready> ")
	for i, to := range []string{"host2", "host3", "host1"} {
		word := fmt.Sprintf("half%d", i)
		a.Types("echo " + word)
		a.Await("echo " + word)
		s.Move("shell", to, "--max-downtime", "10s")
		b.Types("way$((6*7))\n")
		for _, k := range []*cluster.Keyboard{a, b} {
			k.Await("\n" + word + "way42")
		}
	}
	a.Types("jobs; stty size\n")
	if text := a.Await("20 70"); !strings.Contains(text, "Running") {
		t.Errorf("the job is gone: %q", text)
	}
	b.Resize(21, 71)
	a.Types("sh -c 'echo up $((1+1)); exec cat'\n")
	a.Await("up 2\r\n")
	a.Types("typed\n")
	a.Await("typed\r\ntyped")
	s.Move("shell", "host2", "--max-downtime", "10s")
	a.Types("\x03") // the foreground group is cat's
	a.Await("^C\r\nready> ")
	a.Types("stty size\n")
	a.Await("21 71")
	b.Types("\x10\x11")
	if code := b.Code(); code != 0 {
		t.Errorf("detaching exits with %d", code)
	}
	a.Types("exit 7\n")
	if code := a.Code(); code != 7 {
		t.Errorf("attach exits with %d, the program with 7", code)
	}
	s.Fails(7, "host3", cluster.Migrate, "attach", "shell") // it tells of it later, too
	if text := s.On("host1", cluster.Migrate, "logs", "shell"); !strings.Contains(text, "21 71") {
		t.Errorf("the kept output lacks what was printed last: %q", text)
	}
}

// TestAttachLosesNothing types without a pause into a program that prints all that it reads, while it is moved.
func TestAttachLosesNothing(t *testing.T) {
	s := begin(t, 2*time.Minute)
	s.Run("echo", []string{"-t"}, "/bin/sh", "-c", "stty raw -echo; echo begin; x=$(dd bs=1 count=6 2>&-); echo \"got-$x\"; exec cat")
	s.Logs("echo", "begin")
	a := s.Terminal("host3", 24, 80, cluster.Migrate, "attach", "echo")
	a.Types("first;")
	a.Await("got-first;\n") // so the operator's terminal is raw by now, and keeps every byte
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := fmt.Fprintf(a, "%07d;", n); err != nil {
				return
			}
		}
	}()
	for _, to := range []string{"host2", "host1", "host3", "host1"} {
		s.Move("echo", to, "--max-downtime", "10s")
	}
	close(stop)
	n := <-done
	a.Types("last;")
	got := a.Await("last;")
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "%07d;", i)
	}
	want.WriteString("last;")
	if got != want.String() {
		at := 0
		for at < len(got) && at < want.Len() && got[at] == want.String()[at] {
			at++
		}
		t.Fatalf("of %d bytes typed %d came back, other ones from byte %d on: %.80q, after %q", want.Len(), len(got), at, got[at:], got[max(0, at-40):at])
	}
	t.Logf("%d bytes went there and back", want.Len())
}

// TestAttachAgentDies ends the agent that holds the terminal's other end; program and operator go on when there is another one.
func TestAttachAgentDies(t *testing.T) {
	s := begin(t, time.Minute)
	s.shell("orphan", "/bin/bash", "--norc", "--noprofile", "-i")
	a := s.Terminal("host2", 24, 80, cluster.Migrate, "attach", "orphan")
	a.Types("\n")
	a.Await("ready> ")
	if err := cluster.Hosts.Host("host1").SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Hosts.Host("host1").StartAgent(s.Ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AwaitNodes(s.Ctx, 3); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(a.Screen(), "still 4") {
		a.Types("echo still $((2+2))\n") // what is typed while there is no agent may be lost
		select {
		case <-s.Ctx.Done():
			t.Fatal("the shell does not answer")
		case <-time.After(500 * time.Millisecond):
		}
	}
	a.Types("exit 3\n")
	if code := a.Code(); code != 3 {
		t.Errorf("attach exits with %d, the program with 3", code)
	}
}

// TestAttachWithoutTerminal follows the output of a program that was started without one, over a move, and passes its exit code on.
func TestAttachWithoutTerminal(t *testing.T) {
	s := begin(t, time.Minute)
	s.Workload("plain", "", "/bin/sh", "-c", "trap 'echo going; exit 5' USR1; echo up; while :; do sleep 0.1; done")
	s.Logs("plain", "up\n")
	a := s.Terminal("host3", 24, 80, cluster.Migrate, "attach", "plain")
	a.Await("was started without a terminal")
	s.Move("plain", "host2", "--max-downtime", "10s")
	s.On("host2", "kill", "-USR1", fmt.Sprint(s.ps("plain").PID))
	a.Await("going")
	if code := a.Code(); code != 5 {
		t.Errorf("attach exits with %d, the program with 5", code)
	}
	if text := s.Fails(1, "host1", cluster.Migrate, "attach", "nobody"); !strings.Contains(text, "nobody") {
		t.Errorf("no word of the name: %q", text)
	}
}

// TestLogsGoWithTheWorkload follows the output of a program over three moves: each line comes once. Afterwards the end of what it has printed
// elsewhere is still there, and what is followed from then on begins with it.
func TestLogsGoWithTheWorkload(t *testing.T) {
	s := begin(t, time.Minute)
	const lines = 300
	s.Workload("prints", "", "/bin/sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line-$i; i=$((i+1)); sleep 0.01; done", lines))
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line-%d\n", i)
	}
	type result struct {
		text string
		err  error
	}
	followed := make(chan result, 1)
	go func() {
		text, err := cluster.Hosts.Host("host3").Exec(s.Ctx, cluster.Migrate, "logs", "-f", "prints")
		followed <- result{text, err}
	}()
	for _, to := range []string{"host2", "host3", "host1"} {
		s.Move("prints", to, "--max-downtime", "10s")
	}
	r := <-followed
	if r.err != nil || r.text != want.String() {
		t.Errorf("followed: %v, %d bytes of %d: %.200q", r.err, len(r.text), want.Len(), r.text)
	}
	if text := s.On("host2", cluster.Migrate, "logs", "prints"); text != want.String() {
		t.Errorf("kept: %d bytes of %d: %.200q", len(text), want.Len(), text)
	}
}
