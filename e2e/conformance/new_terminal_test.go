//go:build linux

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// window is a terminal of an operator, with a command in it.
type window struct {
	t       *testing.T
	master  *os.File
	slave   *os.File // held, so that the terminal stays when the command has ended
	cmd     *exec.Cmd
	printed chan []byte
	screen  []byte       // what was printed and not awaited
	before  unix.Termios // the settings of the terminal before the command
}

func openWindow(ctx context.Context, t *testing.T, rows, columns uint16, args ...string) *window {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := &window{t: t, master: os.NewFile(uintptr(fd), "master"), printed: make(chan []byte)}
	err = errors.Join(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
	n, nerr := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, nerr); err != nil {
		t.Fatal(err)
	}
	if w.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	w.before = w.settings()
	w.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	w.cmd.Stdin, w.cmd.Stdout, w.cmd.Stderr = w.slave, w.slave, w.slave
	w.cmd.Env = append(os.Environ(), "PS1=ready> ", "TERM=dumb")
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(w.printed)
		for {
			buf := make([]byte, 4096)
			n, err := w.master.Read(buf)
			select {
			case w.printed <- buf[:n]:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // it may have ended
		_ = w.cmd.Wait()         // it may have been waited for
		close(stop)
		_ = errors.Join(w.master.Close(), w.slave.Close())
		for range w.printed {
		}
	})
	return w
}

// types types a text.
func (w *window) types(text string) {
	w.t.Helper()
	if _, err := w.master.WriteString(text); err != nil {
		w.t.Fatal(err)
	}
}

// await returns what was printed up to a text that was not awaited before.
func (w *window) await(ctx context.Context, text string) string {
	w.t.Helper()
	for {
		if i := bytes.Index(w.screen, []byte(text)); i >= 0 {
			out := string(w.screen[:i+len(text)])
			w.screen = w.screen[i+len(text):]
			return out
		}
		select {
		case more, open := <-w.printed:
			if !open {
				w.t.Fatalf("the terminal is gone without %q: %q", text, w.screen)
			}
			w.screen = append(w.screen, more...)
		case <-ctx.Done():
			w.t.Fatalf("%q does not appear: %q", text, w.screen)
		}
	}
}

// settings are those of the terminal.
func (w *window) settings() unix.Termios {
	w.t.Helper()
	s, err := unix.IoctlGetTermios(int(w.slave.Fd()), unix.TCGETS2)
	if err != nil {
		w.t.Fatal(err)
	}
	return *s
}

// newTerminal takes a shell out of an operator's terminal to disk, and brings it back in another one.
func newTerminal(ctx context.Context, t *testing.T, bin string) {
	t.Helper()
	w := &workload{bin: bin, dir: t.TempDir(), exited: make(chan struct{})}
	a := openWindow(ctx, t, 30, 90, "/bin/sh", "-c", "/bin/bash --norc --noprofile -i; echo 'the shell is gone'; cat")
	a.await(ctx, "ready> ")
	a.types("stty -ixon; x=kept; echo shell$((0))=$$.\n")
	a.await(ctx, "shell0=")
	pid, err := strconv.Atoi(strings.TrimSuffix(a.await(ctx, "."), "."))
	if err != nil {
		t.Fatal(err)
	}
	a.await(ctx, "ready> ")
	w.pid = pid
	close(w.exited) // the shell around it waits for it
	if text := w.refuses(ctx, t); !strings.Contains(text, "--tty new") {
		t.Errorf("the refusal does not name the remedy:\n%s", text)
	}
	image := w.dump(ctx, t, "--tty", "new")
	a.await(ctx, "the shell is gone")
	for _, flags := range [][]string{nil, {"--detach"}, {"--tty", "new"}} {
		out, err := exec.CommandContext(ctx, w.bin, append([]string{"restore", "--dir", image}, flags...)...).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("terminal")) {
			t.Fatalf("restored without a terminal, with %q: %v\n%s", flags, err, out)
		}
	}
	b := openWindow(ctx, t, 20, 70, w.bin, "restore", "--dir", image, "--tty", "new")
	b.types("\n")
	b.await(ctx, "ready> ")
	b.types("echo $x $$ $(stty size) $(stty -a | grep -o -- '-ixon ')\n")
	b.await(ctx, fmt.Sprintf("kept %d 20 70 -ixon", pid))
	b.types("sh -c 'echo up$((1+1)); exec cat'\n")
	b.await(ctx, "up2\r\n")
	b.types("typed\n")
	b.await(ctx, "typed\r\ntyped\r\n") // by the terminal and by cat
	b.types("\x03")                    // the foreground group is that of cat
	b.await(ctx, "ready> ")
	b.types("exit 6\n")
	err = b.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 6 {
		t.Errorf("the restore ends with %v, the shell with 6", err)
	}
	if after := b.settings(); after != b.before {
		t.Errorf("the terminal has the settings %+v, and had %+v", after, b.before)
	}
}
