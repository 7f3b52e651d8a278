package tcprepair

import (
	"encoding/binary"
	"net/netip"
)

// Flags of the TCP header (RFC 9293, section 3.1).
const (
	flagFIN = 0x01
	flagRST = 0x04
	flagACK = 0x10
	flagURG = 0x20 // packet marks the first byte of the payload
)

// AckProbe is an IP packet as the peer could have sent it: one byte that the connection has received already. The restored
// socket answers it with an acknowledgement of all that it has received, at once. To be delivered to it after Release
// (package agent/port), when Unacknowledged is not zero. The peer sees one acknowledgement that names one byte as a duplicate.
func (s *State) AckProbe() []byte {
	return s.packet(s.rcvNext()-1, flagACK, []byte{0})
}

// packet builds an IP packet from the peer to the connection's local end, with its checksums, acknowledging nothing new
// (or, in FIN_WAIT2, our FIN).
func (s *State) packet(seq uint32, flags byte, payload []byte) []byte {
	ack := s.unacked()
	if s.TCP == FinWait2 {
		ack = s.sndNext()
	}
	tcp := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(tcp[0:], s.Remote.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.Local.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12] = 5 << 4
	tcp[13] = flags | flagACK
	binary.BigEndian.PutUint16(tcp[14:], uint16(min(s.Window.SndWnd>>s.SendScale, 65535)))
	if flags&flagURG != 0 {
		binary.BigEndian.PutUint16(tcp[18:], 1)
	}
	tcp = append(tcp, payload...)
	src, dst := s.Remote.Addr().Unmap(), s.Local.Addr().Unmap()
	binary.BigEndian.PutUint16(tcp[16:], tcpChecksum(src, dst, tcp))
	if src.Is4() {
		return append(ipv4Header(src, dst, len(tcp)), tcp...)
	}
	return append(ipv6Header(src, dst, len(tcp)), tcp...)
}

const protocolTCP = 6

func ipv4Header(src, dst netip.Addr, payload int) []byte {
	h := make([]byte, 20, 20+payload)
	h[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(h[2:], uint16(20+payload))
	h[6] = 0x40 // don't fragment
	h[8] = 64
	h[9] = protocolTCP
	s, d := src.As4(), dst.As4()
	copy(h[12:], s[:])
	copy(h[16:], d[:])
	binary.BigEndian.PutUint16(h[10:], ^fold(sum(0, h)))
	return h
}

func ipv6Header(src, dst netip.Addr, payload int) []byte {
	h := make([]byte, 40, 40+payload)
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(payload))
	h[6] = protocolTCP
	h[7] = 64
	s, d := src.As16(), dst.As16()
	copy(h[8:], s[:])
	copy(h[24:], d[:])
	return h
}

func tcpChecksum(src, dst netip.Addr, segment []byte) uint16 {
	n := sum(0, src.AsSlice())
	n = sum(n, dst.AsSlice())
	n += protocolTCP + uint64(len(segment))
	return ^fold(sum(n, segment))
}

// sum adds 16-bit words, the last one padded with a zero byte (RFC 1071).
func sum(n uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		n += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		n += uint64(b[0]) << 8
	}
	return n
}

func fold(n uint64) uint16 {
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}
