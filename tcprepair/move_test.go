//go:build linux

package tcprepair_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/tcprepair"
)

// move takes the server's end out and puts it back in, behind the shut gate, by way of JSON.
func (w *world) move(s *net.TCPConn) (*os.File, *tcprepair.State) {
	w.t.Helper()
	w.shut()
	p, err := tcprepair.Pause(file(w.t, s))
	if err != nil {
		w.t.Fatal(err)
	}
	st, err := p.Save()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.Unchanged(st); err != nil {
		w.t.Fatal(err)
	}
	if err := p.Drop(); err != nil {
		w.t.Fatal(err)
	}
	b, err := json.Marshal(st)
	if err != nil {
		w.t.Fatal(err)
	}
	st = new(tcprepair.State)
	if err := json.Unmarshal(b, st); err != nil {
		w.t.Fatal(err)
	}
	f := fresh(w.t, st.V6)
	if _, err := tcprepair.Restore(f, st); err != nil {
		w.t.Fatal(err)
	}
	// The one who restored dies; another takes over.
	h, err := tcprepair.Adopt(f, st)
	if err != nil {
		w.t.Fatal(err)
	}
	w.open()
	if err := h.Release(); err != nil {
		w.t.Fatal(err)
	}
	noFilter(w.t, f)
	return f, st
}

func noFilter(t *testing.T, f *os.File) {
	t.Helper()
	if n, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_GET_FILTER); err != nil || n != 0 {
		t.Errorf("the socket has a filter of %d instructions, %v", n, err)
	}
	if err := unix.SetNonblock(int(f.Fd()), true); err != nil { // which Fd has taken away
		t.Fatal(err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

var families = []struct{ name, network, addr string }{
	{"v4", "tcp4", "127.0.0.1:0"},
	{"v6", "tcp6", "[::1]:0"},
	{"mapped", "tcp", "[::]:0"},
}

func TestMoveIdle(t *testing.T) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) {
			w := newWorld(t)
			c, s := w.pair(fam.network, fam.addr)
			before := sockopts(t, s)
			f, st := w.move(s)
			after := sockopts(t, f)
			s2 := conn(t, f)
			for name, v := range before {
				if after[name] != v {
					t.Errorf("%s is %d, was %d", name, after[name], v)
				}
			}
			if !st.SACK || !st.Timestamps || !st.WindowScaling {
				t.Errorf("options not seen: %+v", st)
			}
			exchange(t, c, s2, 1<<20)
			exchange(t, s2, c, 1<<20)
		})
	}
}

// exchange sends n bytes one way and compares them.
func exchange(t *testing.T, from, to *net.TCPConn, n int) {
	t.Helper()
	want := random(n)
	done := make(chan error, 1)
	go func() {
		_, err := from.Write(want)
		done <- err
	}()
	got := make([]byte, n)
	_ = to.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Fatalf("read: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatalf("write: %v", err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("bytes differ")
	}
}

// sockopts reads what a program can see of its socket.
func sockopts(t *testing.T, c syscall.Conn) map[string]int {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	err = rc.Control(func(fd uintptr) {
		for name, o := range map[string][2]int{
			"SO_REUSEADDR": {unix.SOL_SOCKET, unix.SO_REUSEADDR}, "SO_KEEPALIVE": {unix.SOL_SOCKET, unix.SO_KEEPALIVE},
			"SO_SNDBUF": {unix.SOL_SOCKET, unix.SO_SNDBUF}, "SO_RCVBUF": {unix.SOL_SOCKET, unix.SO_RCVBUF},
			"SO_BUF_LOCK": {unix.SOL_SOCKET, unix.SO_BUF_LOCK}, "SO_PRIORITY": {unix.SOL_SOCKET, unix.SO_PRIORITY},
			"SO_MARK": {unix.SOL_SOCKET, unix.SO_MARK}, "TCP_NODELAY": {unix.IPPROTO_TCP, unix.TCP_NODELAY},
			"TCP_KEEPIDLE": {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}, "TCP_KEEPINTVL": {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
			"TCP_KEEPCNT": {unix.IPPROTO_TCP, unix.TCP_KEEPCNT}, "TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
			"TCP_MAXSEG": {unix.IPPROTO_TCP, unix.TCP_MAXSEG}, "TCP_WINDOW_CLAMP": {unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP},
			"TCP_NOTSENT_LOWAT": {unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT}, "IP_TOS": {unix.IPPROTO_IP, unix.IP_TOS},
			"IP_TTL": {unix.IPPROTO_IP, unix.IP_TTL}, "TCP_CORK": {unix.IPPROTO_TCP, unix.TCP_CORK},
		} {
			if v, err := unix.GetsockoptInt(int(fd), o[0], o[1]); err == nil {
				out[name] = v
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMoveOptions(t *testing.T) {
	w := newWorld(t)
	c, s := w.pair("tcp4", "127.0.0.1:0")
	rc, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = rc.Control(func(fd uintptr) {
		for _, o := range [][3]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.SOL_SOCKET, unix.SO_SNDBUF, 300000},
			{unix.SOL_SOCKET, unix.SO_PRIORITY, 5}, {unix.SOL_SOCKET, unix.SO_MARK, 77}, {unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 0}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 11}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 7},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 12345},
			{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 16384}, {unix.IPPROTO_IP, unix.IP_TOS, 0x10}, {unix.IPPROTO_IP, unix.IP_TTL, 33},
			{unix.IPPROTO_TCP, unix.TCP_CORK, 1},
		} {
			if err := unix.SetsockoptInt(int(fd), o[0], o[1], o[2]); err != nil {
				t.Errorf("option %v: %v", o, err)
			}
		}
		if err := unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	before := sockopts(t, s)
	f, st := w.move(s)
	if st.Congestion != "reno" {
		t.Errorf("congestion control %q", st.Congestion)
	}
	rc, err = f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(fd uintptr) {
		if cc, _ := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); cc != "reno" {
			t.Errorf("congestion control %q", cc)
		}
	})
	after := sockopts(t, f)
	for name, v := range before {
		if after[name] != v {
			t.Errorf("%s is %d, was %d", name, after[name], v)
		}
	}
	exchange(t, c, conn(t, f), 100000)
}

// TestMoveQueues fills both queues as far as they go and moves the connection.
func TestMoveQueues(t *testing.T) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) {
			w := newWorld(t)
			c, s := w.pair(fam.network, fam.addr)
			up, down := fill(t, c), fill(t, s)
			f, st := w.move(s)
			t.Logf("client wrote %d, server %d; unread %d, unacknowledged %d of which unsent %d, window %+v",
				len(up), len(down), len(st.RecvQueue), len(st.SendQueue), st.Unsent, st.Window)
			if len(st.RecvQueue) == 0 || st.Unsent == 0 {
				t.Error("the queues were not filled as meant")
			}
			s2 := conn(t, f)
			drain(t, s2, up)
			drain(t, c, down)
			exchange(t, c, s2, 1<<20)
			exchange(t, s2, c, 1<<20)
		})
	}
}

// TestMoveInFlight moves a connection with bytes that were sent and lost, and more behind them.
func TestMoveInFlight(t *testing.T) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) {
			w := newWorld(t)
			c, s := w.pair(fam.network, fam.addr)
			w.shut()
			down := fill(t, s)
			f, st := w.move(s)
			t.Logf("unacknowledged %d of which unsent %d", len(st.SendQueue), st.Unsent)
			if st.Unsent == 0 || len(st.SendQueue) == int(st.Unsent) {
				t.Error("the queue was not filled as meant")
			}
			s2 := conn(t, f)
			drain(t, c, down)
			exchange(t, c, s2, 1<<20)
			exchange(t, s2, c, 1<<20)
		})
	}
}

// fill writes until the socket takes no more.
func fill(t *testing.T, c *net.TCPConn) []byte {
	t.Helper()
	var all []byte
	for {
		b := random(100000 + len(all)%1000)
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := c.Write(b)
		all = append(all, b[:n]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_ = c.SetWriteDeadline(time.Time{})
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func drain(t *testing.T, c *net.TCPConn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("after %d of %d bytes: %v", n, len(want), err)
	}
	_ = c.SetReadDeadline(time.Time{})
	if !bytes.Equal(got, want) {
		t.Fatal("bytes differ")
	}
}

// TestMoveHalfClosed moves connections of which one end or both are closed.
func TestMoveHalfClosed(t *testing.T) {
	t.Parallel()
	for _, fam := range families {
		for _, tc := range []struct {
			name           string
			peer, we, lose bool // the peer closed; we closed; our FIN met the shut gate
			want           tcprepair.ConnState
		}{
			{"close_wait", true, false, false, tcprepair.CloseWait},
			{"fin_wait1", false, true, true, tcprepair.FinWait1},
			{"fin_wait2", false, true, false, tcprepair.FinWait2},
			{"last_ack", true, true, true, tcprepair.LastAck},
		} {
			t.Run(fam.name+"/"+tc.name, func(t *testing.T) {
				t.Parallel() // what is lost waits for a time-out of seconds
				w := newWorld(t)
				c, s := w.pair(fam.network, fam.addr)
				if tc.peer {
					if _, err := c.Write([]byte("last words")); err != nil {
						t.Fatal(err)
					}
					if err := c.CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				if tc.peer {
					waitState(t, s, tcprepair.CloseWait)
				}
				if tc.lose {
					w.shut()
				}
				if tc.we {
					if _, err := s.Write([]byte("ours")); err != nil {
						t.Fatal(err)
					}
					if err := s.CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				waitState(t, s, tc.want)
				f, _ := w.move(s)
				s2 := conn(t, f)
				if tc.peer {
					if b, err := io.ReadAll(s2); err != nil || string(b) != "last words" {
						t.Errorf("read %q, %v", b, err)
					}
				}
				if !tc.we {
					if _, err := s2.Write([]byte("ours")); err != nil {
						t.Fatal(err)
					}
					if err := s2.CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
				if b, err := io.ReadAll(c); err != nil || string(b) != "ours" {
					t.Errorf("client read %q, %v", b, err)
				}
			})
		}
	}
}

// TestOneEndBeforeTheOther restores both ends of a connection, the second one long after the first, which acknowledges what it was sent
// in its peer's name: the kernel answers that there is no such connection.
func TestOneEndBeforeTheOther(t *testing.T) {
	for _, fam := range families {
		for _, urgent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/urgent-%v", fam.name, urgent), func(t *testing.T) {
				w := newWorld(t)
				c, s := w.pair(fam.network, fam.addr)
				want := tcprepair.CloseWait
				if _, err := c.Write([]byte("last words")); err != nil {
					t.Fatal(err)
				}
				if urgent {
					want = tcprepair.Established
					cfile, err := c.File()
					if err == nil {
						err = errors.Join(unix.Sendto(int(cfile.Fd()), []byte("!"), unix.MSG_OOB, nil), cfile.Close())
					}
					if err != nil {
						t.Fatal(err)
					}
					for !readable(t, s, unix.POLLPRI) {
					}
				} else if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				waitState(t, s, want)
				var states []*tcprepair.State
				for _, x := range []*net.TCPConn{s, c} {
					p, err := tcprepair.Pause(file(t, x))
					if err != nil {
						t.Fatal(err)
					}
					st, err := p.Save()
					if err := errors.Join(err, p.Drop()); err != nil {
						t.Fatal(err)
					}
					states = append(states, st)
				}
				before := resets(t)
				first := fresh(t, states[0].V6)
				held, err := tcprepair.Restore(first, states[0])
				if err != nil {
					t.Fatal(err)
				}
				for resets(t) == before { // the delayed acknowledgement is due after 40 ms
					time.Sleep(time.Millisecond)
				}
				second := fresh(t, states[1].V6)
				other, err := tcprepair.Restore(second, states[1])
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(held.TakeResets(), other.TakeResets(), held.Release(), other.Release()); err != nil {
					t.Fatal(err)
				}
				noFilter(t, first)
				s, c = conn(t, first), conn(t, second)
				waitState(t, s, want)
				exchange(t, s, c, 1<<16)
			})
		}
	}
}

// readable polls a connection.
func readable(t *testing.T, c *net.TCPConn, events int16) bool {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := []unix.PollFd{{Fd: int32(f.Fd()), Events: events}}
	_, err = unix.Poll(p, 10)
	if err != nil && err != unix.EINTR {
		t.Fatal(err)
	}
	return p[0].Revents&events != 0
}

// resets is how many the namespace of this thread has sent (RFC 4022, tcpOutRsts).
func resets(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "Tcp:") {
			lines = append(lines, strings.Fields(l))
		}
	}
	return lines[1][slices.Index(lines[0], "OutRsts")]
}

// waitState waits until the kernel has brought a connection into a state, which no event tells.
func waitState(t *testing.T, c *net.TCPConn, want tcprepair.ConnState) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var have tcprepair.ConnState
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		_ = rc.Control(func(fd uintptr) {
			i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				t.Error(err)
				return
			}
			have = tcprepair.ConnState(i.State)
		})
		if have == want {
			return
		}
	}
	t.Fatalf("state %v, want %v", have, want)
}

func TestResume(t *testing.T) {
	w := newWorld(t)
	c, s := w.pair("tcp4", "127.0.0.1:0")
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := sockopts(t, s)
	p, err := tcprepair.Pause(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.FlushAck(); err != nil {
		t.Fatal(err)
	}
	st, err := p.Save()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("too late")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // nobody is told when it has come
		if err = p.Unchanged(st); err != nil || time.Now().After(end) {
			break
		}
	}
	if !errors.Is(err, tcprepair.ErrChanged) {
		t.Errorf("Unchanged: %v", err)
	}
	// The one who paused dies; another takes over.
	if p, err = tcprepair.Pause(f); err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if after := sockopts(t, s); after["SO_REUSEADDR"] != before["SO_REUSEADDR"] {
		t.Errorf("SO_REUSEADDR %d, was %d", after["SO_REUSEADDR"], before["SO_REUSEADDR"])
	}
	drain(t, s, []byte("too late"))
	exchange(t, s, c, 1000)
}

// TestNothingLeavesOnceSaved has the kernel try to send, as its timers do, what was saved as never sent. The peer would acknowledge what
// the restored socket does not know to be sent.
func TestNothingLeavesOnceSaved(t *testing.T) {
	w := newWorld(t)
	c, s := w.pair("tcp4", "127.0.0.1:0")
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	cork := func(on int) {
		t.Helper()
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_CORK, on); err != nil {
			t.Fatal(err)
		}
	}
	unsent := func() int {
		t.Helper()
		n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	waits := []byte("it waits")
	cork(1)
	if _, err := s.Write(waits); err != nil {
		t.Fatal(err)
	}
	for _, dies := range []bool{false, true} { // the one who paused
		p, err := tcprepair.Pause(f)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			st, err := p.Save()
			if err != nil {
				t.Fatal(err)
			}
			if int(st.Unsent) != len(waits) || st.Window.SndWnd == 0 {
				t.Errorf("saved with %d bytes unsent and a window of %d", st.Unsent, st.Window.SndWnd)
			}
			cork(0)
			if n := unsent(); n != len(waits) {
				t.Fatalf("%d bytes are unsent, %d were saved", n, len(waits))
			}
			if err := p.Unchanged(st); err != nil {
				t.Error(err)
			}
			cork(1)
		}
		if dies {
			if p, err = tcprepair.Pause(f); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	cork(0)
	drain(t, c, waits)
	exchange(t, s, c, 1000)
}

func TestRefused(t *testing.T) {
	newWorld(t)
	var notCarried *tcprepair.NotCarriedError
	if _, err := tcprepair.Adopt(fresh(t, false), sample()); !errors.Is(err, tcprepair.ErrNotInRepair) {
		t.Errorf("adopt a fresh socket: %v", err)
	}
	_, err := tcprepair.Pause(fresh(t, false))
	if !errors.As(err, &notCarried) {
		t.Errorf("closed socket: %v", err)
	}
	t.Log(err)
}

// TestTimes prints what a connection costs.
func TestTimes(t *testing.T) {
	w := newWorld(t)
	const n = 200
	files := make([]*os.File, n)
	for i := range files {
		_, s := w.pair("tcp4", "127.0.0.1:0")
		files[i] = file(t, s)
	}
	w.shut()
	states := make([]*tcprepair.State, n)
	start := time.Now()
	paused := make([]*tcprepair.Paused, n)
	for i, f := range files {
		p, err := tcprepair.Pause(f)
		if err != nil {
			t.Fatal(err)
		}
		if states[i], err = p.Save(); err != nil {
			t.Fatal(err)
		}
		paused[i] = p
	}
	save := time.Since(start)
	for _, p := range paused {
		_ = p.Drop()
	}
	for i := range files {
		files[i] = fresh(t, false)
	}
	held := make([]*tcprepair.Held, n)
	start = time.Now()
	for i, f := range files {
		var err error
		if held[i], err = tcprepair.Restore(f, states[i]); err != nil {
			t.Fatal(err)
		}
	}
	restore := time.Since(start)
	start = time.Now()
	for _, h := range held {
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("per connection: save %v, restore %v, release %v", save/n, restore/n, time.Since(start)/n)
	for _, f := range files {
		_ = f.Close()
	}
}
