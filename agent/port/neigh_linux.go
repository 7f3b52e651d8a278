package port

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Neighbour is a host on the workload's network, as its kernel knew it.
type Neighbour struct {
	IP        netip.Addr
	MAC       net.HardwareAddr
	Permanent bool // set by an administrator, for good
}

// maxNeighbours bounds a list from the other host.
const maxNeighbours = 4096

// Neighbours lists whom the device behind the gate knows.
func (g *Gate) Neighbours(ctx context.Context) ([]Neighbour, error) {
	var out []Neighbour
	err := g.withDevice(func(w *netlink.Handle, l netlink.Link) error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			list, err := w.NeighList(l.Attrs().Index, family)
			for errors.Is(err, netlink.ErrDumpInterrupted) && ctx.Err() == nil {
				list, err = w.NeighList(l.Attrs().Index, family)
			}
			if err != nil {
				return fmt.Errorf("neighbours: %w", err)
			}
			for _, n := range list {
				const known = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
				ip, ok := netip.AddrFromSlice(n.IP)
				if !ok || n.State&known == 0 || len(n.HardwareAddr) != 6 || ip.Unmap().IsMulticast() {
					continue
				}
				out = append(out, Neighbour{IP: ip.Unmap(), MAC: n.HardwareAddr, Permanent: n.State&unix.NUD_PERMANENT != 0})
			}
		}
		return nil
	})
	return out[:min(len(out), maxNeighbours)], err
}

// InstallNeighbours tells the device behind the gate whom it would have to ask for otherwise. Whom it knows already is
// left as it is.
func (g *Gate) InstallNeighbours(_ context.Context, list []Neighbour) error {
	if len(list) > maxNeighbours {
		return fmt.Errorf("neighbours of %q: %d are too many", g.name, len(list))
	}
	return g.withDevice(func(w *netlink.Handle, l netlink.Link) error {
		for _, n := range list {
			if !n.IP.IsValid() || n.IP.IsMulticast() || len(n.MAC) != 6 {
				return fmt.Errorf("%v at %v is no neighbour", n.IP, n.MAC)
			}
			state := unix.NUD_REACHABLE
			if n.Permanent {
				state = unix.NUD_PERMANENT
			}
			err := w.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: state, IP: n.IP.AsSlice(), HardwareAddr: n.MAC})
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("neighbour %v at %v: %w", n.IP, n.MAC, err)
			}
		}
		return nil
	})
}

// withDevice runs fn with the device behind the gate and a handle in its namespace.
func (g *Gate) withDevice(fn func(*netlink.Handle, netlink.Link) error) error {
	w, err := netlink.NewHandleAt(netns.NsHandle(g.ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in the namespace of %q: %w", g.name, err)
	}
	defer w.Close()
	l, err := w.LinkByName(g.dev)
	if err != nil {
		return fmt.Errorf("device %s of %q: %w", g.dev, g.name, err)
	}
	if err := fn(w, l); err != nil {
		return fmt.Errorf("device %s of %q: %w", g.dev, g.name, err)
	}
	return nil
}

// Addrs lists the addresses that the gate stands for: those of the workload's device, or the floating ones.
func (g *Gate) Addrs() ([]netip.Addr, error) {
	if len(g.addrs) > 0 {
		return g.addrs, nil
	}
	var out []netip.Addr
	err := g.withDevice(func(w *netlink.Handle, l netlink.Link) error {
		list, err := addrList(w, l)
		if err != nil {
			return fmt.Errorf("addresses: %w", err)
		}
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
		return nil
	})
	return out, err
}

// Announce tells the network where the gate's addresses live now: at once, and again after each of the pauses, since an
// announcement can get lost. Only the owner of the workload may call it, with egress open. It returns when it has sent the last
// one or the context ends.
func (g *Gate) Announce(ctx context.Context, pauses ...time.Duration) error {
	addrs, err := g.Addrs()
	if err != nil {
		return fmt.Errorf("announce %q: %w", g.name, err)
	}
	frames := make([]Frame, 0, len(addrs))
	for _, a := range addrs {
		frames = append(frames, Frame{Data: announcement(g.mac, a)})
	}
	for i := 0; ; i++ {
		if err := g.announce(frames); err != nil {
			return fmt.Errorf("announce %q: %w", g.name, err)
		}
		if i == len(pauses) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pauses[i]):
		}
	}
}

func (g *Gate) announce(frames []Frame) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	tx, err := g.openAnnouncer()
	if err != nil {
		return err
	}
	for _, f := range frames {
		if err := tx.send(f, g.mac); err != nil {
			return err
		}
	}
	return nil
}
