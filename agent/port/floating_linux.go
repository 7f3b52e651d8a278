package port

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Floating is addresses of a host that can live on another one: extra ones on its bridge or uplink. It is a Gate that
// stands on the host's own device and is about these addresses only.
type Floating struct {
	*Gate
	prefixes []netip.Prefix
}

// FloatingSpec says which addresses are to move.
type FloatingSpec struct {
	Name   string         // of the workload; unique on the host
	Device string         // where the addresses are, or are to be, such as "br0"
	Addrs  []netip.Prefix // with the length of the network's prefix
	// Shut makes the gate shut both ways, as a destination needs it before AddAddrs. Otherwise it is open.
	Shut bool
}

// FindFloating looks for the device that has the address, and checks that it can move: it is not among the host's own
// addresses, and the device keeps another address of the same family.
func (h *Host) FindFloating(ctx context.Context, addr netip.Addr, own []netip.Addr) (device string, prefix netip.Prefix, err error) {
	for _, o := range own {
		if o.Unmap() == addr.Unmap() {
			return "", netip.Prefix{}, fmt.Errorf("%v is the host's own address: it cannot move", addr)
		}
	}
	links, err := h.links(ctx)
	if err != nil {
		return "", netip.Prefix{}, err
	}
	for _, l := range links {
		list, err := addrList(h.nl, l)
		if err != nil {
			return "", netip.Prefix{}, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
		}
		found, others := netip.Prefix{}, 0
		for _, a := range list {
			ip, ok := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			switch ip = ip.Unmap(); {
			case !ok || ip.Is4() != addr.Unmap().Is4() || ip.IsLinkLocalUnicast():
			case ip == addr.Unmap():
				found = netip.PrefixFrom(ip, bits)
			default:
				others++
			}
		}
		switch {
		case !found.IsValid():
		case found.Addr().IsLoopback():
			return "", netip.Prefix{}, fmt.Errorf("%v is a loopback address: it cannot move", addr)
		case others == 0:
			return "", netip.Prefix{}, fmt.Errorf("%v is the only address of %s: it cannot move", addr, l.Attrs().Name)
		default:
			return l.Attrs().Name, found, nil
		}
	}
	return "", netip.Prefix{}, fmt.Errorf("%v is not an address of this host", addr)
}

// OpenFloating puts a gate before addresses; a gate that stands already under this name is taken over as it is. At a destination
// the addresses need not exist yet.
func (h *Host) OpenFloating(ctx context.Context, s FloatingSpec) (f *Floating, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := h.nl.LinkByName(s.Device)
	if err != nil {
		return nil, fmt.Errorf("floating addresses of %q: device %s: %w", s.Name, s.Device, err)
	}
	ns, err := h.dupNS()
	if err != nil {
		return nil, err
	}
	g := &Gate{
		host: h, id: id(s.Name), name: s.Name, mac: l.Attrs().HardwareAddr, ns: ns, dev: s.Device,
		into: sinkPrefix + id(s.Name), redirect: l.Attrs().Index,
		in:  direction{chain: "in", device: s.Device, hook: hookIngress},
		out: direction{chain: "out", device: s.Device, hook: hookEgress},
	}
	for _, p := range s.Addrs {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, errors.Join(fmt.Errorf("floating addresses of %q: %v is not one", s.Name, p), ns.Close())
		}
		g.addrs = append(g.addrs, p.Addr())
		g.in.matches = append(g.in.matches, matchTo(p.Addr())...)
		g.out.matches = append(g.out.matches, matchFrom(p.Addr())...)
	}
	if len(g.addrs) == 0 {
		return nil, errors.Join(fmt.Errorf("floating addresses of %q: none given", s.Name), ns.Close())
	}
	exists, err := h.hasTable(g.id)
	if err == nil && exists {
		err = g.adopt()
	} else if err == nil {
		err = g.install(s.Shut)
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &Floating{Gate: g, prefixes: s.Addrs}, nil
}

// AddAddrs gives the addresses to the device; those that it has are left. With the gate shut the network does not learn of it.
func (f *Floating) AddAddrs(ctx context.Context) error {
	return f.eachAddr(ctx, "give", func(l netlink.Link, p netip.Prefix) error {
		if err := f.host.nl.AddrAdd(l, address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return awaitListening(ctx, f.ns, f.dev, []netip.Prefix{p})
	})
}

// RemoveAddrs takes the addresses away from the device; those that it lacks are left out.
func (f *Floating) RemoveAddrs(ctx context.Context) error {
	return f.eachAddr(ctx, "take", func(l netlink.Link, p netip.Prefix) error {
		if err := f.host.nl.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)}); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		return nil
	})
}

func (f *Floating) eachAddr(ctx context.Context, verb string, do func(netlink.Link, netip.Prefix) error) error {
	l, err := f.host.nl.LinkByName(f.dev)
	if err != nil {
		return fmt.Errorf("device %s: %w", f.dev, err)
	}
	for _, p := range f.prefixes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(l, p); err != nil {
			return fmt.Errorf("%s address %v, device %s: %w", verb, p, f.dev, err)
		}
	}
	return nil
}

// End takes the gate away; the addresses stay where they are.
func (f *Floating) End(ctx context.Context) error {
	return errors.Join(f.Close(), f.host.Remove(ctx, f.name))
}

func isProtocol(etherType uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(etherType >> 8), byte(etherType)}},
	}
}

func field(base expr.PayloadBase, offset uint32, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(value))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value},
	}
}

// matchTo matches what is for an address: packets, and questions where it lives.
func matchTo(a netip.Addr) [][]expr.Any {
	if a.Is4() {
		return [][]expr.Any{
			append(isProtocol(unix.ETH_P_IP), field(expr.PayloadBaseNetworkHeader, 16, a.AsSlice())...),
			append(isProtocol(unix.ETH_P_ARP), field(expr.PayloadBaseNetworkHeader, 24, a.AsSlice())...),
		}
	}
	return [][]expr.Any{
		append(isProtocol(unix.ETH_P_IPV6), field(expr.PayloadBaseNetworkHeader, 24, a.AsSlice())...),
		neighbourDiscovery(135, a),
	}
}

// matchFrom matches what comes from an address: packets, and answers where it lives.
func matchFrom(a netip.Addr) [][]expr.Any {
	if a.Is4() {
		return [][]expr.Any{
			append(isProtocol(unix.ETH_P_IP), field(expr.PayloadBaseNetworkHeader, 12, a.AsSlice())...),
			append(isProtocol(unix.ETH_P_ARP), field(expr.PayloadBaseNetworkHeader, 14, a.AsSlice())...),
		}
	}
	return [][]expr.Any{
		append(isProtocol(unix.ETH_P_IPV6), field(expr.PayloadBaseNetworkHeader, 8, a.AsSlice())...),
		neighbourDiscovery(136, a),
	}
}

// neighbourDiscovery matches an ICMPv6 message of a type about an address.
func neighbourDiscovery(kind byte, target netip.Addr) []expr.Any {
	m := isProtocol(unix.ETH_P_IPV6)
	m = append(m, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}})
	m = append(m, field(expr.PayloadBaseTransportHeader, 0, []byte{kind})...)
	return append(m, field(expr.PayloadBaseTransportHeader, 8, target.AsSlice())...)
}
