package port

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNobody means that no device on the link has answered to an address.
var ErrNobody = errors.New("nobody on the link answers to the address")

// Ask asks on the link of a device of this host who has an address, by ARP (arp(7)) or neighbour discovery (RFC 4861), and returns the
// hardware address. By IPv4 it has the kernel ask, as before something is sent there; what the kernel knows is believed if it is what the
// caller expects. ErrNobody after three questions, which takes three seconds.
func (h *Host) Ask(ctx context.Context, device string, addr netip.Addr, expect net.HardwareAddr) (net.HardwareAddr, error) {
	q := &question{nl: h.nl, addr: addr, device: device, family: unix.AF_INET6}
	if addr.Is4() {
		q.family = unix.AF_INET
	}
	link, err := h.nl.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	q.index = link.Attrs().Index
	var mac net.HardwareAddr
	err = inside(h.ns, func() (err error) {
		mac, err = q.ask(ctx, expect)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("asking on %s for %v: %w", device, addr, err)
	}
	return mac, nil
}

// question is one Ask.
type question struct {
	nl     *netlink.Handle
	addr   netip.Addr
	device string
	index  int // of the device
	family int
}

// valid are the states of an entry whose hardware address is known (include/net/neighbour.h, NUD_VALID).
const valid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

func (q *question) about(n *netlink.Neigh) bool {
	ip, ok := netip.AddrFromSlice(n.IP)
	return ok && ip.Unmap() == q.addr && n.LinkIndex == q.index
}

func (q *question) ask(ctx context.Context, expect net.HardwareAddr) (net.HardwareAddr, error) {
	if q.family == unix.AF_INET6 {
		return q.ask6(ctx)
	}
	answers, done := make(chan netlink.NeighUpdate), make(chan struct{})
	if err := netlink.NeighSubscribe(answers, done); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	defer func() {
		close(done)
		for range answers { // its goroutine ends
		}
	}()
	list, err := q.known(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		n := &list[i]
		if n.State&valid == 0 {
			continue
		}
		if n.State&unix.NUD_PERMANENT != 0 || bytes.Equal(n.HardwareAddr, expect) {
			return n.HardwareAddr, nil
		}
		if err := q.nl.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("forgetting %v: %w", n.HardwareAddr, err)
		}
	}
	if err := q.use(); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case u, ok := <-answers:
			switch {
			case !ok:
				return nil, errors.New("the kernel's news of neighbours have ended")
			case u.Type != unix.RTM_NEWNEIGH || !q.about(&u.Neigh):
			case u.State&valid != 0:
				return u.HardwareAddr, nil
			case u.State&unix.NUD_FAILED != 0:
				if still, err := q.known(ctx); err != nil || slices.ContainsFunc(still, failed) {
					return nil, cmp.Or(err, ErrNobody) // else it was the answer to an earlier question
				}
			}
		}
	}
}

// ask6 believes what somebody has set for good, and else asks.
func (q *question) ask6(ctx context.Context) (net.HardwareAddr, error) {
	list, err := q.known(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		if n.State&unix.NUD_PERMANENT != 0 {
			return n.HardwareAddr, nil
		}
	}
	return solicit(ctx, q.device, q.addr)
}

func failed(n netlink.Neigh) bool { return n.State&unix.NUD_FAILED != 0 }

// known lists what the kernel knows of the address.
func (q *question) known(ctx context.Context) ([]netlink.Neigh, error) {
	list, err := q.nl.NeighList(q.index, q.family)
	for errors.Is(err, netlink.ErrDumpInterrupted) && ctx.Err() == nil {
		list, err = q.nl.NeighList(q.index, q.family)
	}
	if err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	return slices.DeleteFunc(list, func(n netlink.Neigh) bool { return !q.about(&n) }), nil
}

// use makes the kernel ask, as if something were to be sent (neigh_add in net/core/neighbour.c, NTF_USE).
func (q *question) use() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_ACK)
	req.AddData(&netlink.Ndmsg{Family: uint8(q.family), Index: uint32(q.index), Flags: unix.NTF_USE})
	req.AddData(nl.NewRtAttr(unix.NDA_DST, q.addr.AsSlice()))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("make the kernel ask: %w", err)
	}
	return nil
}
