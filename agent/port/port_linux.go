package port

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Spec says what a workload's port is to be.
type Spec struct {
	Name   string           // of the workload; unique on the host, at most 200 bytes
	MAC    net.HardwareAddr // the workload's; nil for DeriveMAC(Name)
	Addrs  []netip.Prefix   // the workload's, with the length of the network's prefix
	Routes []Route          // beside those to the networks of Addrs
	Bridge string           // the host's, such as "br0"; it must exist
	MTU    int              // 0 for the bridge's
	NetNS  *os.File         // the workload's network namespace
	Device string           // its name in there; "" for "eth0"
	// Shut makes the port with its gate shut both ways, as a destination needs it. Otherwise it is open.
	Shut bool
}

// Route is a route of the workload. The zero Dst is the default route of Via's family.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Port is a workload's port. It is a Gate with devices of its own.
type Port struct {
	*Gate
	Name string
	MAC  net.HardwareAddr
}

func (s *Spec) validate() error {
	switch {
	case s.Name == "" || len(s.Name) > 200:
		return fmt.Errorf("port name of %d bytes, want 1 to 200", len(s.Name))
	case s.NetNS == nil:
		return fmt.Errorf("port %q: no network namespace given", s.Name)
	case s.Bridge == "":
		return fmt.Errorf("port %q: no bridge given", s.Name)
	case s.MAC != nil && (len(s.MAC) != 6 || s.MAC[0]&1 != 0):
		return fmt.Errorf("port %q: %v is not the hardware address of one device", s.Name, s.MAC)
	case s.MTU != 0 && (s.MTU < 1280 || s.MTU > 65535):
		return fmt.Errorf("port %q: MTU %d, want 1280 to 65535", s.Name, s.MTU)
	}
	for _, a := range s.Addrs {
		if !a.IsValid() || a.Addr().Is4In6() || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
			return fmt.Errorf("port %q: %v is not an address of a device", s.Name, a)
		}
	}
	return nil
}

// complete checks a Spec, fills in what it leaves open, and finds its bridge.
func (h *Host) complete(s *Spec) (bridge netlink.Link, err error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	if s.MAC == nil {
		s.MAC = DeriveMAC(s.Name)
	}
	if s.Device == "" {
		s.Device = "eth0"
	}
	if bridge, err = h.nl.LinkByName(s.Bridge); err != nil {
		return nil, fmt.Errorf("port %q: bridge %s: %w", s.Name, s.Bridge, err)
	}
	if s.MTU == 0 {
		s.MTU = bridge.Attrs().MTU
	}
	if s.MTU > bridge.Attrs().MTU {
		return nil, fmt.Errorf("port %q: MTU %d is larger than that of bridge %s, %d", s.Name, s.MTU, s.Bridge, bridge.Attrs().MTU)
	}
	return bridge, nil
}

// Create makes a workload's port. It fails if one of this name exists (Remove it first); what a failed Create has made
// is removed. No frame leaves the port that the workload has not caused: no duplicate address detection, no
// autoconfiguration; and none at all before OpenEgress if Spec.Shut.
func (h *Host) Create(ctx context.Context, s Spec) (p *Port, err error) {
	bridge, err := h.complete(&s)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	veth, err := h.addVeth(&s)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", s.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("port %q: %w", s.Name, err), h.Remove(context.WithoutCancel(ctx), s.Name))
		}
	}()
	p, err = h.port(s.Name, s.MAC, s.NetNS, s.Device)
	if err != nil {
		return nil, err
	}
	for _, a := range s.Addrs {
		p.addrs = append(p.addrs, a.Addr())
	}
	made := p
	defer func() {
		if err != nil {
			err = errors.Join(err, made.Close())
		}
	}()
	if err := p.install(s.Shut); err != nil {
		return nil, err
	}
	if err := prepareDevice(&s); err != nil {
		return nil, err
	}
	if err := h.plug(veth, bridge); err != nil {
		return nil, err
	}
	if err := awaitCarrier(ctx, h.nl, veth.Attrs().Name); err != nil {
		return nil, err
	}
	if err := p.withDevice(func(w *netlink.Handle, l netlink.Link) error { return configure(ctx, w, l, &s) }); err != nil {
		return nil, err
	}
	return p, nil
}

// Find gives the port of this name that another Create has made, such as that of an agent that died, with its gate as it is and
// not armed. device is the workload's device in netns, "" for "eth0".
func (h *Host) Find(ctx context.Context, name string, workload *os.File, device string) (*Port, error) {
	if device == "" {
		device = "eth0"
	}
	ports, err := h.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range ports {
		if i.Name != name {
			continue
		}
		mac, err := deviceMAC(workload, device)
		if err != nil {
			return nil, fmt.Errorf("port %q: %w", name, err)
		}
		p, err := h.port(name, mac, workload, device)
		if err != nil {
			return nil, err
		}
		if err := p.adopt(); err != nil {
			return nil, errors.Join(fmt.Errorf("port %q: %w", name, err), p.Close())
		}
		return p, nil
	}
	return nil, fmt.Errorf("port %q: no such port on this host", name)
}

func deviceMAC(ns *os.File, device string) (mac net.HardwareAddr, err error) {
	w, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer w.Close()
	l, err := w.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("device %s of the workload: %w", device, err)
	}
	return l.Attrs().HardwareAddr, nil
}

// port makes the value for a port whose devices exist.
func (h *Host) port(name string, mac net.HardwareAddr, workload *os.File, device string) (*Port, error) {
	var ns *os.File
	if err := inside(workload, func() (err error) {
		ns, err = ownNetns()
		return err
	}); err != nil {
		return nil, err
	}
	dev := portPrefix + id(name)
	g := &Gate{
		host: h, id: id(name), name: name, mac: mac,
		// Seen from the host's end, what goes to the workload goes out.
		in:   direction{chain: "in", device: dev, hook: hookEgress},
		out:  direction{chain: "out", device: dev, hook: hookIngress},
		ns:   ns,
		dev:  device,
		into: dev,
	}
	return &Port{Gate: g, Name: name, MAC: mac}, nil
}

// addVeth makes the pair, down.
func (h *Host) addVeth(s *Spec) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = portPrefix + id(s.Name)
	attrs.MTU = s.MTU
	// A bridge takes the lowest address among its ports for its own, unless it was given one. This one is never the lowest.
	attrs.HardwareAddr = append(net.HardwareAddr{0xfe}, DeriveMAC(s.Name + " at the host's end")[1:]...)
	veth := netlink.NewVeth(attrs)
	veth.PeerName = s.Device
	veth.PeerHardwareAddr = s.MAC
	veth.PeerNamespace = netlink.NsFd(int(s.NetNS.Fd()))
	veth.PeerMTU = uint32(s.MTU)
	if err := h.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make devices %s and, in the workload, %s: %w", attrs.Name, s.Device, err)
	}
	l, err := h.nl.LinkByName(attrs.Name)
	if err == nil {
		err = h.nl.LinkSetAlias(l, aliasPrefix+s.Name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: %w", attrs.Name, err), h.removeLink(attrs.Name))
	}
	return l, nil
}

// plug brings the host's end up as a port of the bridge. It has no addresses and speaks no IP itself.
func (h *Host) plug(veth, bridge netlink.Link) error {
	dev := veth.Attrs().Name
	if err := h.nl.LinkSetMaster(veth, bridge); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", dev, bridge.Attrs().Name, err)
	}
	if err := inside(h.ns, func() error { return sysctl("ipv6", dev, "disable_ipv6", "1") }); err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring %s up: %w", dev, err)
	}
	return nil
}

// prepareDevice keeps the workload's device from talking by itself, and brings it up without addresses.
func prepareDevice(s *Spec) error {
	err := inside(s.NetNS, func() error {
		for _, kv := range [][2]string{
			{"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"accept_dad", "0"}, {"dad_transmits", "0"}, {"router_solicitations", "0"},
		} {
			if err := sysctl("ipv6", s.Device, kv[0], kv[1]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	w, err := netlink.NewHandleAt(netns.NsHandle(s.NetNS.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in the workload's namespace: %w", err)
	}
	defer w.Close()
	for _, dev := range []string{"lo", s.Device} {
		l, err := w.LinkByName(dev)
		if err == nil {
			err = w.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("bring the workload's %s up: %w", dev, err)
		}
	}
	return nil
}

// configure gives the workload its addresses and routes, once its device works.
func configure(ctx context.Context, w *netlink.Handle, l netlink.Link, s *Spec) error {
	if err := awaitCarrier(ctx, w, s.Device); err != nil {
		return err
	}
	if err := addAddrs(w, l, s.Addrs); err != nil {
		return err
	}
	if err := awaitListening(ctx, s.NetNS, s.Device, s.Addrs); err != nil {
		return err
	}
	for _, r := range s.Routes {
		if err := w.RouteAdd(route(l.Attrs().Index, r)); err != nil {
			return fmt.Errorf("route %v by %v: %w", r.Dst, r.Via, err)
		}
	}
	return nil
}

func addAddrs(w *netlink.Handle, l netlink.Link, addrs []netip.Prefix) error {
	for _, p := range addrs {
		if err := w.AddrAdd(l, address(p)); err != nil {
			return fmt.Errorf("give %s the address %v: %w", l.Attrs().Name, p, err)
		}
	}
	return nil
}

// address is an address that is valid at once: without duplicate address detection.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func route(index int, r Route) *netlink.Route {
	out := &netlink.Route{LinkIndex: index, Family: nl.FAMILY_V4}
	if r.Via.IsValid() {
		out.Gw = r.Via.AsSlice()
	}
	if r.Via.Is6() || r.Dst.Addr().Is6() {
		out.Family = nl.FAMILY_V6
	}
	if r.Dst.IsValid() {
		out.Dst = ipNet(r.Dst)
	}
	return out
}

// Destroy removes the port with all that belongs to it, the workload's device too.
func (p *Port) Destroy(ctx context.Context) error {
	return errors.Join(p.Close(), p.host.Remove(ctx, p.Name))
}
