package sock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// PacketInfo is what the kernel tells about a packet socket (include/uapi/linux/packet_diag.h).
type PacketInfo struct {
	Protocol   uint16 // ETH_P_*
	Index      uint32 // interface that it is bound to, 0 for all
	CopyThresh uint32
	Groups     []PacketGroup
	RX, TX     *PacketRing
	Fanout     *uint32 // id, type and flags as PACKET_FANOUT takes them; nil for none
}

// PacketGroup is struct packet_mreq, and how often it was added.
type PacketGroup struct {
	Index, Count uint32
	Type         uint16
	Addr         []byte
}

// PacketRing is struct tpacket_req3.
type PacketRing struct{ BlockSize, BlockCount, FrameSize, FrameCount, Timeout, PrivSize, Features uint32 }

// Size is what the ring takes in memory, in bytes; 0 for none.
func (r *PacketRing) Size() uint64 {
	if r == nil {
		return 0
	}
	return uint64(r.BlockSize) * uint64(r.BlockCount)
}

// packet_diag.h
const (
	packetShow   = 0x1 | 0x2 | 0x4 | 0x8 // PACKET_SHOW_INFO, MCLIST, RING_CFG, FANOUT
	packetMsg    = 16                    // struct packet_diag_msg
	packetMember = 44                    // struct packet_diag_mclist

	attrPacketInfo, attrPacketGroups, attrPacketRX, attrPacketTX, attrPacketFanout = 0, 1, 2, 3, 4
)

// Packet asks about the packet socket with the inode number given.
func (d *Diag) Packet(ino uint32) (*PacketInfo, error) {
	req := make([]byte, unix.NLMSG_HDRLEN+20)
	ne := binary.NativeEndian
	ne.PutUint32(req, uint32(len(req)))
	ne.PutUint16(req[4:], diagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.NLMSG_HDRLEN:]
	body[0] = unix.AF_PACKET
	ne.PutUint32(body[8:], packetShow)
	if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask about packet sockets: %w", err)
	}
	var found *PacketInfo
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("answer about packet sockets: %w", err)
		}
		p, done, err := parsePackets(d.buf[:n], ino)
		if err != nil {
			return nil, err
		}
		if p != nil {
			found = p
		}
		if done && found == nil {
			return nil, ErrNoSocket
		}
		if done {
			return found, nil
		}
	}
}

// parsePackets looks for one socket in a datagram of packet_diag messages; done tells that the last one has been seen.
func parsePackets(b []byte, ino uint32) (found *PacketInfo, done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= unix.NLMSG_HDRLEN {
		size := ne.Uint32(b)
		if size < unix.NLMSG_HDRLEN || uint64(size) > uint64(len(b)) {
			return nil, true, fmt.Errorf("sock_diag: a message of %d in %d bytes", size, len(b))
		}
		m := b[unix.NLMSG_HDRLEN:size]
		switch typ := ne.Uint16(b[4:]); {
		case typ == unix.NLMSG_DONE:
			return found, true, nil
		case typ == unix.NLMSG_ERROR && len(m) >= 4:
			return nil, true, fmt.Errorf("sock_diag (CONFIG_PACKET_DIAG): %w", unix.Errno(-int32(ne.Uint32(m))))
		case typ != diagByFamily || len(m) < packetMsg:
			return nil, true, fmt.Errorf("sock_diag: message type %d of %d bytes", typ, len(m))
		case ne.Uint32(m[4:]) == ino:
			found = &PacketInfo{Protocol: ne.Uint16(m[2:])}
			if err := found.attributes(m[packetMsg:]); err != nil {
				return nil, true, err
			}
		}
		b = b[min((int(size)+3)&^3, len(b)):]
	}
	return found, false, nil
}

func (p *PacketInfo) attributes(a []byte) error {
	ne := binary.NativeEndian
	for len(a) >= 4 {
		n := int(ne.Uint16(a))
		if n < 4 || n > len(a) {
			return fmt.Errorf("sock_diag: an attribute of %d in %d bytes", n, len(a))
		}
		v := a[4:n]
		switch typ := ne.Uint16(a[2:]); {
		case typ == attrPacketInfo && len(v) >= 24:
			p.Index, p.CopyThresh = ne.Uint32(v), ne.Uint32(v[12:])
		case typ == attrPacketGroups:
			for ; len(v) >= packetMember; v = v[packetMember:] {
				p.Groups = append(p.Groups, PacketGroup{Index: ne.Uint32(v), Count: ne.Uint32(v[4:]), Type: ne.Uint16(v[8:]), Addr: append([]byte{}, v[12:12+min(int(ne.Uint16(v[10:])), 32)]...)})
			}
		case (typ == attrPacketRX || typ == attrPacketTX) && len(v) >= 28:
			r := &PacketRing{ne.Uint32(v), ne.Uint32(v[4:]), ne.Uint32(v[8:]), ne.Uint32(v[12:]), ne.Uint32(v[16:]), ne.Uint32(v[20:]), ne.Uint32(v[24:])}
			if typ == attrPacketRX {
				p.RX = r
			} else {
				p.TX = r
			}
		case typ == attrPacketFanout && len(v) >= 4:
			f := ne.Uint32(v)
			p.Fanout = &f
		}
		a = a[min((n+3)&^3, len(a)):]
	}
	return nil
}

// Options of packet sockets (linux/if_packet.h).
const (
	packetAddMembership = 1
	packetRXRing        = 5
	packetCopyThresh    = 7
	packetVersion       = 10
	packetTXRing        = 13
	packetFanout        = 18
)

// DeviceName is the name of an interface in the network namespace of a socket; "" for index 0.
func DeviceName(fd, index int) (string, error) {
	if index == 0 {
		return "", nil
	}
	return deviceName(fd, index)
}

// DeviceIndex is the index of an interface in the network namespace of a socket; 0 for "".
func DeviceIndex(fd int, name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	return deviceIndex(fd, name)
}

// SetRings gives a packet socket its rings, before it is bound.
func (p *PacketInfo) SetRings(fd int) error {
	if p.RX == nil && p.TX == nil {
		return nil
	}
	version, err := unix.GetsockoptInt(fd, levelPacket, packetVersion)
	if err != nil {
		return fmt.Errorf("PACKET_VERSION: %w", err)
	}
	for _, x := range []struct {
		opt  int
		ring *PacketRing
	}{{packetRXRing, p.RX}, {packetTXRing, p.TX}} {
		r := x.ring
		if r == nil || r.BlockCount == 0 {
			continue
		}
		words := []uint32{r.BlockSize, r.BlockCount, r.FrameSize, r.FrameCount}
		if version == unix.TPACKET_V3 {
			words = append(words, r.Timeout, r.PrivSize, r.Features)
		}
		var b []byte
		for _, w := range words {
			b = binary.NativeEndian.AppendUint32(b, w)
		}
		if err := unix.SetsockoptString(fd, levelPacket, x.opt, string(b)); err != nil {
			return fmt.Errorf("ring of %d blocks of %d bytes: %w", r.BlockCount, r.BlockSize, err)
		}
	}
	return nil
}

// BindPacket binds a packet socket to a protocol and an interface; legacy for one of type SOCK_PACKET (packet(7)).
func BindPacket(fd int, protocol uint16, device string, legacy bool) error {
	if legacy {
		if device == "" {
			return nil
		}
		addr := make([]byte, 18) // struct sockaddr_pkt: family, name, protocol
		binary.NativeEndian.PutUint16(addr, unix.AF_PACKET)
		copy(addr[2:15], device)
		if err := bind(fd, addr[:16]); err != nil {
			return fmt.Errorf("bind packet socket to interface %q: %w", device, err)
		}
		return nil
	}
	index, err := DeviceIndex(fd, device)
	if err == nil && (index != 0 || protocol != 0) {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: index})
	}
	if err != nil {
		return fmt.Errorf("bind packet socket to protocol %#x, interface %q: %w", protocol, device, err)
	}
	return nil
}

// FinishPacket adds what comes after binding: memberships, threshold and fanout group.
func (p *PacketInfo) FinishPacket(fd int) error {
	var errs []error
	for _, g := range p.Groups {
		mreq := binary.NativeEndian.AppendUint32(nil, g.Index)
		mreq = binary.NativeEndian.AppendUint16(mreq, g.Type)
		mreq = binary.NativeEndian.AppendUint16(mreq, uint16(len(g.Addr)))
		addr := make([]byte, max(8, len(g.Addr)))
		copy(addr, g.Addr)
		for range min(g.Count, 1024) {
			if err := unix.SetsockoptString(fd, levelPacket, packetAddMembership, string(append(mreq, addr...))); err != nil {
				errs = append(errs, fmt.Errorf("membership of type %d on interface %d: %w", g.Type, g.Index, err))
			}
		}
	}
	if p.CopyThresh != 0 {
		errs = append(errs, unix.SetsockoptInt(fd, levelPacket, packetCopyThresh, int(p.CopyThresh)))
	}
	if p.Fanout != nil {
		if err := unix.SetsockoptInt(fd, levelPacket, packetFanout, int(int32(*p.Fanout))); err != nil {
			errs = append(errs, fmt.Errorf("fanout group %#x: %w", *p.Fanout, err))
		}
	}
	return errors.Join(errs...)
}
