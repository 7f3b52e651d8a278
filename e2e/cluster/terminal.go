//go:build linux

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"migrate/e2e/lab"
)

// Keyboard is a terminal of an operator, with a command on it.
type Keyboard struct {
	s      *Scope
	master *os.File
	cmd    *lab.Cmd

	mu      sync.Mutex
	arrived chan struct{} // of capacity 1: screen has grown, or ended
	screen  bytes.Buffer  // all that was printed
	read    int           // of it, by Await
	ended   bool
}

// Terminal runs a command of a host on a terminal of its own. It ends with the test.
func (s *Scope) Terminal(host string, rows, columns uint16, args ...string) *Keyboard {
	s.Helper()
	master, slave := s.pty(rows, columns)
	k := &Keyboard{s: s, master: master, arrived: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(s.Ctx)
	k.cmd = Hosts.Host(host).Command(ctx, args...)
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
func (s *Scope) pty(rows, columns uint16) (master, slave *os.File) {
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

func (k *Keyboard) watch() {
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

// Types types a text.
func (k *Keyboard) Types(text string) {
	k.s.Helper()
	if _, err := k.master.WriteString(text); err != nil {
		k.s.Fatal(err)
	}
}

// Await returns what was printed up to a text that was not awaited before.
func (k *Keyboard) Await(text string) string {
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

// Resize gives the operator's window another size.
func (k *Keyboard) Resize(rows, columns uint16) {
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

// Code waits for the end of the command.
func (k *Keyboard) Code() int {
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

// Screen is all that was printed.
func (k *Keyboard) Screen() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.screen.String()
}

// Write types bytes as they are, from any goroutine.
func (k *Keyboard) Write(p []byte) (int, error) { return k.master.Write(p) }
