package port

import (
	"encoding/binary"
	"net"
	"net/netip"
)

const (
	etherTypeARP  = 0x0806
	etherTypeIPv6 = 0x86dd
	protoICMPv6   = 58
)

// announcement is a frame that tells a network that addr is at mac: a gratuitous ARP request (RFC 5227, section 2.3) or an
// unsolicited neighbour advertisement with the override flag (RFC 4861, section 7.2.6).
func announcement(mac net.HardwareAddr, addr netip.Addr) []byte {
	if addr.Is4() {
		return gratuitousARP(mac, addr)
	}
	return unsolicitedAdvertisement(mac, addr)
}

func gratuitousARP(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, a request
	b = append(append(b, mac...), addr.AsSlice()...)
	b = append(append(b, 0, 0, 0, 0, 0, 0), addr.AsSlice()...)
	return b
}

func unsolicitedAdvertisement(mac net.HardwareAddr, addr netip.Addr) []byte {
	allNodes := netip.MustParseAddr("ff02::1")
	body := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // neighbour advertisement, override
	body = append(body, addr.AsSlice()...)
	body = append(append(body, 2, 1), mac...) // target link-layer address, 8 bytes
	binary.BigEndian.PutUint16(body[2:], icmpv6Checksum(addr, allNodes, body))

	b := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, protoICMPv6, 255)
	b = append(append(b, addr.AsSlice()...), allNodes.AsSlice()...)
	return append(b, body...)
}

// icmpv6Checksum sums the message and its pseudo header (RFC 4443, section 2.3); body has an even length.
func icmpv6Checksum(src, dst netip.Addr, body []byte) uint16 {
	n := uint32(len(body)) + protoICMPv6
	for _, b := range [][]byte{src.AsSlice(), dst.AsSlice(), body} {
		for i := 0; i+1 < len(b); i += 2 {
			n += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}
