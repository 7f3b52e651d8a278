package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"migrate/e2e/lab/pid1"
)

// ClientName is the name of the namespace for clients, and of its port.
const ClientName = "client"

// Names and addresses. Host N has 10.77.0.(10+N) and fd77::(10+N), both written with the same digits.
const (
	bridgeInHost   = "br0"
	uplinkInHost   = "eth0"
	bridgeInSwitch = "switch"
)

func hostName(number int) string { return fmt.Sprintf("host%d", number) }

// addresses returns those of a host, or of the client for number 0.
func addresses(number int) (v4, v6 netip.Addr) {
	last := 10 + number
	if number == 0 {
		last = 1
	}
	return netip.MustParseAddr(fmt.Sprintf("10.77.0.%d", last)), netip.MustParseAddr(fmt.Sprintf("fd77::%d", last))
}

// mac returns the hardware address of a host's bridge (kind 0) or of its uplink (kind 1). It is the same after a reboot.
func mac(number, kind int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x77, 0, 0, byte(kind), byte(10 + number)}
}

func hostsText(hosts int) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for n := range hosts + 1 {
		name := ClientName
		if n > 0 {
			name = hostName(n)
		}
		v4, v6 := addresses(n)
		fmt.Fprintf(&b, "%s\t%s\n%s\t%s\n", v4, name, v6, name)
	}
	return b.String()
}

// inNetns opens netlink in the network namespace of a process.
func inNetns(pid int) (*netlink.Handle, netns.NsHandle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, ns, fmt.Errorf("lab: the network namespace of pid %d: %w", pid, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, ns, errors.Join(fmt.Errorf("lab: netlink in the network namespace of pid %d: %w", pid, err), ns.Close())
	}
	return h, ns, nil
}

// switchPID returns the id of the lab's pid 1, as the machine sees it.
func (l *Lab) switchPID(ctx context.Context) (int, error) {
	p, err := pid1.Find(ctx, l.socket(switchName), "")
	if err != nil {
		return 0, fmt.Errorf("lab: the switch: %w", err)
	}
	defer p.Close()
	return pidOf(p.Pidfd)
}

// inSwitch calls f with netlink, and the namespace, of the switch.
func (l *Lab) inSwitch(ctx context.Context, f func(*netlink.Handle, netns.NsHandle) error) error {
	pid, err := l.switchPID(ctx)
	if err != nil {
		return err
	}
	h, ns, err := inNetns(pid)
	if err != nil {
		return err
	}
	defer h.Close()
	return errors.Join(f(h, ns), ns.Close())
}

func (l *Lab) makeSwitch(ctx context.Context) error {
	return l.inSwitch(ctx, func(h *netlink.Handle, _ netns.NsHandle) error {
		return addBridge(h, bridgeInSwitch, nil)
	})
}

// addBridge makes a bridge that forwards everything, multicast to every port, and brings it up with the loopback device.
func addBridge(h *netlink.Handle, name string, address net.HardwareAddr) error {
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, address
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("lab: making the bridge %s: %w", name, err)
	}
	if err := bringUp(h, name); err != nil {
		return err
	}
	return bringUp(h, "lo")
}

func bringUp(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("lab: the device %s: %w", name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("lab: bringing up %s: %w", name, err)
	}
	return nil
}

// connect makes the host's port on the switch, with its other end eth0 in the host, and the host's bridge and addresses.
// pid is that of the host's pid 1.
func (h *Host) connect(ctx context.Context, st *state, pid int) error {
	inside, ns, err := inNetns(pid)
	if err != nil {
		return err
	}
	defer func() { inside.Close(); _ = ns.Close() }()
	err = h.lab.inSwitch(ctx, func(sw *netlink.Handle, _ netns.NsHandle) error {
		return h.addPort(sw, ns, st.Bandwidth)
	})
	if err != nil {
		return err
	}
	address := uplinkInHost
	if h.isClient() {
		err = bringUp(inside, "lo")
	} else {
		address = bridgeInHost
		if err = addBridge(inside, bridgeInHost, mac(h.number, 0)); err == nil {
			err = enslave(inside, uplinkInHost, bridgeInHost)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	if err := addAddresses(inside, address, h.number); err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	if err := shape(inside, uplinkInHost, st.Bandwidth); err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	return bringUp(inside, uplinkInHost)
}

func enslave(h *netlink.Handle, port, bridge string) error {
	p, err := h.LinkByName(port)
	if err != nil {
		return fmt.Errorf("lab: the device %s: %w", port, err)
	}
	b, err := h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("lab: the device %s: %w", bridge, err)
	}
	if err := h.LinkSetMaster(p, b); err != nil {
		return fmt.Errorf("lab: making %s a port of %s: %w", port, bridge, err)
	}
	return nil
}

func (h *Host) addPort(sw *netlink.Handle, host netns.NsHandle, bandwidth uint64) error {
	br, err := sw.LinkByName(bridgeInSwitch)
	if err != nil {
		return fmt.Errorf("lab: the switch: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = h.name, br.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerHardwareAddr = uplinkInHost, netlink.NsFd(host), mac(h.number, 1)
	if err := sw.LinkAdd(veth); err != nil {
		return fmt.Errorf("lab: making the port of %s: %w", h.name, err)
	}
	if err := shape(sw, h.name, bandwidth); err != nil {
		return err
	}
	return bringUp(sw, h.name)
}

// unplug removes the host's port, and with it its eth0: whatever the host still wants to say is not heard.
func (h *Host) unplug(ctx context.Context) error {
	return h.lab.inSwitch(ctx, func(sw *netlink.Handle, _ netns.NsHandle) error {
		port, err := sw.LinkByName(h.name)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		if err == nil {
			err = sw.LinkDel(port)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("lab: removing the port of %s: %w", h.name, err)
		}
		return nil
	})
}

func addAddresses(h *netlink.Handle, device string, number int) error {
	l, err := h.LinkByName(device)
	if err != nil {
		return fmt.Errorf("lab: the device %s: %w", device, err)
	}
	v4, v6 := addresses(number)
	for _, a := range []struct {
		ip    netip.Addr
		bits  int
		flags int
	}{{v4, 24, 0}, {v6, 64, unix.IFA_F_NODAD}} {
		addr := &netlink.Addr{
			IPNet: &net.IPNet{IP: a.ip.AsSlice(), Mask: net.CIDRMask(a.bits, a.ip.BitLen())},
			Flags: a.flags,
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("lab: the address %s/%d on %s: %w", a.ip, a.bits, device, err)
		}
	}
	return nil
}

// shape limits what the device sends, with a token bucket (tc-tbf(8)). bandwidth is in bytes per second.
func shape(h *netlink.Handle, device string, bandwidth uint64) error {
	if bandwidth == 0 {
		return nil
	}
	l, err := h.LinkByName(device)
	if err != nil {
		return fmt.Errorf("lab: the device %s: %w", device, err)
	}
	// One segmentation offload packet at least; 4 ms of the rate, so that a late timer does not lose throughput.
	burst := clamp(bandwidth/250, 64<<10)
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bandwidth,
		Limit:      clamp(bandwidth/40, 256<<10), // a queue of 25 ms
		Buffer:     netlink.Xmittime(bandwidth, burst),
	}
	if err := h.QdiscAdd(q); err != nil {
		return fmt.Errorf("lab: limiting %s to %d bytes/s: %w", device, bandwidth, err)
	}
	return nil
}

func clamp(n uint64, least uint32) uint32 {
	return uint32(min(max(n, uint64(least)), math.MaxUint32))
}

// netnsOf opens the network namespace of a process.
func netnsOf(pid int) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return f, nil
}
