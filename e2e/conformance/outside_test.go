//go:build linux

package conformance

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// daemons serve a socket of each type in a directory. They greet whoever connects, then send "left", and note what they hear.
type daemons struct {
	t     *testing.T
	heard chan string
}

func startDaemons(ctx context.Context, t *testing.T, dir string) *daemons {
	t.Helper()
	d := &daemons{t: t, heard: make(chan string, 100)}
	var lc net.ListenConfig
	for network, name := range map[string]string{"unix": "stream", "unixpacket": "seqpacket"} {
		l, err := lc.Listen(ctx, network, filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := os.Chmod(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { _ = c.Close() })
				go d.serve(c, name)
			}
		}()
	}
	c, err := lc.ListenPacket(ctx, "unixgram", filepath.Join(dir, "dgram"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := os.Chmod(filepath.Join(dir, "dgram"), 0o777); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 64)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			d.heard <- "dgram " + string(buf[:n])
		}
	}()
	return d
}

func (d *daemons) serve(c net.Conn, name string) {
	buf := make([]byte, 64)
	client, err := clientOf(c)
	if err != nil {
		d.t.Error(err)
		return
	}
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		d.heard <- fmt.Sprintf("%s %s by %s", name, buf[:n], client)
		for _, text := range []string{"welcome", "left"} {
			if string(buf[:n]) == "hello" {
				_, _ = io.WriteString(c, text) // the program will miss it
			}
		}
	}
}

// clientOf is who the kernel says is at the other end of a connection (SO_PEERCRED).
func clientOf(c net.Conn) (string, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return "", fmt.Errorf("a connection of type %T", c)
	}
	rc, err := u.SyscallConn()
	if err != nil {
		return "", err
	}
	var cred *unix.Ucred
	cerr := rc.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr); err != nil {
		return "", err
	}
	return fmt.Sprintf("process %d, user %d, group %d", cred.Pid, cred.Uid, cred.Gid), nil
}

// hear awaits a word of a program from every daemon; those of connections know who it is.
func (d *daemons) hear(ctx context.Context, w *workload, word string) {
	d.t.Helper()
	by := fmt.Sprintf(" by process %d, user 1, group 2", w.pid)
	want := map[string]bool{"stream " + word + by: true, "seqpacket " + word + by: true, "dgram " + word: true}
	for len(want) > 0 {
		select {
		case h := <-d.heard:
			if !want[h] {
				d.t.Fatalf("a daemon hears %q, want one of %v", h, want)
			}
			delete(want, h)
		case <-ctx.Done():
			d.t.Fatalf("the daemons do not hear %v", want)
		}
	}
}

// TestOutside refuses by name what is half outside of a tree, and carries it as it is told to.
func TestOutside(t *testing.T) {
	kerneltest.Root(t)
	bin := build(t)
	for name, test := range map[string]func(ctx context.Context, t *testing.T, bin string){
		"unix-reconnect": func(ctx context.Context, t *testing.T, bin string) { externalUnix(ctx, t, bin, "reconnect") },
		"unix-null":      func(ctx context.Context, t *testing.T, bin string) { externalUnix(ctx, t, bin, "null") },
		"inherit-fd":     inheritFD,
		"tty-new":        newTerminal,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			test(ctx, t, bin)
		})
	}
}

// externalUnix is about connections to daemons.
func externalUnix(ctx context.Context, t *testing.T, bin, how string) {
	t.Helper()
	dir := t.TempDir()
	if how == "reconnect" {
		if err := os.WriteFile(filepath.Join(dir, how), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openUp(t, dir)
	d := startDaemons(ctx, t, dir)
	w := start(ctx, t, bin, dir, compile(ctx, t, "testdata/outside_unix.c"))
	d.hear(ctx, w, "hello")
	text := w.refuses(ctx, t)
	var flags []string
	for _, name := range []string{"stream", "seqpacket", "dgram"} {
		flags = append(flags, "--external-unix", filepath.Join(dir, name)+"="+how)
	}
	// The first that is met is named. A socket that only sends datagrams is connected anew in any case.
	if want := "--external-unix " + filepath.Join(dir, "stream") + "=reconnect"; !strings.Contains(text, want) {
		t.Errorf("no %q is named as a remedy:\n%s", want, text)
	}
	image := w.dump(ctx, t, flags...)
	w.mustBeGone(t)
	if how == "reconnect" {
		w.restoreGreeted(ctx, t, image, d)
		return
	}
	w.restore(ctx, t, image)
	w.check(ctx, t)
}

// restoreGreeted restores a program whose daemons greet it anew.
func (w *workload) restoreGreeted(ctx context.Context, t *testing.T, image string, d *daemons) {
	t.Helper()
	w.restore(ctx, t, image)
	if err := unix.Kill(w.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.hear(ctx, w, "after")
	if result := strings.TrimSpace(w.await(ctx, t, "result")); result != "pass" {
		t.Fatal(result)
	}
}

// refuses returns what a dump says that must be refused, with the program running on.
func (w *workload) refuses(ctx context.Context, t *testing.T, flags ...string) string {
	t.Helper()
	args := append([]string{"dump", "--pid", strconv.Itoa(w.pid), "--dir", filepath.Join(t.TempDir(), "refused")}, flags...)
	out, err := exec.CommandContext(ctx, w.bin, args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the dump was not refused: %v\n%s", err, out)
	}
	if err := unix.Kill(w.pid, 0); err != nil {
		t.Fatalf("the program is gone: %v", err)
	}
	return string(out)
}

// inheritFD gives a program whose output goes through a pipe to a logger another pipe when it comes back.
func inheritFD(ctx context.Context, t *testing.T, bin string) {
	t.Helper()
	w := &workload{bin: bin, dir: t.TempDir(), exited: make(chan struct{})}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "trap 'echo again; exit' TERM; echo first; while :; do sleep 0.05 >/dev/null; done")
	cmd.Stdin, cmd.SysProcAttr = nil, &syscall.SysProcAttr{Setsid: true}
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	cmd.Stdout = out
	if err := errors.Join(cmd.Start(), out.Close()); err != nil {
		t.Fatal(err)
	}
	w.pid = cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		close(w.exited)
	}()
	t.Cleanup(func() { _ = unix.Kill(-w.pid, unix.SIGKILL); <-w.exited })
	lines := bufio.NewReader(r)
	if line, err := lines.ReadString('\n'); err != nil || line != "first\n" {
		t.Fatalf("%q, %v", line, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(r.Fd()), &st); err != nil { // the shell puts its own descriptor aside now and then
		t.Fatal(err)
	}
	name := fmt.Sprintf("pipe:[%d]", st.Ino)
	if text := w.refuses(ctx, t); !strings.Contains(text, "--external "+name) {
		t.Errorf("the refusal does not name the remedy:\n%s", text)
	}
	image := w.dump(ctx, t, "--external", name)
	w.mustBeGone(t)
	if out, err := exec.CommandContext(ctx, w.bin, "restore", "--dir", image, "--detach").CombinedOutput(); err == nil || !bytes.Contains(out, []byte("--inherit-fd")) {
		t.Fatalf("restored without it: %v\n%s", err, out)
	}
	back := exec.CommandContext(ctx, w.bin, "restore", "--dir", image, "--detach", "--inherit-fd", "fd[3]:"+name)
	r2, out2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r2.Close() }()
	back.ExtraFiles = []*os.File{out2}
	text, err := back.CombinedOutput()
	if err := errors.Join(err, out2.Close(), unix.Kill(w.pid, unix.SIGTERM)); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if all, err := io.ReadAll(r2); err != nil || string(all) != "again\n" {
		t.Errorf("the new logger gets %q, %v", all, err)
	}
}
