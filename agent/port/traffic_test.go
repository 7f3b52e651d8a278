//go:build linux

package port_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pattern is an endless stream of bytes that differ from place to place.
var pattern = func() []byte {
	const period = 65521 // a prime: no chunk repeats at a multiple of its size
	b := make([]byte, 3*period)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b[:period])
	copy(b[period:], b[:period])
	copy(b[2*period:], b[:period])
	return b
}()

const period = 65521

func patternAt(pos int64, n int) []byte { return pattern[pos%period:][:n] }

// kind is what a client and its server do.
type kind string

const (
	pingPong kind = "request-reply"
	pipeline kind = "pipelined"
	bulkUp   kind = "bulk up"
	bulkDown kind = "bulk down"
	// As fast as the machine can.
	floodUp   kind = "flood up"
	floodDown kind = "flood down"
)

// server is a program that serves one connection and can be stopped between two system calls, and go on with another
// descriptor of the same connection.
type server struct {
	kind    kind
	conn    *os.File
	done    chan error
	stop    atomic.Bool
	pos     int64
	pending []byte
}

func (s *server) run(conn *os.File) {
	s.conn = conn
	s.stop.Store(false)
	s.done = make(chan error, 1)
	_ = conn.SetDeadline(time.Time{})
	go func() { s.done <- s.serve() }()
}

// freeze stops the program where it is.
func (s *server) freeze() error {
	s.stop.Store(true)
	_ = s.conn.SetDeadline(time.Unix(1, 0))
	err := <-s.done
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

func (s *server) serve() error {
	buf := make([]byte, 64<<10)
	for !s.stop.Load() {
		if s.kind == bulkDown || s.kind == floodDown {
			n, err := s.conn.Write(patternAt(s.pos, 16<<10))
			s.pos += int64(n)
			if err != nil {
				return err
			}
			if s.kind == bulkDown {
				time.Sleep(300 * time.Microsecond)
			}
			continue
		}
		if len(s.pending) > 0 {
			n, err := s.conn.Write(s.pending)
			s.pending = s.pending[n:]
			if err != nil {
				return err
			}
			continue
		}
		n, err := s.conn.Read(buf)
		if s.kind == bulkUp || s.kind == floodUp {
			if string(buf[:n]) != string(patternAt(s.pos, n)) {
				return fmt.Errorf("server: bytes from %d on differ", s.pos)
			}
		} else {
			s.pending = append(s.pending, buf[:n]...)
		}
		s.pos += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// client talks to a server until stopped, and notes its longest wait.
type client struct {
	kind    kind
	conn    *os.File
	stop    atomic.Bool
	done    chan error
	n       int64
	longest atomic.Int64 // nanoseconds
	asked   atomic.Int64 // how many waits are over
}

func (c *client) run() {
	c.done = make(chan error, 1)
	_ = c.conn.SetDeadline(time.Now().Add(30 * time.Second))
	go func() { c.done <- c.talk() }()
}

func (c *client) end() error {
	c.stop.Store(true)
	if c.isBulk() {
		_ = c.conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	}
	err := <-c.done
	if errors.Is(err, os.ErrDeadlineExceeded) && c.isBulk() {
		err = nil
	}
	return err
}

func (c *client) isBulk() bool { return c.kind != pingPong && c.kind != pipeline }

// reset forgets the longest wait so far.
func (c *client) reset() { c.longest.Store(0) }

func (c *client) timed(f func() error) error {
	start := time.Now()
	err := f()
	if d := int64(time.Since(start)); d > c.longest.Load() {
		c.longest.Store(d)
	}
	c.asked.Add(1)
	return err
}

func (c *client) talk() error {
	buf := make([]byte, 64<<10)
	for !c.stop.Load() {
		var err error
		switch c.kind {
		case pingPong:
			err = c.timed(func() error { return c.ask(1) })
			time.Sleep(500 * time.Microsecond)
		case pipeline:
			err = c.timed(func() error { return c.ask(8) })
			time.Sleep(500 * time.Microsecond)
		case bulkUp, floodUp:
			err = c.timed(func() error {
				n, err := c.conn.Write(patternAt(c.n, 64<<10))
				c.n += int64(n)
				return err
			})
			if c.kind == bulkUp {
				time.Sleep(time.Millisecond)
			}
		case bulkDown, floodDown:
			err = c.timed(func() error {
				n, err := c.conn.Read(buf)
				if string(buf[:n]) != string(patternAt(c.n, n)) {
					return fmt.Errorf("client: bytes from %d on differ", c.n)
				}
				c.n += int64(n)
				return err
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ask sends n numbers, each in a segment of its own, and wants them back.
func (c *client) ask(n int) error {
	var b [8]byte
	for i := range n {
		binary.BigEndian.PutUint64(b[:], uint64(c.n)+uint64(i))
		if _, err := c.conn.Write(b[:]); err != nil {
			return err
		}
	}
	for range n {
		if _, err := io.ReadFull(c.conn, b[:]); err != nil {
			return err
		}
		if got := binary.BigEndian.Uint64(b[:]); got != uint64(c.n) {
			return fmt.Errorf("client: got %d, want %d", got, c.n)
		}
		c.n++
	}
	return nil
}

// tcpSocket makes a TCP socket in the calling thread's namespace.
func tcpSocket(v6 bool) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 10}) // for connect
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return fd, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// connectPair makes a connection from the client's namespace to the workload's, and starts both ends.
func connectPair(t *testing.T, clientNS, workloadNS *os.File, at netip.AddrPort, k kind) (*client, *server) {
	t.Helper()
	v6 := at.Addr().Is6()
	var listener, accepted, connected int
	in(t, workloadNS, func() (err error) {
		if listener, err = tcpSocket(v6); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err := unix.Bind(listener, sockaddr(at)); err != nil {
			return fmt.Errorf("bind %v: %w", at, err)
		}
		return unix.Listen(listener, 5)
	})
	in(t, clientNS, func() (err error) {
		if connected, err = tcpSocket(v6); err != nil {
			return err
		}
		if err := unix.Connect(connected, sockaddr(at)); err != nil {
			return fmt.Errorf("connect to %v: %w", at, err)
		}
		return nil
	})
	accepted, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(listener)
	_ = unix.SetsockoptInt(accepted, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.SetNonblock(connected, true); err != nil {
		t.Fatal(err)
	}
	c := &client{kind: k, conn: os.NewFile(uintptr(connected), "client")}
	s := &server{kind: k}
	s.run(os.NewFile(uintptr(accepted), "server"))
	c.run()
	t.Cleanup(func() { _ = c.conn.Close() })
	return c, s
}

// heartbeat notes the longest time for which this process did not get a processor: what a client waited for that is the
// machine's doing.
type heartbeat struct {
	stop    chan struct{}
	longest atomic.Int64
}

func newHeartbeat(t *testing.T) *heartbeat {
	h := &heartbeat{stop: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for last := time.Now(); ; {
			select {
			case <-h.stop:
				return
			case <-time.After(time.Millisecond):
			}
			now := time.Now()
			h.longest.Store(max(h.longest.Load(), int64(now.Sub(last)-time.Millisecond)))
			last = now
		}
	}()
	t.Cleanup(func() { close(h.stop); <-done })
	return h
}

// gap is the longest one since the last call.
func (h *heartbeat) gap() time.Duration { return time.Duration(h.longest.Swap(0)) }
