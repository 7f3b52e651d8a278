//go:build linux

package ns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/thread"
)

// TestAddressesAreValidAtOnce gives a device IPv6 addresses: sockets of the tree are bound to them right afterwards.
func TestAddressesAreValidAtOnce(t *testing.T) {
	kerneltest.Root(t)
	err := thread.ThrowAway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		link := netlink.NewVeth(netlink.LinkAttrs{Name: "v0"})
		link.PeerName = "v1"
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		for _, name := range []string{"v0", "v1"} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = errors.Join(quiet(&imagespb.NetDevice{Name: name}), netlink.LinkSetUp(l))
			}
			if err != nil {
				return err
			}
		}
		l, err := netlink.LinkByName("v0")
		if err != nil {
			return err
		}
		d := &imagespb.NetDevice{Index: uint32(l.Attrs().Index)}
		for i := range 100 {
			addr := netip.MustParseAddr(fmt.Sprintf("fd00::%x", i+1)).As16()
			m := make([]byte, sizeAddr) // struct ifaddrmsg: family, length of the prefix, flags, scope, index
			m[0], m[1], m[2], m[4] = unix.AF_INET6, 64, unix.IFA_F_PERMANENT, byte(d.Index)
			m = appendAttr(m, unix.IFA_ADDRESS, addr[:])
			m = appendAttr(m, unix.IFA_FLAGS, []byte{unix.IFA_F_PERMANENT, 0, 0, 0})
			d.Addresses = append(d.Addresses, m)
			if err := setAddresses(d); err != nil {
				return err
			}
			table, err := os.ReadFile("/proc/thread-self/net/if_inet6")
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(table)) {
				if f := strings.Fields(line); len(f) == 6 && f[5] == "v0" && f[4] != "80" {
					return fmt.Errorf("after %d addresses: %s", i+1, line)
				}
			}
			s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = errors.Join(unix.Bind(s, &unix.SockaddrInet6{Addr: addr}), unix.Close(s))
			}
			if err != nil {
				return fmt.Errorf("binding to address %d: %w", i+1, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRoutesOverHopsThatAreDown: what a route says of the state of its hops' devices is not part of it.
func TestRoutesOverHopsThatAreDown(t *testing.T) {
	kerneltest.Root(t)
	err := thread.ThrowAway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		link := netlink.NewVeth(netlink.LinkAttrs{Name: "v0"})
		link.PeerName = "v1" // which stays down, so v0 has no carrier
		if err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link)); err != nil {
			return err
		}
		address, err := netlink.ParseAddr("10.0.0.1/24")
		if err == nil {
			err = netlink.AddrAdd(link, address)
		}
		if err != nil {
			return err
		}
		to, hop := netip.MustParsePrefix("10.9.0.0/16"), func(last byte) *netlink.NexthopInfo {
			return &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Gw: []byte{10, 0, 0, last}}
		}
		route := &netlink.Route{Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(16, 32)}, MultiPath: []*netlink.NexthopInfo{hop(2), hop(3)}}
		if err := netlink.RouteAdd(route); err != nil {
			return err
		}
		before, err := listRoutes()
		if err != nil {
			return err
		}
		if err := netlink.RouteDel(route); err != nil {
			return err
		}
		if err := restoreRoutes(before); err != nil {
			return err
		}
		after, err := listRoutes()
		if err == nil && !slices.EqualFunc(before, after, bytes.Equal) {
			err = fmt.Errorf("routes %x became %x", before, after)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
