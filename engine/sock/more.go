package sock

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// More are the options of a socket for which CRIU's record has no room. Names are those of the C headers.
type More struct {
	Ints  map[string]int64  // options with an integer value
	Bytes map[string][]byte // options with a value of another shape
}

// moment says when an option is set on a fresh socket.
type moment uint8

const (
	early moment = iota // before bind(2), which looks at it
	late                // when the socket is bound and connected and its queue is filled
	last                // after all others, since it forbids or undoes them
	never               // it is not carried: refused unless it is zero
)

// Which sockets have an option.
type family uint8

const (
	onUnix family = 1 << iota
	onInet
	onInet6
	onUDP
	onRaw
	onPacket
	onNetlink
	onAny = onUnix | onInet | onInet6 | onPacket | onNetlink
	onIP  = onInet | onInet6
)

// intOption is an option with an integer value.
type intOption struct {
	level, num int
	on         family
	when       moment
}

// Levels, from linux/in.h, linux/in6.h and linux/socket.h.
const (
	levelSocket  = 1
	levelIP      = 0
	levelUDP     = 17
	levelIPv6    = 41
	levelUDPLite = 136
	levelRaw     = 255
	levelICMPv6  = 58
	levelPacket  = 263
	levelNetlink = 270
)

// intOptions lists the integer options that are carried beside those of SkOptsEntry. Numbers are those of asm-generic/socket.h,
// linux/in.h, linux/in6.h and linux/udp.h. An option that a socket or kernel does not know is not recorded. Those that the
// kernel lets nobody read (SO_ATTACH_REUSEPORT_CBPF, SO_BUSY_POLL_BUDGET; before Linux 6.6 IP_ROUTER_ALERT) start anew.
var intOptions = map[string]intOption{
	"SO_DEBUG": {levelSocket, 1, onAny, late}, "SO_RXQ_OVFL": {levelSocket, 40, onAny, late}, "SO_WIFI_STATUS": {levelSocket, 41, onAny, late},
	"SO_PEEK_OFF": {levelSocket, 42, onUnix | onIP, last}, "SO_NOFCS": {levelSocket, 43, onAny, late}, "SO_LOCK_FILTER": {levelSocket, 44, onAny, last},
	"SO_SELECT_ERR_QUEUE": {levelSocket, 45, onAny, late}, "SO_BUSY_POLL": {levelSocket, 46, onAny, late}, "SO_MAX_PACING_RATE": {levelSocket, 47, onAny, late},
	"SO_INCOMING_CPU": {levelSocket, 49, onIP | onPacket, early}, "SO_ZEROCOPY": {levelSocket, 60, onAny, late},
	"SO_PREFER_BUSY_POLL": {levelSocket, 69, onAny, late}, "SO_RESERVE_MEM": {levelSocket, 73, onAny, late}, "SO_TXREHASH": {levelSocket, 74, onIP, early},
	"SO_RCVMARK": {levelSocket, 75, onAny, late}, "SO_PASSPIDFD": {levelSocket, 76, onUnix, last}, "SO_RCVPRIORITY": {levelSocket, 82, onAny, late},
	"SO_PASSRIGHTS": {levelSocket, 83, onUnix, last}, "SO_INQ": {levelSocket, 84, onUnix, last},

	"IP_TOS": {levelIP, 1, onIP, late}, "IP_TTL": {levelIP, 2, onIP, late}, "IP_HDRINCL": {levelIP, 3, onRaw, early}, "IP_RECVOPTS": {levelIP, 6, onIP, late},
	"IP_ROUTER_ALERT": {levelIP, 5, onRaw | onInet, late}, "IPV6_HDRINCL": {levelIPv6, 36, onRaw | onInet6, early},
	"IP_RETOPTS": {levelIP, 7, onIP, late}, "IP_PKTINFO": {levelIP, 8, onIP, late}, "IP_MTU_DISCOVER": {levelIP, 10, onIP, late}, "IP_RECVERR": {levelIP, 11, onIP, late},
	"IP_RECVTTL": {levelIP, 12, onIP, late}, "IP_RECVTOS": {levelIP, 13, onIP, late}, "IP_FREEBIND": {levelIP, 15, onIP, early}, "IP_PASSSEC": {levelIP, 18, onIP, late},
	"IP_TRANSPARENT": {levelIP, 19, onIP, early}, "IP_RECVORIGDSTADDR": {levelIP, 20, onIP, late}, "IP_MINTTL": {levelIP, 21, onIP, late}, "IP_NODEFRAG": {levelIP, 22, onRaw, late},
	"IP_CHECKSUM": {levelIP, 23, onIP, late}, "IP_BIND_ADDRESS_NO_PORT": {levelIP, 24, onIP, late}, "IP_RECVFRAGSIZE": {levelIP, 25, onIP, late},
	"IP_RECVERR_RFC4884": {levelIP, 26, onIP, late}, "IP_MULTICAST_TTL": {levelIP, 33, onIP, late}, "IP_MULTICAST_LOOP": {levelIP, 34, onIP, late},
	"IP_MULTICAST_ALL": {levelIP, 49, onIP, late}, "IP_LOCAL_PORT_RANGE": {levelIP, 51, onIP, early},

	"IPV6_CHECKSUM": {levelIPv6, 7, onRaw, late}, "IPV6_UNICAST_HOPS": {levelIPv6, 16, onInet6, late}, "IPV6_MULTICAST_HOPS": {levelIPv6, 18, onInet6, late},
	"IPV6_MULTICAST_LOOP": {levelIPv6, 19, onInet6, late}, "IPV6_MTU_DISCOVER": {levelIPv6, 23, onInet6, late}, "IPV6_RECVERR": {levelIPv6, 25, onInet6, late},
	"IPV6_V6ONLY": {levelIPv6, 26, onInet6, early}, "IPV6_MULTICAST_ALL": {levelIPv6, 29, onInet6, late}, "IPV6_ROUTER_ALERT_ISOLATE": {levelIPv6, 30, onInet6, late},
	"IPV6_RECVERR_RFC4884": {levelIPv6, 31, onInet6, late}, "IPV6_FLOWINFO_SEND": {levelIPv6, 33, onInet6, late}, "IPV6_RECVPKTINFO": {levelIPv6, 49, onInet6, late},
	"IPV6_2292PKTINFO": {levelIPv6, 2, onInet6, late}, "IPV6_2292HOPOPTS": {levelIPv6, 3, onInet6, late}, "IPV6_2292DSTOPTS": {levelIPv6, 4, onInet6, late},
	"IPV6_2292RTHDR": {levelIPv6, 5, onInet6, late}, "IPV6_2292HOPLIMIT": {levelIPv6, 8, onInet6, late}, "IPV6_FLOWINFO": {levelIPv6, 11, onInet6, late},
	"IPV6_RECVHOPLIMIT": {levelIPv6, 51, onInet6, late}, "IPV6_RECVHOPOPTS": {levelIPv6, 53, onInet6, late}, "IPV6_RECVRTHDR": {levelIPv6, 56, onInet6, late},
	"IPV6_RECVDSTOPTS": {levelIPv6, 58, onInet6, late}, "IPV6_RECVPATHMTU": {levelIPv6, 60, onInet6, late}, "IPV6_DONTFRAG": {levelIPv6, 62, onInet6, late},
	"IPV6_RECVTCLASS": {levelIPv6, 66, onInet6, late}, "IPV6_TCLASS": {levelIPv6, 67, onInet6, late}, "IPV6_AUTOFLOWLABEL": {levelIPv6, 70, onInet6, late},
	"IPV6_ADDR_PREFERENCES": {levelIPv6, 72, onInet6, early}, "IPV6_MINHOPCOUNT": {levelIPv6, 73, onInet6, late}, "IPV6_RECVORIGDSTADDR": {levelIPv6, 74, onInet6, late},
	"IPV6_TRANSPARENT": {levelIPv6, 75, onInet6, early}, "IPV6_RECVFRAGSIZE": {levelIPv6, 77, onInet6, late}, "IPV6_FREEBIND": {levelIPv6, 78, onInet6, early},

	"PACKET_COPY_THRESH": {levelPacket, 7, onPacket, late}, "PACKET_AUXDATA": {levelPacket, 8, onPacket, late}, "PACKET_ORIGDEV": {levelPacket, 9, onPacket, late},
	"PACKET_VERSION": {levelPacket, 10, onPacket, early}, "PACKET_RESERVE": {levelPacket, 12, onPacket, early}, "PACKET_LOSS": {levelPacket, 14, onPacket, early},
	"PACKET_VNET_HDR": {levelPacket, 15, onPacket, early}, "PACKET_TIMESTAMP": {levelPacket, 17, onPacket, late}, "PACKET_TX_HAS_OFF": {levelPacket, 19, onPacket, early},
	"PACKET_QDISC_BYPASS": {levelPacket, 20, onPacket, late}, "PACKET_IGNORE_OUTGOING": {levelPacket, 23, onPacket, early},
	"PACKET_VNET_HDR_SZ": {levelPacket, 24, onPacket, early},

	"NETLINK_PKTINFO": {levelNetlink, 3, onNetlink, late}, "NETLINK_BROADCAST_ERROR": {levelNetlink, 4, onNetlink, late}, "NETLINK_NO_ENOBUFS": {levelNetlink, 5, onNetlink, late},
	"NETLINK_LISTEN_ALL_NSID": {levelNetlink, 8, onNetlink, early}, "NETLINK_CAP_ACK": {levelNetlink, 10, onNetlink, late}, "NETLINK_EXT_ACK": {levelNetlink, 11, onNetlink, late},
	"NETLINK_GET_STRICT_CHK": {levelNetlink, 12, onNetlink, late},

	"UDP_CORK": {levelUDP, 1, onUDP, late}, "UDP_ENCAP": {levelUDP, 100, onUDP, never}, "UDP_NO_CHECK6_TX": {levelUDP, 101, onUDP, late},
	"UDP_NO_CHECK6_RX": {levelUDP, 102, onUDP, late}, "UDP_SEGMENT": {levelUDP, 103, onUDP, late}, "UDP_GRO": {levelUDP, 104, onUDP, late},
	"UDPLITE_SEND_CSCOV": {levelUDPLite, 10, onUDP, late}, "UDPLITE_RECV_CSCOV": {levelUDPLite, 11, onUDP, late},
}

// stampOptions are set in this order where they are not zero: each of them also says of which form the others are.
var stampOptions = []struct {
	name string
	num  int
}{
	{"SO_TIMESTAMP", 29}, {"SO_TIMESTAMPNS", 35}, {"SO_TIMESTAMPING", 37}, {"SO_TIMESTAMP_NEW", 63}, {"SO_TIMESTAMPNS_NEW", 64}, {"SO_TIMESTAMPING_NEW", 65},
}

// byteOptions have a value that is no integer, empty or all zero on a fresh socket.
var byteOptions = map[string]intOption{
	"SO_TXTIME": {levelSocket, 61, onIP | onPacket, late}, "IP_OPTIONS": {levelIP, 4, onInet, late}, "ICMP_FILTER": {levelRaw, 1, onRaw | onInet, late},
	"ICMPV6_FILTER": {levelICMPv6, 1, onRaw | onInet6, late}, "IPV6_HOPOPTS": {levelIPv6, 54, onInet6, late}, "IPV6_RTHDRDSTOPTS": {levelIPv6, 55, onInet6, late},
	"IPV6_RTHDR": {levelIPv6, 57, onInet6, late}, "IPV6_DSTOPTS": {levelIPv6, 59, onInet6, late},
}

// The owner and mode of a socket itself (fchown(2), fchmod(2)): it is its maker's, who also counts as its sender's user.
const (
	inodeUID  = "st_uid"
	inodeGID  = "st_gid"
	inodeMode = "st_mode"
)

func knownInt(name string) bool {
	if name == inodeUID || name == inodeGID || name == inodeMode {
		return true
	}
	if o, ok := intOptions[name]; ok {
		return o.when != never
	}
	for _, s := range stampOptions {
		if s.name == name {
			return true
		}
	}
	return false
}

// EncodeMore lays options out for an image, as EncodeTCP does a connection: the integers, then a count and that many pairs
// of a name and a byte string.
func EncodeMore(m *More) []byte {
	w := &coder{out: make([]byte, 0, 512)}
	w.version()
	w.options(&m.Ints)
	out := binary.LittleEndian.AppendUint32(w.out, uint32(len(m.Bytes)))
	w.out = out
	for _, name := range slices.Sorted(maps.Keys(m.Bytes)) {
		v := m.Bytes[name]
		w.string(&name)
		w.bytes(&v)
	}
	return w.out
}

// DecodeMore reads what EncodeMore wrote and validates it.
func DecodeMore(b []byte) (*More, error) {
	m := &More{Bytes: map[string][]byte{}}
	r := &coder{in: b, reading: true}
	r.version()
	r.options(&m.Ints)
	var n uint32
	r.u32(&n)
	for range min(n, uint32(len(byteOptions))) {
		var name string
		var v []byte
		r.string(&name)
		r.bytes(&v)
		if _, ok := byteOptions[name]; !ok && r.err == nil {
			return nil, fmt.Errorf("options of a socket: %.40q is not known", name)
		}
		m.Bytes[name] = v
	}
	if err := r.finish(); err != nil {
		return nil, fmt.Errorf("options of a socket: %w", err)
	}
	for name, v := range m.Ints {
		if !knownInt(name) || v < -1<<31 || v >= 1<<32 {
			return nil, fmt.Errorf("options of a socket: %.40q with value %d", name, v)
		}
	}
	return m, nil
}
