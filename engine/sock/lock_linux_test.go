package sock

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// newNetNS makes a network namespace whose loopback interface is up.
func newNetNS(t *testing.T) *os.File {
	t.Helper()
	kerneltest.Root(t)
	type result struct {
		ns  *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			if r.err = loopbackUp(); r.err == nil {
				r.ns, r.err = os.Open("/proc/thread-self/ns/net")
			}
		}
		done <- r
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.ns.Close() })
	return r.ns
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// TestLock locks one of two connections of each family: its bytes arrive after it is unlocked, those of the other at once.
func TestLock(t *testing.T) {
	ns := newNetNS(t)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		err := In(Place{NetNS: ns}, func() error {
			a, b := tcpPair(t, addr)
			other, otherEnd := tcpPair(t, addr)
			l, err := NewLock()
			if err != nil {
				return err
			}
			p := Pair{addrOf(t, b.LocalAddr()), addrOf(t, b.RemoteAddr())}
			if err := l.Add([]Pair{p}); err != nil {
				return err
			}
			if err := l.Close(); err != nil {
				return err
			}
			mustWrite(t, a, other)
			if err := expect(otherEnd, 5*time.Second); err != nil {
				t.Errorf("%s: a connection that is not locked: %v", addr, err)
			}
			if err := expect(b, 50*time.Millisecond); err == nil {
				t.Errorf("%s: a locked connection receives", addr)
			}
			if err := Unlock(l.Name()); err != nil {
				return err
			}
			if err := expect(b, 5*time.Second); err != nil {
				t.Errorf("%s: after unlocking: %v", addr, err)
			}
			if err := Unlock(l.Name()); err != nil {
				t.Errorf("unlocking twice: %v", err)
			}
			nft, err := nftables.New()
			if err != nil {
				return err
			}
			tables, err := nft.ListTables()
			if err != nil || len(tables) != 0 {
				t.Errorf("%d tables are left (%v)", len(tables), err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := Unlock("filter"); err == nil {
		t.Error("a table of somebody else was unlocked")
	}
}

func TestLockMany(t *testing.T) {
	ns := newNetNS(t)
	err := In(Place{NetNS: ns}, func() error {
		l, err := NewLock()
		if err != nil {
			return err
		}
		defer l.Close()
		var pairs []Pair
		for i := range 1000 {
			pairs = append(pairs, Pair{netip.MustParseAddrPort("10.0.0.1:80"), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(1000+i))},
				Pair{netip.MustParseAddrPort("[fd00::1]:80"), netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), uint16(1000+i))})
		}
		if err := l.Add(pairs); err != nil {
			return err
		}
		return Unlock(l.Name())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tcpPair makes a connection in the network namespace of the thread.
func tcpPair(t *testing.T, addr string) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = (&net.Dialer{Control: nil}).Dial("tcp", l.Addr().String()); err == nil {
		b, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

func addrOf(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	return a.(*net.TCPAddr).AddrPort()
}

func mustWrite(t *testing.T, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
}

func expect(c net.Conn, within time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}
