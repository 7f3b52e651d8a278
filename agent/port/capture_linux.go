package port

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultCapture is how much memory of the kernel a capture may take, in bytes of its own accounting.
const DefaultCapture = 64 << 20

// capture is a pair of devices that no one else uses, and a packet socket that sees what is sent on the first.
type capture struct {
	index   int // of the first device
	sink    int // of the second one
	fd      int
	dropped uint64
	buf     []byte
}

// Arm prepares the gate to capture what it shuts out, in at most size bytes of the kernel's memory (0 for DefaultCapture). It takes
// milliseconds: to be called before the workload is frozen. On a gate that is shut already, capturing begins at once.
func (g *Gate) Arm(size int) (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.capture != nil {
		return nil
	}
	if size == 0 {
		size = DefaultCapture
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("arm the gate of %q: %w", g.name, err), g.disarm())
		}
	}()
	if err := g.host.removeLink(capturePrefix + g.id); err != nil {
		return err // one that a dead agent left
	}
	c := &capture{fd: -1, buf: make([]byte, offloadLen+maxFrame)}
	g.capture = c
	if err := g.addCaptureDevices(c); err != nil {
		return err
	}
	for _, prefix := range []string{capturePrefix, sinkPrefix} {
		if err := awaitCarrier(context.Background(), g.host.nl, prefix+g.id); err != nil {
			return err
		}
	}
	if c.fd, err = packetSocket(g.host.ns, c.index, unix.ETH_P_ALL); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size/2); err != nil {
		return fmt.Errorf("SO_RCVBUFFORCE: %w", err)
	}
	if _, err := g.openDeliverer(); err != nil {
		return err
	}
	if _, err := g.openAnnouncer(); err != nil {
		return err
	}
	if err := g.openMarkers(); err != nil {
		return err
	}
	if g.in.mode != open {
		return g.set(&g.in, g.in.mode)
	}
	return nil
}

// addCaptureDevices makes a veth pair that nothing is received from: the sink drops it.
func (g *Gate) addCaptureDevices(c *capture) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = capturePrefix + g.id
	attrs.MTU = 65535
	if g.redirect != 0 {
		// So that what it receives counts as addressed to the device that it is redirected to.
		attrs.HardwareAddr = g.mac
	}
	veth := netlink.NewVeth(attrs)
	veth.PeerName = sinkPrefix + g.id
	veth.PeerMTU = 65535
	h := g.host
	if err := h.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make devices %s and %s: %w", attrs.Name, veth.PeerName, err)
	}
	for _, x := range []struct {
		name  string
		index *int
	}{{attrs.Name, &c.index}, {veth.PeerName, &c.sink}} {
		l, err := h.nl.LinkByName(x.name)
		if err != nil {
			return fmt.Errorf("device %s: %w", x.name, err)
		}
		*x.index = l.Attrs().Index
		err = inside(h.ns, func() error { return sysctl("ipv6", x.name, "disable_ipv6", "1") })
		if err = errors.Join(err, h.nl.LinkSetARPOff(l)); err != nil {
			return fmt.Errorf("quieten %s: %w", x.name, err)
		}
		if x.name == veth.PeerName {
			err = g.addSink(x.name)
		} else if g.redirect != 0 {
			err = h.redirect(l, g.redirect)
		}
		if err != nil {
			return err
		}
		if err := h.nl.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring %s up: %w", x.name, err)
		}
	}
	return nil
}

// redirect makes another device receive what l receives: what is delivered to a floating address goes this way.
func (h *Host) redirect(l netlink.Link, to int) error {
	index := l.Attrs().Index
	q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := h.nl.QdiscAdd(q); err != nil {
		return fmt.Errorf("ingress of %s: %w", l.Attrs().Name, err)
	}
	mirred := netlink.NewMirredAction(to)
	mirred.MirredAction = netlink.TCA_INGRESS_REDIR
	f := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
		Sel:         &netlink.TcU32Sel{Nkeys: 1, Flags: netlink.TC_U32_TERMINAL, Keys: []netlink.TcU32Key{{}}}, // matches all
		Actions:     []netlink.Action{mirred},
	}
	if err := h.nl.FilterAdd(f); err != nil {
		return fmt.Errorf("redirect %s to device %d: %w", l.Attrs().Name, to, err)
	}
	return nil
}

// addSink drops what the device receives.
func (g *Gate) addSink(device string) error {
	t := g.table()
	d := direction{chain: "sink", device: device, hook: hookIngress}
	return g.transact("install the sink", func(c *nftables.Conn) {
		chain := d.nftChain(t)
		c.AddChain(chain)
		c.FlushChain(chain)
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
	})
}

// Disarm ends the capture. What was captured and not taken is lost; a shut gate stays shut.
func (g *Gate) Disarm() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.disarm()
}

func (g *Gate) disarm() error {
	errs := []error{g.deliverer.close(), g.announcer.close(), g.markers.close()}
	g.deliverer, g.announcer, g.markers = nil, nil, nil
	c := g.capture
	if c == nil {
		return errors.Join(errs...)
	}
	g.capture = nil
	if g.in.mode != open {
		errs = append(errs, g.set(&g.in, g.in.mode))
	}
	if c.fd >= 0 {
		errs = append(errs, unix.Close(c.fd))
	}
	if c.sink != 0 {
		errs = append(errs, g.removeSink())
	}
	errs = append(errs, g.host.removeLink(capturePrefix+g.id))
	return errors.Join(errs...)
}

func (g *Gate) removeSink() error {
	return g.host.nft.use(func(c *nftables.Conn) error {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
		if err != nil {
			return fmt.Errorf("list nftables: %w", err)
		}
		for _, chain := range chains {
			if chain.Table.Name == tablePrefix+g.id && chain.Name == "sink" {
				c.DelChain(chain)
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("remove the sink of %q: %w", g.name, err)
		}
		return nil
	})
}

// takeAtMost bounds what Take gives at once, so that it ends while frames keep coming.
const takeAtMost = 4096

// Take gives the frames that were captured since the last call, or the first of them, in the order of their arrival. None is no error.
func (g *Gate) Take() ([]Frame, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.capture == nil {
		return nil, fmt.Errorf("take frames of %q: the gate is not armed", g.name)
	}
	return g.capture.take(g.mac, takeAtMost)
}

// Dropped is how many frames found no room since Arm.
func (g *Gate) Dropped() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.capture == nil {
		return 0, nil
	}
	// Reading them resets them (packet(7)).
	st, err := unix.GetsockoptTpacketStats(g.capture.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("PACKET_STATISTICS: %w", err)
	}
	g.capture.dropped += uint64(st.Drops)
	return g.capture.dropped, nil
}

// take reads what waits, but not more than limit frames. A bridge also floods frames for others to a port: those are left out.
func (c *capture) take(mac net.HardwareAddr, limit int) ([]Frame, error) {
	var frames []Frame
	for len(frames) < limit {
		n, from, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return frames, nil
		case err == unix.EINTR || err == unix.ENETDOWN:
			continue
		case err != nil:
			return frames, fmt.Errorf("read captured frames: %w", err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype != unix.PACKET_OUTGOING || n < offloadLen+ethernetLen {
			continue
		}
		dst := c.buf[offloadLen : offloadLen+6]
		if dst[0]&1 == 0 && !bytes.Equal(dst, mac) {
			continue
		}
		f := Frame{Data: bytes.Clone(c.buf[offloadLen:n])}
		copy(f.Offload[:], c.buf)
		frames = append(frames, f)
	}
	return frames, nil
}
