//go:build linux

package port_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"migrate/agent/port"
)

// TestAsk finds out who has an address on the link, also where that has changed, and that nobody has it.
func TestAsk(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	mac := func() net.HardwareAddr {
		d, err := handle(t, l.client).LinkByName("eth0")
		check(t, "device", err)
		return d.Attrs().HardwareAddr
	}
	ask := func(addr string, expect, want net.HardwareAddr) {
		t.Helper()
		got, err := l.hosts[0].Ask(ctx, "br0", netip.MustParseAddr(addr), expect)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is %v, %v; want %v", addr, got, err, want)
		}
	}
	// A device without a link-local address, as those of workloads are, answers too.
	d, err := handle(t, l.client).LinkByName("eth0")
	check(t, "device", err)
	list, err := handle(t, l.client).AddrList(d, netlink.FAMILY_V6)
	check(t, "addresses", err)
	for i := range list {
		if list[i].IP.IsLinkLocalUnicast() {
			check(t, "take away the link-local address", handle(t, l.client).AddrDel(d, &list[i]))
		}
	}
	first := mac()
	for _, addr := range []string{"10.77.0.2", "fd77::2"} {
		ask(addr, first, first) // asked
		ask(addr, first, first) // known
		ask(addr, net.HardwareAddr{2, 0, 0, 0, 0, 9}, first)
	}
	c := handle(t, l.client)
	second := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	check(t, "another hardware address", c.LinkSetHardwareAddr(d, second))
	for _, addr := range []string{"10.77.0.2", "fd77::2"} {
		ask(addr, second, second)
	}
	h := handle(t, l.hostNS[0])
	br, err := h.LinkByName("br0")
	check(t, "bridge", err)
	fixed := net.HardwareAddr{2, 0, 0, 0, 0, 5}
	check(t, "a permanent neighbour", h.NeighSet(&netlink.Neigh{LinkIndex: br.Attrs().Index, IP: net.IPv4(10, 77, 0, 9), HardwareAddr: fixed, State: netlink.NUD_PERMANENT}))
	check(t, "a permanent neighbour", h.NeighSet(&netlink.Neigh{LinkIndex: br.Attrs().Index, IP: net.ParseIP("fd77::9"), HardwareAddr: fixed, State: netlink.NUD_PERMANENT}))
	ask("10.77.0.9", second, fixed)
	ask("fd77::9", second, fixed)
	nobody := make(chan error, 2)
	for _, addr := range []string{"10.77.0.99", "fd77::99"} {
		go func() {
			_, err := l.hosts[0].Ask(ctx, "br0", netip.MustParseAddr(addr), first)
			nobody <- err
		}()
	}
	for range 2 {
		if err := <-nobody; !errors.Is(err, port.ErrNobody) {
			t.Errorf("an address that nobody has: %v", err)
		}
	}
}
