package port

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// packetSocket opens a packet socket on a device of a network namespace. protocol 0 receives nothing.
func packetSocket(ns *os.File, index int, protocol uint16) (fd int, err error) {
	fd = -1
	err = inside(ns, func() error {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	if err := setUpPacket(fd, index, protocol); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setUpPacket(fd, index int, protocol uint16) error {
	for _, o := range []struct {
		name              string
		level, opt, value int
	}{
		{"PACKET_VNET_HDR", unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, mark},
		{"SO_SNDBUFFORCE", unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8 << 20},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return fmt.Errorf("packet socket: set %s: %w", o.name, err)
		}
	}
	sa := &unix.SockaddrLinklayer{Ifindex: index, Protocol: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("packet socket: bind to device %d: %w", index, err)
	}
	return nil
}

// Deliver lets the device behind the gate receive frames that were captured on another host, or here, in their order and
// whether the gate is shut or not. It returns how many went in; an error says what became of the next one.
func (g *Gate) Deliver(frames []Frame) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.deliver(frames)
}

// DeliverPackets does the same for bare IP packets.
func (g *Gate) DeliverPackets(packets [][]byte) error {
	frames := make([]Frame, 0, len(packets))
	for _, p := range packets {
		kind := uint16(unix.ETH_P_IP)
		if len(p) > 0 && p[0]>>4 == 6 {
			kind = unix.ETH_P_IPV6
		}
		// The source is a locally administered address that no device has: no one answers to it.
		data := append(append(make([]byte, 0, ethernetLen+len(p)), g.mac...), 0x02, 0, 0, 0, 0, 0)
		data = append(binary.BigEndian.AppendUint16(data, kind), p...)
		frames = append(frames, Frame{Data: data})
	}
	_, err := g.Deliver(frames)
	return err
}

// deliverBatch is how many frames are sent before they are known to have been received: the kernel's queue between two devices
// drops what is more than net.core.netdev_max_backlog, 1000 by default.
const deliverBatch = 128

func (g *Gate) deliver(frames []Frame) (int, error) {
	if len(frames) == 0 {
		return 0, nil
	}
	tx, err := g.openDeliverer()
	if err != nil {
		return 0, fmt.Errorf("deliver frames to %q: %w", g.name, err)
	}
	for i, f := range frames {
		err := tx.send(f, g.mac)
		if err == nil && (i+1)%deliverBatch == 0 && g.markers != nil {
			err = g.markers.pass(g)
		}
		if err != nil {
			return i, fmt.Errorf("deliver frame %d of %d to %q: %w", i+1, len(frames), g.name, err)
		}
	}
	return len(frames), nil
}

// sender is a packet socket that sends on one device.
type sender struct{ fd int }

// openDeliverer gives the socket that sends to the device behind the gate.
func (g *Gate) openDeliverer() (*sender, error) {
	if g.deliverer != nil {
		return g.deliverer, nil
	}
	l, err := g.host.nl.LinkByName(g.into)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", g.into, err)
	}
	fd, err := packetSocket(g.host.ns, l.Attrs().Index, 0)
	if err != nil {
		return nil, err
	}
	g.deliverer = &sender{fd: fd}
	return g.deliverer, nil
}

// openAnnouncer gives the socket that sends as the device behind the gate.
func (g *Gate) openAnnouncer() (*sender, error) {
	if g.announcer != nil {
		return g.announcer, nil
	}
	index, err := g.deviceIndex()
	if err != nil {
		return nil, err
	}
	fd, err := packetSocket(g.ns, index, 0)
	if err != nil {
		return nil, err
	}
	g.announcer = &sender{fd: fd}
	return g.announcer, nil
}

// deviceIndex is the number of the device behind the gate.
func (g *Gate) deviceIndex() (index int, err error) {
	err = g.withDevice(func(_ *netlink.Handle, l netlink.Link) error {
		index = l.Attrs().Index
		return nil
	})
	return index, err
}

func (s *sender) close() error {
	if s == nil {
		return nil
	}
	return unix.Close(s.fd)
}

// send sends a frame as it was captured, except that one for a single device is for mac.
func (s *sender) send(f Frame, mac net.HardwareAddr) error {
	if len(f.Data) < ethernetLen {
		return fmt.Errorf("%d bytes are no frame", len(f.Data))
	}
	b := append(append(make([]byte, 0, offloadLen+len(f.Data)), f.Offload[:]...), f.Data...)
	if b[offloadLen]&1 == 0 {
		copy(b[offloadLen:], mac)
	}
	for {
		_, err := unix.Write(s.fd, b)
		if err == unix.EINTR {
			continue
		}
		return err
	}
}
