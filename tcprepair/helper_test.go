//go:build linux

package tcprepair_test

import (
	"errors"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// world is a network namespace of the test's own, in which everything happens over lo, and a gate in front of all of its TCP.
type world struct {
	t    *testing.T
	ns   netns.NsHandle
	conn *nftables.Conn
	tab  *nftables.Table
}

// newWorld must be called on the test's goroutine: it moves its thread into the new namespace, so all sockets
// that the test makes are there.
func newWorld(t *testing.T) *world {
	t.Helper()
	kerneltest.Root(t)
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
		_ = ns.Close()
		_ = home.Close()
	})
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	// Segments as on a real link.
	if err := errors.Join(netlink.LinkSetMTU(lo, 1500), netlink.LinkSetUp(lo)); err != nil {
		t.Fatal(err)
	}
	return &world{t: t, ns: ns, conn: &nftables.Conn{NetNS: int(ns)}}
}

// shut drops all TCP in the namespace until open.
func (w *world) shut() {
	w.t.Helper()
	if w.tab != nil {
		return
	}
	w.tab = w.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "gate"})
	c := w.conn.AddChain(&nftables.Chain{Name: "in", Table: w.tab, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	w.conn.AddRule(&nftables.Rule{Table: w.tab, Chain: c, Exprs: []expr.Any{
		// Packets of the raw socket that carries a FIN are the only ones without a transport socket of their own kind; they have
		// the time to live 64 and no options, so a header of 20 bytes: let those in.
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0x50}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	if err := w.conn.Flush(); err != nil {
		w.t.Fatalf("shut the gate: %v", err)
	}
}

// dropHandshakes drops the answers to requests for connections, so that they stay half open.
func (w *world) dropHandshakes() {
	w.t.Helper()
	w.tab = w.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "handshakes"})
	c := w.conn.AddChain(&nftables.Chain{Name: "in", Table: w.tab, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	w.conn.AddRule(&nftables.Rule{Table: w.tab, Chain: c, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x12}}, // SYN and ACK
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	if err := w.conn.Flush(); err != nil {
		w.t.Fatalf("drop handshakes: %v", err)
	}
}

func (w *world) open() {
	w.t.Helper()
	w.conn.DelTable(w.tab)
	w.tab = nil
	if err := w.conn.Flush(); err != nil {
		w.t.Fatalf("open the gate: %v", err)
	}
}

// pair makes a connection and returns the client's end and the server's.
func (w *world) pair(network, addr string) (client, server *net.TCPConn) {
	w.t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	to := l.Addr().String()
	if network == "tcp" { // a listener for both families, reached by IPv4
		to = net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	c, err := net.Dial("tcp", to)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// file takes the socket out of a connection, as pidfd_getfd would give it; the connection's own descriptor is closed.
func file(t *testing.T, c *net.TCPConn) *os.File {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

// fresh makes a socket for Restore.
func fresh(t *testing.T, v6 bool) *os.File {
	t.Helper()
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "restored")
}

// conn makes a net.Conn of a released socket.
func conn(t *testing.T, f *os.File) *net.TCPConn {
	t.Helper()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}
