package sock

import (
	"errors"
	"fmt"
	"net/netip"
)

// UDP is a datagram socket of the internet protocols, without what waits in its queue.
type UDP struct {
	V6            bool
	Local, Remote netip.AddrPort // port 0: not bound, not connected
	Options       map[string]int64
}

// EncodeUDP lays a socket out for an image, as EncodeTCP does a connection.
func EncodeUDP(u *UDP) []byte {
	w := &coder{out: make([]byte, 0, 1024)}
	return w.udp(u).out
}

// DecodeUDP reads what EncodeUDP wrote and validates it.
func DecodeUDP(b []byte) (*UDP, error) {
	u := &UDP{}
	r := &coder{in: b, reading: true}
	if err := r.udp(u).finish(); err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	for _, a := range []netip.AddrPort{u.Local, u.Remote} {
		if a.Addr().Is4() == u.V6 || a.Addr().Zone() != "" {
			return nil, fmt.Errorf("UDP socket: address %v is of another family or has a zone", a)
		}
	}
	for name, v := range u.Options {
		if _, ok := udpOptions[name]; !ok || v < -1<<31 || v >= 1<<32 {
			return nil, fmt.Errorf("UDP socket: option %.40q with value %d", name, v)
		}
	}
	if u.Remote.Port() != 0 && u.Local.Port() == 0 {
		return nil, errors.New("UDP socket: connected without a local port")
	}
	return u, nil
}

func (c *coder) udp(u *UDP) *coder {
	c.version()
	c.bool(&u.V6)
	c.addr(&u.Local)
	c.addr(&u.Remote)
	c.options(&u.Options)
	return c
}

// udpOption is an option with an integer value. Numbers are those of linux/in.h, in6.h and udp.h.
type udpOption struct {
	level, num int
	early      bool // bind looks at it
	refuse     bool // not carried unless it is 0
}

const (
	levelIP   = 0
	levelUDP  = 17
	levelIPv6 = 41
)

var udpOptions = map[string]udpOption{
	"IP_TOS": {levelIP, 1, false, false}, "IP_TTL": {levelIP, 2, false, false}, "IP_PKTINFO": {levelIP, 8, false, false},
	"IP_MTU_DISCOVER": {levelIP, 10, false, false}, "IP_RECVERR": {levelIP, 11, false, false}, "IP_RECVTTL": {levelIP, 12, false, false},
	"IP_RECVTOS": {levelIP, 13, false, false}, "IP_FREEBIND": {levelIP, 15, true, false}, "IP_TRANSPARENT": {levelIP, 19, true, false},
	"IP_RECVORIGDSTADDR": {levelIP, 20, false, false}, "IP_MINTTL": {levelIP, 21, false, false}, "IP_MULTICAST_TTL": {levelIP, 33, false, false},
	"IP_MULTICAST_LOOP": {levelIP, 34, false, false}, "IP_MULTICAST_ALL": {levelIP, 49, false, false},
	"IPV6_UNICAST_HOPS": {levelIPv6, 16, false, false}, "IPV6_MULTICAST_IF": {levelIPv6, 17, false, true},
	"IPV6_MULTICAST_HOPS": {levelIPv6, 18, false, false}, "IPV6_MULTICAST_LOOP": {levelIPv6, 19, false, false},
	"IPV6_MTU_DISCOVER": {levelIPv6, 23, false, false}, "IPV6_RECVERR": {levelIPv6, 25, false, false}, "IPV6_V6ONLY": {levelIPv6, 26, true, false},
	"IPV6_RECVPKTINFO": {levelIPv6, 49, false, false}, "IPV6_RECVHOPLIMIT": {levelIPv6, 51, false, false}, "IPV6_DONTFRAG": {levelIPv6, 62, false, false},
	"IPV6_RECVTCLASS": {levelIPv6, 66, false, false}, "IPV6_TCLASS": {levelIPv6, 67, false, false},
	"IPV6_TRANSPARENT": {levelIPv6, 75, true, false}, "IPV6_FREEBIND": {levelIPv6, 78, true, false},
	"UDP_CORK": {levelUDP, 1, false, true}, "UDP_ENCAP": {levelUDP, 100, false, true}, "UDP_NO_CHECK6_TX": {levelUDP, 101, false, false},
	"UDP_NO_CHECK6_RX": {levelUDP, 102, false, false}, "UDP_SEGMENT": {levelUDP, 103, false, false}, "UDP_GRO": {levelUDP, 104, false, false},
}
