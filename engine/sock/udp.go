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
	return c
}
