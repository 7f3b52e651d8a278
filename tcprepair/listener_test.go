//go:build linux

package tcprepair_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/tcprepair"
)

func TestListener(t *testing.T) {
	for _, tc := range []struct {
		name, network, addr string
		mptcp               bool
	}{
		{"v4", "tcp4", "127.0.0.1:0", false},
		{"v6", "tcp6", "[::1]:0", false},
		{"both", "tcp", ":0", false},
		{"mptcp", "tcp", ":0", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newWorld(t)
			lc := net.ListenConfig{}
			lc.SetMultipathTCP(tc.mptcp)
			nl, err := lc.Listen(context.Background(), tc.network, tc.addr)
			if err != nil {
				t.Fatal(err)
			}
			f, err := nl.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			_ = nl.Close()
			defer f.Close()
			l, err := tcprepair.SaveListener(f)
			if err != nil {
				t.Fatal(err)
			}
			if l.MPTCP != tc.mptcp {
				t.Errorf("MPTCP is %v", l.MPTCP)
			}
			checkWaiting(t, f, l)

			_ = f.Close()
			f2 := freshListener(t, l)
			if err := tcprepair.RestoreListener(f2, l); err != nil {
				t.Fatal(err)
			}
			again, err := tcprepair.SaveListener(f2)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(l, again) {
				t.Errorf("restored listener differs:\n%+v\n%+v", l, again)
			}
			nl2, err := net.FileListener(f2)
			if err != nil {
				t.Fatal(err)
			}
			defer nl2.Close()
			c, err := net.Dial("tcp", target(l))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := nl2.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
		})
	}
}

func target(l *tcprepair.Listener) string {
	if l.Local.Addr().IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", l.Local.String()[len(l.Local.Addr().String())+3:])
	}
	return l.Local.String()
}

// checkWaiting connects and expects the connection to be named, then accepts it.
func checkWaiting(t *testing.T, f *os.File, l *tcprepair.Listener) {
	t.Helper()
	c, err := net.Dial("tcp", target(l))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		n, err := tcprepair.Waiting(f)
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections wait, want 1", n)
		}
	}
	var waiting *tcprepair.WaitingError
	if _, err := tcprepair.SaveListener(f); !errors.As(err, &waiting) || waiting.Count != 1 {
		t.Errorf("a connection waits: %v", err)
	}
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(fd uintptr) {
		s, _, err := unix.Accept(int(fd))
		if err != nil {
			t.Error(err)
			return
		}
		// No TIME_WAIT that would hold the port.
		_ = unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		_ = unix.Close(s)
	})
}

func freshListener(t *testing.T, l *tcprepair.Listener) *os.File {
	t.Helper()
	family, proto := unix.AF_INET, unix.IPPROTO_TCP
	if l.V6 {
		family = unix.AF_INET6
	}
	if l.MPTCP {
		proto = unix.IPPROTO_MPTCP
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "listener")
}

// TestHalfOpen shuts the gate between a handshake's two last segments.
func TestHalfOpen(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		w := newWorld(t)
		nl, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		f, err := nl.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := tcprepair.HalfOpen(f); n != 0 || err != nil {
			t.Errorf("%s: %d half open, %v", addr, n, err)
		}
		w.dropHandshakes()
		port := nl.Addr().(*net.TCPAddr).AddrPort().Port()
		to := netip.AddrPortFrom(nl.Addr().(*net.TCPAddr).AddrPort().Addr(), port)
		if to.Addr().IsUnspecified() {
			to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
		}
		family, peer := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(port), Addr: to.Addr().As16()})
		if to.Addr().Is4() {
			family, peer = unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: to.Addr().As4()}
		}
		c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(c, peer); !errors.Is(err, unix.EINPROGRESS) {
			t.Errorf("connecting: %v", err)
		}
		n := 0 // the kernel tells nobody of the first half of a handshake
		for end := time.Now().Add(10 * time.Second); n == 0 && err == nil && time.Now().Before(end); {
			n, err = tcprepair.HalfOpen(f)
		}
		if n != 1 || err != nil {
			t.Errorf("%s: %d half open, %v, want 1", addr, n, err)
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(c), Events: unix.POLLOUT}}, 0); n != 0 || err != nil {
			t.Errorf("the connection was made all the same: %d, %v", n, err)
		}
		_ = unix.Close(c)
		_, _ = f.Close(), nl.Close()
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(make([]byte, 16), uint16(1))
	f.Add(binary.NativeEndian.AppendUint32(nil, 1<<31), uint16(1))
	f.Fuzz(func(_ *testing.T, b []byte, port uint16) {
		_, _, _ = tcprepair.ParseDiag(b, port)
		_, _ = tcprepair.ParseSigned(b)
	})
}

func TestListenerOptions(t *testing.T) {
	newWorld(t)
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range [][3]int{
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}, {unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}, {unix.SOL_SOCKET, unix.SO_RCVBUF, 50000},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 3}, {unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 7}, {unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1000},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77},
		{unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 30000},
	} {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			t.Errorf("option %v: %v", o, err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 33); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	l, err := tcprepair.SaveListener(f)
	if err != nil {
		t.Fatal(err)
	}
	if l.Backlog != 33 || l.FastOpen != 7 || l.Options["TCP_DEFER_ACCEPT"] == 0 || l.Options["TCP_MAXSEG"] != 1000 {
		t.Errorf("saved %+v", l)
	}
	_ = f.Close()
	f = freshListener(t, l)
	defer f.Close()
	if err := tcprepair.RestoreListener(f, l); err != nil {
		t.Fatal(err)
	}
	again, err := tcprepair.SaveListener(f)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(l, again) {
		t.Errorf("restored listener differs:\n%+v\n%+v", l, again)
	}
}

// TestSigned gives a key to a listener and to a connection.
func TestSigned(t *testing.T) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) {
			w := newWorld(t)
			_, s := w.pair(fam.network, fam.addr)
			f := file(t, s)
			defer f.Close()
			l, err := net.Listen(fam.network, fam.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			lf, err := l.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer lf.Close()
			if signed, err := tcprepair.Signed(lf); signed || err != nil {
				t.Errorf("listener: signed %v, %v", signed, err)
			}
			if signed, err := tcprepair.Signed(f); signed || err != nil {
				t.Errorf("connection: signed %v, %v", signed, err)
			}
			rc, err := f.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var key [216]byte // struct tcp_md5sig: an address of 128 bytes, flags, prefix length, key length, interface, key
			_ = rc.Control(func(fd uintptr) {
				peer, err := unix.Getpeername(int(fd))
				if err != nil {
					t.Error(err)
				}
				switch sa := peer.(type) {
				case *unix.SockaddrInet4:
					binary.NativeEndian.PutUint16(key[:], unix.AF_INET)
					copy(key[4:], sa.Addr[:])
				case *unix.SockaddrInet6:
					binary.NativeEndian.PutUint16(key[:], unix.AF_INET6)
					copy(key[8:], sa.Addr[:])
				}
				binary.NativeEndian.PutUint16(key[130:], 3)
				copy(key[136:], "key")
				if err := unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_MD5SIG, string(key[:])); err != nil {
					t.Errorf("TCP_MD5SIG: %v", err)
				}
			})
			if signed, err := tcprepair.Signed(f); !signed || err != nil {
				t.Errorf("connection with a key: signed %v, %v", signed, err)
			}
		})
	}
}
