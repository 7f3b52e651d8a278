package sock

import (
	"errors"
	"fmt"
	"net/netip"
)

// Inet is a socket of the internet protocols without connections: UDP, UDP-Lite, ICMP (ping) or raw.
type Inet struct {
	V6, Raw bool
	// Local and Remote: port 0 and an unspecified address for none. A link-local address has its interface as its zone. The local
	// port of a ping socket is the identifier, that of a raw one is nothing.
	Local, Remote netip.AddrPort
	Shutdown      uint8 // bit 0: for reading, bit 1: for writing
	// MulticastIf is the interface for multicast: an IPv4 address (IP_MULTICAST_IF), and the name of an interface (IPV6_MULTICAST_IF).
	MulticastIf   string
	MulticastIfV6 string
	// UnicastIf and UnicastIfV6 are names of interfaces (IP_UNICAST_IF, IPV6_UNICAST_IF).
	UnicastIf, UnicastIfV6 string
	Groups                 []Membership
	Queue                  []Datagram
}

// A Membership is a multicast group that a socket has joined on an interface (ip(7), MCAST_JOIN_GROUP).
type Membership struct {
	Device  string
	Group   netip.Addr
	Include bool         // only from Sources; else from all but Sources
	Sources []netip.Addr // RFC 3678
}

// A Datagram waits to be received.
type Datagram struct {
	From netip.AddrPort
	To   netip.Addr // unicast address of this host at which it arrived, or not valid
	Data []byte
}

// EncodeInet lays a socket out for an image, as EncodeTCP does a connection.
func EncodeInet(u *Inet) []byte {
	w := &coder{out: make([]byte, 0, 1024)}
	return w.inet(u).out
}

// DecodeInet reads what EncodeInet wrote and validates it.
func DecodeInet(b []byte) (*Inet, error) {
	u := &Inet{}
	r := &coder{in: b, reading: true}
	if err := r.inet(u).finish(); err != nil {
		return nil, fmt.Errorf("internet socket: %w", err)
	}
	for _, a := range []netip.AddrPort{u.Local, u.Remote} {
		if a.Addr().Is4() == u.V6 {
			return nil, fmt.Errorf("internet socket: address %v is of another family", a)
		}
	}
	for _, g := range u.Groups {
		if !g.Group.IsMulticast() || g.Device == "" {
			return nil, fmt.Errorf("internet socket: group %v on interface %.20q", g.Group, g.Device)
		}
	}
	if !u.Raw && u.Remote.Port() != 0 && u.Local.Port() == 0 {
		return nil, errors.New("internet socket: connected without a local port")
	}
	return u, nil
}

func (c *coder) inet(u *Inet) *coder {
	c.version()
	c.bool(&u.V6)
	c.bool(&u.Raw)
	c.addr(&u.Local)
	c.addr(&u.Remote)
	c.u8(&u.Shutdown)
	for _, s := range []*string{&u.MulticastIf, &u.MulticastIfV6, &u.UnicastIf, &u.UnicastIfV6} {
		c.string(s)
	}
	n := c.count(len(u.Groups))
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			u.Groups = append(u.Groups, Membership{})
		}
		g := &u.Groups[i]
		c.string(&g.Device)
		c.ip(&g.Group)
		c.bool(&g.Include)
		m := c.count(len(g.Sources))
		for k := 0; k < m && c.err == nil; k++ {
			if c.reading {
				g.Sources = append(g.Sources, netip.Addr{})
			}
			c.ip(&g.Sources[k])
		}
	}
	n = c.count(len(u.Queue))
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			u.Queue = append(u.Queue, Datagram{})
		}
		d := &u.Queue[i]
		c.addr(&d.From)
		c.ip(&d.To)
		c.bytes(&d.Data)
	}
	return c
}

// ip is an address, or none.
func (c *coder) ip(a *netip.Addr) {
	var s string
	if a.IsValid() {
		s = a.String()
	}
	c.string(&s)
	if !c.reading || c.err != nil || s == "" {
		return
	}
	v, err := netip.ParseAddr(s)
	if err != nil {
		c.err = fmt.Errorf("address %.60q: %w", s, err)
		return
	}
	*a = v
}
