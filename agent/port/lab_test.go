//go:build linux

package port_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"migrate/agent/port"
	"migrate/engine/kernel/kerneltest"
)

// lab is a switch with two hosts and a client on it, each in a network namespace of its own.
type lab struct {
	t        *testing.T
	sw       *os.File
	client   *os.File
	hosts    [2]*port.Host
	hostNS   [2]*os.File
	switchNL *netlink.Handle
}

func newLab(t *testing.T) *lab {
	t.Helper()
	kerneltest.Root(t)
	l := &lab{t: t, sw: newNS(t), client: newNS(t)}
	l.switchNL = handle(t, l.sw)
	addBridge(t, l.switchNL, "switch")
	l.connect(l.client, "client")
	c := handle(t, l.client)
	setUp(t, c, "eth0")
	addAddr(t, c, "eth0", "10.77.0.2/24", "fd77::2/64")
	for i := range l.hosts {
		l.hostNS[i] = newNS(t)
		l.connect(l.hostNS[i], "host"+strconv.Itoa(i+1))
		h := handle(t, l.hostNS[i])
		addBridge(t, h, "br0")
		enslave(t, h, "eth0", "br0")
		setUp(t, h, "eth0")
		addAddr(t, h, "br0", fmt.Sprintf("10.77.0.%d/24", 11+i), fmt.Sprintf("fd77::%d/64", 11+i))
		host, err := port.Open(l.hostNS[i])
		if err != nil {
			t.Fatal(err)
		}
		l.hosts[i] = host
		t.Cleanup(func() { _ = host.Close() })
	}
	l.settle()
	return l
}

// settle waits until all devices of the lab work.
func (l *lab) settle() {
	l.t.Helper()
	for _, ns := range []*os.File{l.sw, l.client, l.hostNS[0], l.hostNS[1]} {
		h := handle(l.t, ns)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			links, err := h.LinkList()
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				l.t.Fatal(err)
			}
			if err == nil && !slices.ContainsFunc(links, func(k netlink.Link) bool {
				return k.Attrs().Name != "lo" && k.Attrs().OperState != netlink.OperUp
			}) {
				break
			}
			if time.Now().After(end) {
				l.t.Fatal("the lab's devices do not come up")
			}
		}
	}
}

// newNS makes a network namespace that lives as long as its descriptor, with lo up and IPv6 addresses valid at once.
func newNS(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with its goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		if err == nil {
			err = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() { _ = f.Close() })
	setUp(t, handle(t, f), "lo")
	return f
}

func handle(t *testing.T, ns *os.File) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func addBridge(t *testing.T, h *netlink.Handle, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	off := false
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		t.Fatal(err)
	}
	setUp(t, h, name)
}

// connect makes eth0 in a namespace, the other end of a port of the switch.
func (l *lab) connect(ns *os.File, name string) {
	l.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "eth0"
	veth.PeerNamespace = netlink.NsFd(int(ns.Fd()))
	if err := l.switchNL.LinkAdd(veth); err != nil {
		l.t.Fatal(err)
	}
	enslave(l.t, l.switchNL, name, "switch")
	setUp(l.t, l.switchNL, name)
}

func link(t *testing.T, h *netlink.Handle, name string) netlink.Link {
	t.Helper()
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func enslave(t *testing.T, h *netlink.Handle, name, bridge string) {
	t.Helper()
	if err := h.LinkSetMaster(link(t, h, name), link(t, h, bridge)); err != nil {
		t.Fatal(err)
	}
}

func setUp(t *testing.T, h *netlink.Handle, name string) {
	t.Helper()
	if err := h.LinkSetUp(link(t, h, name)); err != nil {
		t.Fatal(err)
	}
}

func addAddr(t *testing.T, h *netlink.Handle, name string, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := h.AddrAdd(link(t, h, name), addr); err != nil {
			t.Fatal(err)
		}
	}
}

// in runs fn on a thread that is in a namespace. Sockets that fn makes stay there.
func in(t *testing.T, ns *os.File, fn func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with its goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// counters reads the TCP counters of a namespace.
func counters(t *testing.T, ns *os.File) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	in(t, ns, func() error {
		for _, name := range []string{"snmp", "netstat"} {
			f, err := os.Open("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			defer f.Close()
			for s := bufio.NewScanner(f); s.Scan(); {
				names := strings.Fields(s.Text())
				s.Scan()
				for i, v := range strings.Fields(s.Text()) {
					if n, err := strconv.ParseInt(v, 10, 64); err == nil && i < len(names) {
						out[strings.TrimSuffix(names[0], ":")+"."+names[i]] = n
					}
				}
			}
		}
		return nil
	})
	return out
}

// notable are counters that tell of trouble.
var notable = []string{"Tcp.RetransSegs", "TcpExt.TCPTimeouts", "TcpExt.TCPLossProbes", "TcpExt.TCPFastRetrans", "TcpExt.TCPSlowStartRetrans",
	"TcpExt.TCPLostRetransmit", "TcpExt.TCPDSACKRecv", "TcpExt.TCPOFOQueue", "TcpExt.PAWSEstab", "TcpExt.TCPChallengeACK", "TcpExt.TCPRcvQDrop",
	"TcpExt.RcvPruned", "TcpExt.TCPBacklogDrop", "TcpExt.TCPSACKReneging", "Tcp.InErrs", "Tcp.OutRsts", "TcpExt.TCPZeroWindowDrop", "TcpExt.TSEcrRejected"}

func difference(before, after map[string]int64) map[string]int64 {
	d := map[string]int64{}
	for _, k := range notable {
		if n := after[k] - before[k]; n != 0 {
			d[k] = n
		}
	}
	return d
}

// leftovers names the devices and nftables tables of a host that a port has made.
func (l *lab) leftovers(i int) []string {
	l.t.Helper()
	var out []string
	h := handle(l.t, l.hostNS[i])
	links, err := h.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		links, err = h.LinkList()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	for _, k := range links {
		if strings.HasPrefix(k.Attrs().Name, "mg") {
			out = append(out, k.Attrs().Name)
		}
	}
	c := nftables.Conn{NetNS: int(l.hostNS[i].Fd())}
	tables, err := c.ListTables()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, t := range tables {
		out = append(out, "table "+t.Name)
	}
	return out
}
