//go:build linux

package console

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/files"
	"migrate/engine/images/imagespb"
	"migrate/engine/kernel/kerneltest"
)

// rig is a terminal with a console, and its program's end.
type rig struct {
	*testing.T
	ctx           context.Context
	master, slave *os.File
	path          string
	log           *os.File
	from          uint64
	c             *Console
}

func newRig(t *testing.T) *rig {
	t.Helper()
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	r := &rig{T: t, ctx: ctx, path: filepath.Join(t.TempDir(), "output")}
	var err error
	r.master, r.slave, err = files.OpenTerminal("/", &imagespb.SessionTerminal{Path: "/dev/ptmx", Rdev: uint32(unix.Mkdev(136, 0)), Flags: unix.O_RDWR, Rows: 24, Columns: 80, Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	termios, err := unix.IoctlGetTermios(int(r.slave.Fd()), unix.TCGETS2)
	if err == nil {
		termios.Lflag, termios.Oflag = 0, 0
		termios.Cc[unix.VMIN] = 1
		err = unix.IoctlSetTermios(int(r.slave.Fd()), unix.TCSETS2, termios)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.master.Close() })
	t.Cleanup(func() { _ = r.slave.Close() })
	return r
}

// open begins to read the terminal, as an agent does that starts.
func (r *rig) open(base uint64, taken map[string]uint64, paused bool) {
	r.Helper()
	fd, err := unix.FcntlInt(r.master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		r.Fatal(err)
	}
	log, err := os.OpenFile(r.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err == nil {
		r.log, err = os.Open(r.path)
	}
	if err == nil {
		r.c, err = Open(os.NewFile(uintptr(fd), "master"), log, "g", base, taken, paused)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = r.c.Close() })
}

func (r *rig) prints(text string) {
	r.Helper()
	if _, err := r.slave.WriteString(text); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) shows(text string) {
	r.Helper()
	var got strings.Builder
	buf := make([]byte, 64)
	for got.Len() < len(text) {
		n, err := r.c.Read(r.ctx, r.log, r.from, buf, "s", r.c.Taken("s"))
		if err != nil {
			r.Fatalf("%v after %q", err, got.String())
		}
		got.Write(buf[:n])
		r.from += uint64(n)
	}
	if got.String() != text {
		r.Fatalf("%q, want %q", got.String(), text)
	}
}

func (r *rig) hears(text string) {
	r.Helper()
	buf := make([]byte, 64)
	n, err := r.slave.Read(buf)
	if err != nil || string(buf[:n]) != text {
		r.Fatalf("the program reads %q, %v; want %q", buf[:n], err, text)
	}
}

// TestCounts goes on at another host where it left off.
func TestCounts(t *testing.T) {
	r := newRig(t)
	r.open(0, nil, false)
	if from, taken, known := r.c.Begin("s", "", 0, false); from != 0 || taken != 0 || !known {
		t.Fatal(from, taken, known)
	}
	r.prints("one")
	r.shows("one")
	if err := r.c.Write(r.ctx, "s", 0, []byte("typed")); err != nil {
		t.Fatal(err)
	}
	r.hears("typed")
	if err := r.c.Write(r.ctx, "s", 3, []byte("ed more")); err != nil { // the beginning is known already
		t.Fatal(err)
	}
	r.hears(" more")
	if err := r.c.Write(r.ctx, "s", 11, []byte("x")); err == nil {
		t.Error("a gap in what was typed is taken")
	}
	r.c.Pause()
	st, err := r.c.Snapshot()
	if err != nil || st.Validate() != nil || st.Output != 3 || string(st.Tail) != "one" || st.Taken["s"] != 10 {
		t.Fatalf("%+v, %v", st, err)
	}
	if err := r.c.Close(); err != nil {
		t.Fatal(err)
	}
	// There, the file begins later.
	if err := os.WriteFile(r.path, st.Tail[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	r.open(1, st.Taken, false)
	if from, taken, known := r.c.Begin("s", "g", 2, false); from != 2 || taken != 10 || !known {
		t.Error(from, taken, known)
	}
	if from, _, known := r.c.Begin("s", "other", 2, false); from != 3 || !known {
		t.Error(from, known)
	}
	if from, _, known := r.c.Begin("late", "g", 0, false); from != 1 || known {
		t.Error(from, known)
	}
	r.from = 2
	r.shows("e")
	r.prints("two")
	r.shows("two")
}

// TestPause leaves everything in the terminal.
func TestPause(t *testing.T) {
	r := newRig(t)
	r.open(0, nil, false)
	r.prints("before")
	r.shows("before")
	r.c.Pause()
	r.prints("waits")
	ctx, cancel := context.WithTimeout(r.ctx, 50*time.Millisecond)
	defer cancel()
	if n, err := r.c.Read(ctx, r.log, r.from, make([]byte, 8), "s", 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d, %v", n, err)
	}
	if err := r.c.Write(ctx, "s", 0, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := r.c.Resize(5, 6); err != nil {
		t.Fatal(err)
	}
	if w, err := unix.IoctlGetWinsize(int(r.slave.Fd()), unix.TIOCGWINSZ); err != nil || w.Row != 24 {
		t.Error(w, err)
	}
	r.c.Resume()
	r.shows("waits")
	if w, err := unix.IoctlGetWinsize(int(r.slave.Fd()), unix.TIOCGWINSZ); err != nil || w.Row != 5 || w.Col != 6 {
		t.Error(w, err)
	}
}

// TestEnd gives all that was printed before it says that there will be no more.
func TestEnd(t *testing.T) {
	r := newRig(t)
	r.open(0, nil, false)
	r.prints("the last words")
	if err := r.slave.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.c.Close(); err != nil {
		t.Fatal(err)
	}
	r.shows("the last words")
	if _, err := r.c.Read(r.ctx, r.log, r.from, make([]byte, 8), "s", 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := r.c.Write(r.ctx, "s", 0, []byte("x")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// TestStateBounds refuses counts that make no sense.
func TestStateBounds(t *testing.T) {
	for _, s := range []State{{Output: 1, Tail: []byte("two")}, {Output: 1 << 20, Tail: make([]byte, MaxTail+1)}, {Generation: strings.Repeat("x", 65)}} {
		if s.Validate() == nil {
			t.Errorf("%d bytes of %d, generation of %d: taken", len(s.Tail), s.Output, len(s.Generation))
		}
	}
}
