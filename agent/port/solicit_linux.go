package port

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// How often, and how far apart, a question is asked (MAX_MULTICAST_SOLICIT and RETRANS_TIMER, RFC 4861, section 10).
const (
	solicitations = 3
	retransTimer  = time.Second
)

// solicit asks who has an IPv6 address, and returns the hardware address that the first answer names. The kernel would ask from the
// device's link-local address, and workloads have none to answer it from: this asks from the host's own address in the network of addr.
func solicit(ctx context.Context, device string, addr netip.Addr) (mac net.HardwareAddr, err error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	from, err := neighbourOf(dev, addr)
	if err != nil {
		return nil, err
	}
	group, err := ndp.SolicitedNodeMulticast(addr)
	if err != nil {
		return nil, err
	}
	conn, _, err := ndp.Listen(dev, ndp.Addr(from.String()))
	if err != nil {
		return nil, fmt.Errorf("neighbour discovery from %v: %w", from, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		err = errors.Join(err, conn.Close())
	}()
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeNeighborAdvertisement)
	if err := cmp.Or(conn.SetICMPFilter(&filter), conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true)); err != nil {
		return nil, err
	}
	question := &ndp.NeighborSolicitation{TargetAddress: addr, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: dev.HardwareAddr}}}
	for range solicitations {
		if err := conn.SetReadDeadline(time.Now().Add(retransTimer)); err != nil {
			return nil, err
		}
		if ctx.Err() != nil { // its function may have run before that
			return nil, context.Cause(ctx)
		}
		if err := conn.WriteTo(question, nil, group); err != nil {
			return nil, fmt.Errorf("neighbour solicitation: %w", err)
		}
		mac, err := advertised(conn, dev, addr)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return mac, err
		}
	}
	return nil, ErrNobody
}

// advertised reads until an answer names the hardware address of addr.
func advertised(conn *ndp.Conn, dev *net.Interface, addr netip.Addr) (net.HardwareAddr, error) {
	for {
		m, cm, _, err := conn.ReadFrom()
		if err != nil {
			return nil, err
		}
		na, ok := m.(*ndp.NeighborAdvertisement)
		if !ok || na.TargetAddress != addr || cm == nil || cm.HopLimit != ndp.HopLimit || cm.IfIndex != dev.Index {
			continue // one with another hop limit came from beyond the link
		}
		for _, o := range na.Options {
			if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Target {
				return l.Addr, nil
			}
		}
	}
}

// neighbourOf is an address of the device in whose network addr is.
func neighbourOf(dev *net.Interface, addr netip.Addr) (netip.Addr, error) {
	list, err := dev.Addrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Contains(addr) {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no address in the network of %v", dev.Name, addr)
}
