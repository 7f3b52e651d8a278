//go:build linux

package bpf

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// TestSockets resets a connection and finds its other end, with the error that nobody has asked for, by both families.
func TestSockets(t *testing.T) {
	kerneltest.Root(t)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_ = s.Close()
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 5000); err != nil {
			t.Fatal(err)
		}
		all, err := Sockets()
		if err != nil {
			t.Fatal(err)
		}
		got := all[int(f.Fd())]
		if got.Error != int32(unix.ECONNRESET) || got.Shutdown != 3 || got.Done || got.State != 7 || got.Remote.String() != c.LocalAddr().String() {
			t.Errorf("%s: %+v, the peer was %v", addr, got, c.LocalAddr())
		}
	}
}
