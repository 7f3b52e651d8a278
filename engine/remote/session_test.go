package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

func open(t testing.TB, ctx context.Context, tracer *ptrace.Tracer, tid int) *Session {
	t.Helper()
	s, err := Open(ctx, tracer, tid, Options{Lease: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeSession(t testing.TB, s *Session) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// ids runs a batch that asks for the thread's ids.
func ids(t testing.TB, ctx context.Context, c Caller) {
	t.Helper()
	var b Batch
	pid, tid := b.Call(unix.SYS_GETPID), b.Call(unix.SYS_GETTID)
	if err := c.Run(ctx, &b); err != nil || int(pid.value) != c.PID() || int(tid.value) != c.TID() {
		t.Errorf("the batch ran in thread %d of %d, not %d of %d: %v", tid.value, pid.value, c.TID(), c.PID(), err)
	}
}

func TestSessionOfRunningProgram(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	for range 20 {
		s := open(t, ctx, tracer, g.pid)
		ids(t, ctx, s)
		closeSession(t, s)
		g.counting(t)
	}
	g.unharmed(t)
}

// waits are the calls that a session interrupts, with what they come to when their time is over.
var waits = []struct {
	mode         string
	result, err  int64
	fromTheStart bool // the stop makes the call wait for its whole time again
}{
	{"nanosleep", 0, 0, false},
	{"poll", 0, 0, false},
	{"futex", -1, int64(unix.ETIMEDOUT), false},
	{"epoll_wait", 0, 0, true},
	{"select", 0, 0, false},
	{"sigtimedwait", -1, int64(unix.EAGAIN), true},
	{"recv", -1, int64(unix.EAGAIN), true},
}

// tries is how often a wait is measured: what the machine does besides makes it longer, and not each time.
const tries = 8

func TestSessionOfSleepingProgram(t *testing.T) {
	tracer, ctx := newTracer(t)
	for _, w := range waits {
		t.Run(w.mode, func(t *testing.T) {
			most := 700 * time.Millisecond
			if w.fromTheStart {
				most += 300 * time.Millisecond
			}
			for try := 1; ; try++ {
				g := startTarget(t, w.mode, 600)
				time.Sleep(100 * time.Millisecond) // so that part of its time is over
				s := open(t, ctx, tracer, g.pid)
				ids(t, ctx, s)
				closeSession(t, s)
				to := most
				if try < tries {
					to = time.Minute
				}
				took := g.ends(t, w.result, w.err, 590*time.Millisecond, to)
				if w.mode != "sigtimedwait" {
					g.unharmed(t)
				}
				if took <= most || try == tries {
					break
				}
			}
		})
	}
}

// TestSignalDuringSession sends a signal with a handler while the thread is borrowed. The interrupted call must end as
// it would have, both when the session is closed and when its tracer dies.
func TestSignalDuringSession(t *testing.T) {
	tests := []struct {
		mode    string
		restart int // 1: a handler without SA_RESTART, 2: with
		ends    bool
	}{
		{"pause", 1, true}, {"pause", 2, true}, {"nanosleep", 2, true}, {"epoll_wait", 2, true},
		{"read", 1, true}, {"read", 2, false}, {"sigsuspend", 1, true},
	}
	for _, how := range []string{"closed", "abandoned"} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/%s/%d", how, tt.mode, tt.restart), func(t *testing.T) {
				tracer, ctx := newTracer(t)
				g := startTarget(t, tt.mode, 60_000, tt.restart)
				s := open(t, ctx, tracer, g.pid)
				if err := unix.Kill(g.pid, unix.SIGUSR1); err != nil {
					t.Fatal(err)
				}
				ids(t, ctx, s)
				if g.word(signals) != 0 {
					t.Error("the handler ran while the thread was borrowed")
				}
				if how == "closed" {
					closeSession(t, s)
				} else {
					abandon(t, s)
				}
				until(t, "the handler", func() bool { return g.word(signals) == 1 })
				if tt.ends {
					g.ends(t, -1, int64(unix.EINTR), 0, 10*time.Second)
				} else if time.Sleep(50 * time.Millisecond); g.word(done) != 0 {
					t.Error("the call ended although its handler restarts it")
				}
			})
		}
	}
}

// abandon does to a session what the death of its tracer does.
func abandon(t testing.TB, s *Session) {
	t.Helper()
	s.tending()
	s.tended.Wait()
	s.tracer.Close()
	if err := errors.Join(s.socket.Close(), s.space.release()); err != nil {
		t.Error(err)
	}
}

func TestSessionOfStoppedProgram(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "stoploop")
	state := func() string { s, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.pid)); return string(s) }
	stopped := func() bool { return bytes.Contains([]byte(state()), []byte(") T ")) }
	until(t, "SIGSTOP", stopped)
	s := open(t, ctx, tracer, g.pid)
	if s.Stopped().Held != unix.SIGSTOP {
		t.Errorf("found in %+v", s.Stopped())
	}
	ids(t, ctx, s)
	closeSession(t, s)
	until(t, "SIGSTOP to hold again", stopped)
	other := ptrace.New()
	s = open(t, ctx, other, g.pid)
	abandon(t, s)
	until(t, "SIGSTOP to hold after the tracer's death", stopped)
	if err := unix.Kill(g.pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	g.counting(t)
}

func TestStopDuringSession(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	s := open(t, ctx, tracer, g.pid)
	if err := unix.Kill(g.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		ids(t, ctx, s)
	}
	closeSession(t, s)
	until(t, "SIGSTOP", func() bool {
		s, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.pid))
		return bytes.Contains(s, []byte(") T "))
	})
	unix.Kill(g.pid, unix.SIGCONT)
	g.counting(t)
	g.unharmed(t)
}

func TestLeaseEndsSession(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	s := open(t, ctx, tracer, g.pid)
	s.tending() // nobody renews the lease
	s.tended.Wait()
	g.counting(t)
	g.unharmed(t)
	var b Batch
	b.Call(unix.SYS_GETPID)
	if err := s.Run(ctx, &b); !errors.Is(err, ErrLost) {
		t.Errorf("a batch afterwards: %v", err)
	}
	if err := s.Close(); !errors.Is(err, ErrLost) {
		t.Errorf("close: %v", err)
	}
	g.counting(t)
	s = open(t, ctx, tracer, g.pid) // over the old one's remains
	at, size := s.Code()
	closeSession(t, s)
	rest := make([]byte, size)
	mem, err := ptrace.OpenMemory(g.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if err := mem.Read(at, rest); err != nil || !bytes.Equal(rest, make([]byte, size)) {
		t.Errorf("the stub's place is not zero again: %v", err)
	}
	g.counting(t)
}

func TestLeaseIsRenewed(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	s := open(t, ctx, tracer, g.pid)
	time.Sleep(2500 * time.Millisecond)
	ids(t, ctx, s)
	closeSession(t, s)
	g.counting(t)
	g.unharmed(t)
}

func TestSessionKeepsTracees(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	stops, err := tracer.SeizeAll(ctx, g.pid, 0)
	if err != nil || len(stops) != 1 {
		t.Fatal(stops, err)
	}
	before, err := tracer.GetRegs(ctx, g.pid)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, ctx, tracer, g.pid)
	if r, m := s.Regs(); r != before || m != 0 {
		t.Errorf("registers %+v, mask %#x", r, m)
	}
	ids(t, ctx, s)
	closeSession(t, s)
	if _, traced, stopped, err := tracer.Options(ctx, g.pid); !traced || !stopped || err != nil {
		t.Errorf("traced %v, stopped %v, %v", traced, stopped, err)
	}
	after, err := tracer.GetRegs(ctx, g.pid)
	if err != nil || after != before {
		t.Errorf("registers %+v, were %+v, %v", after, before, err)
	}
	if err := tracer.Detach(ctx, g.pid, 0); err != nil {
		t.Fatal(err)
	}
	g.counting(t)
	g.unharmed(t)
}

func TestSessionPush(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	s := open(t, ctx, tracer, g.pid)
	pushNumbered(t, ctx, s, []int{40, 3, s.FD() + 1, s.FD(), 33, 32, 31})
	ids(t, ctx, s)
	closeSession(t, s)
	g.counting(t)
}

func TestSessionLargeBatch(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	s := open(t, ctx, tracer, g.pid)
	var b Batch
	n := b.Call(unix.SYS_GETRANDOM, b.Buffer(1<<20), 1<<20, 0)
	if err := s.Run(ctx, &b); err != nil || n.value != 1<<20 {
		t.Errorf("%d, %v", n.value, err)
	}
	closeSession(t, s)
	g.unharmed(t)
}

func TestSessionDeath(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "loop")
	s := open(t, ctx, tracer, g.pid)
	var b Batch
	b.Call(unix.SYS_EXIT_GROUP, 0)
	if err := s.Run(ctx, &b); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	closeSession(t, s)
	if _, err := Open(ctx, tracer, g.pid, Options{}); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
}

func TestSessionOfAnOldServer(t *testing.T) {
	_, ctx := newTracer(t)
	g := startTarget(t, "nanosleep", 700)
	first := ptrace.New()
	s := open(t, ctx, first, g.pid)
	s.tending() // this tracer dies without its socket being closed
	s.tended.Wait()
	first.Close()
	defer s.socket.Close()
	second, _ := newTracer(t)
	n := open(t, ctx, second, g.pid)
	if r, _ := n.Regs(); within(r.IP(), s.at) {
		t.Error("the second session took the first one's server for the program")
	}
	ids(t, ctx, n)
	closeSession(t, n)
	g.ends(t, 0, 0, 690*time.Millisecond, 1500*time.Millisecond)
}

func TestSeccompIsSuspended(t *testing.T) {
	tracer, ctx := newTracer(t)
	g := startTarget(t, "seccomp")
	n := open(t, ctx, tracer, g.pid)
	ids(t, ctx, n)
	closeSession(t, n)
	g.counting(t)
	if mode, err := statusField(g.pid, "Seccomp"); err != nil || mode == 0 {
		t.Errorf("seccomp is off afterwards: %d, %v", mode, err)
	}
}

func TestArchServerHasRoom(t *testing.T) {
	if n := arch.ServerSize(); n > 1400 {
		t.Errorf("the server has %d bytes; the vDSO's tail is some 1,500", n)
	}
}

func BenchmarkSession(b *testing.B) {
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tracer, ctx := newTracer(b)
			g := startTarget(b, "nanosleep", 1_000_000)
			s := open(b, ctx, tracer, g.pid)
			for b.Loop() {
				var batch Batch
				for range n {
					batch.Call(unix.SYS_GETPPID)
				}
				if err := s.Run(ctx, &batch); err != nil {
					b.Fatal(err)
				}
			}
			closeSession(b, s)
		})
	}
}

func BenchmarkSessionOpenClose(b *testing.B) {
	tracer, ctx := newTracer(b)
	g := startTarget(b, "nanosleep", 1_000_000)
	for b.Loop() {
		closeSession(b, open(b, ctx, tracer, g.pid))
	}
}
