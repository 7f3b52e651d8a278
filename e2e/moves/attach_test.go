//go:build linux

package moves

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/e2e/cluster"
	"migrate/e2e/lab"
)

// keyboard is a terminal of an operator, with a command on it.
type keyboard struct {
	s      *scope
	master *os.File
	cmd    *lab.Cmd

	mu      sync.Mutex
	arrived chan struct{} // of capacity 1: screen has grown, or ended
	screen  bytes.Buffer  // all that was printed
	read    int           // of it, by await
	ended   bool
}

// terminal runs a command of a host on a terminal of its own. It ends with the test.
func (s *scope) terminal(host string, rows, columns uint16, args ...string) *keyboard {
	s.Helper()
	master, slave := s.pty(rows, columns)
	k := &keyboard{s: s, master: master, arrived: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(s.Ctx)
	k.cmd = cluster.Hosts.Host(host).Command(ctx, args...)
	k.cmd.Stdin, k.cmd.Stdout, k.cmd.Stderr = slave, slave, slave
	err := errors.Join(k.cmd.Start(), slave.Close())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.watch()
	}()
	s.Cleanup(func() {
		cancel()
		_ = k.cmd.Wait() // it may have been waited for
		_ = master.Close()
		<-done
		if s.Failed() {
			text := k.screen.String()
			s.Logf("the end of the screen of %v: %q", args, text[max(0, len(text)-1000):])
		}
	})
	if err != nil {
		s.Fatal(err)
	}
	return k
}

// pty makes a pseudoterminal.
func (s *scope) pty(rows, columns uint16) (master, slave *os.File) {
	s.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		err = errors.Join(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
			unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
	}
	if err != nil {
		s.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		s.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		s.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "master"), slave
}

func (k *keyboard) watch() {
	buf := make([]byte, 32<<10)
	for {
		n, err := k.master.Read(buf)
		k.mu.Lock()
		k.screen.Write(buf[:n])
		k.ended = err != nil
		k.mu.Unlock()
		select {
		case k.arrived <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (k *keyboard) types(text string) {
	k.s.Helper()
	if _, err := k.master.WriteString(text); err != nil {
		k.s.Fatal(err)
	}
}

// await returns what was printed up to a text that was not awaited before.
func (k *keyboard) await(text string) string {
	k.s.Helper()
	for {
		k.mu.Lock()
		rest, ended := k.screen.String()[k.read:], k.ended
		i := strings.Index(rest, text)
		if i >= 0 {
			k.read += i + len(text)
		}
		k.mu.Unlock()
		if i >= 0 {
			return rest[:i+len(text)]
		}
		if ended {
			k.s.Fatalf("the terminal's program has ended without %q", text)
		}
		select {
		case <-k.arrived:
		case <-k.s.Ctx.Done():
			k.s.Fatalf("%q does not appear", text)
		}
	}
}

// resize gives the operator's window another size.
func (k *keyboard) resize(rows, columns uint16) {
	k.s.Helper()
	rc, err := k.master.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) {
			if err := unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
				k.s.Error(err)
			}
		})
	}
	if err == nil { // the command is in a session without the terminal, so the kernel does not tell it
		err = syscall.Kill(k.cmd.PIDOutside, syscall.SIGWINCH)
	}
	if err != nil {
		k.s.Fatal(err)
	}
}

// code waits for the end of the command.
func (k *keyboard) code() int {
	k.s.Helper()
	err := k.cmd.Wait()
	var exit *lab.ExitError
	if err != nil && !errors.As(err, &exit) {
		k.s.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

// shell starts a shell with a terminal on host1.
func (s *scope) shell(name string, command ...string) {
	s.Helper()
	s.Run(name, []string{"-t", "--env", "PS1=ready> ", "--env", "TERM=dumb"}, command...)
}

// TestAttach has two operators at one shell, which moves from host to host with its jobs, half a line and the size of its window.
func TestAttach(t *testing.T) {
	s := begin(t, 2*time.Minute)
	s.shell("shell", "/bin/bash", "--norc", "--noprofile", "-i")
	a := s.terminal("host2", 30, 90, cluster.Migrate, "attach", "shell")
	a.types("\n")
	a.await("ready> ")
	a.types("echo size $(stty size) on $(tty)\n")
	a.await("size 30 90 on /dev/pts/0")
	b := s.terminal("host3", 20, 70, cluster.Migrate, "attach", "shell")
	b.types("echo the second $((1+1)) $(stty size)\n")
	for _, k := range []*keyboard{a, b} {
		k.await("the second 2 20 70")
	}
	a.types("sleep 1000 &\n")
	a.await("ready> ")
	for i, to := range []string{"host2", "host3", "host1"} {
		word := fmt.Sprintf("half%d", i)
		a.types("echo " + word)
		a.await("echo " + word)
		s.Move("shell", to, "--max-downtime", "10s")
		b.types("way$((6*7))\n")
		for _, k := range []*keyboard{a, b} {
			k.await("\n" + word + "way42")
		}
	}
	a.types("jobs; stty size\n")
	if text := a.await("20 70"); !strings.Contains(text, "Running") {
		t.Errorf("the job is gone: %q", text)
	}
	b.resize(21, 71)
	a.types("sh -c 'echo up $((1+1)); exec cat'\n")
	a.await("up 2\r\n")
	a.types("typed\n")
	a.await("typed\r\ntyped")
	s.Move("shell", "host2", "--max-downtime", "10s")
	a.types("\x03") // the foreground group is cat's
	a.await("^C\r\nready> ")
	a.types("stty size\n")
	a.await("21 71")
	b.types("\x10\x11")
	if code := b.code(); code != 0 {
		t.Errorf("detaching exits with %d", code)
	}
	a.types("exit 7\n")
	if code := a.code(); code != 7 {
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
	a := s.terminal("host3", 24, 80, cluster.Migrate, "attach", "echo")
	a.types("first;")
	a.await("got-first;\n") // so the operator's terminal is raw by now, and keeps every byte
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
			if _, err := fmt.Fprintf(a.master, "%07d;", n); err != nil {
				return
			}
		}
	}()
	for _, to := range []string{"host2", "host1", "host3", "host1"} {
		s.Move("echo", to, "--max-downtime", "10s")
	}
	close(stop)
	n := <-done
	a.types("last;")
	got := a.await("last;")
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
	a := s.terminal("host2", 24, 80, cluster.Migrate, "attach", "orphan")
	a.types("\n")
	a.await("ready> ")
	if err := cluster.Hosts.Host("host1").SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Hosts.Host("host1").StartAgent(s.Ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AwaitNodes(s.Ctx, 3); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(a.screen.String(), "still 4") {
		a.types("echo still $((2+2))\n") // what is typed while there is no agent may be lost
		select {
		case <-s.Ctx.Done():
			t.Fatal("the shell does not answer")
		case <-time.After(500 * time.Millisecond):
		}
	}
	a.types("exit 3\n")
	if code := a.code(); code != 3 {
		t.Errorf("attach exits with %d, the program with 3", code)
	}
}

// TestAttachWithoutTerminal follows the output of a program that was started without one, over a move, and passes its exit code on.
func TestAttachWithoutTerminal(t *testing.T) {
	s := begin(t, time.Minute)
	s.Workload("plain", "", "/bin/sh", "-c", "trap 'echo going; exit 5' USR1; echo up; while :; do sleep 0.1; done")
	s.Logs("plain", "up\n")
	a := s.terminal("host3", 24, 80, cluster.Migrate, "attach", "plain")
	a.await("was started without a terminal")
	s.Move("plain", "host2", "--max-downtime", "10s")
	s.On("host2", "kill", "-USR1", fmt.Sprint(s.ps("plain").PID))
	a.await("going")
	if code := a.code(); code != 5 {
		t.Errorf("attach exits with %d, the program with 5", code)
	}
	if text := s.Fails(1, "host1", cluster.Migrate, "attach", "nobody"); !strings.Contains(text, "nobody") {
		t.Errorf("no word of the name: %q", text)
	}
}
