package sock

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Closing is a TCP connection that no descriptor holds any more, while the kernel still delivers what the program wrote
// before it closed it.
type Closing struct {
	Local, Remote netip.AddrPort
	Left          uint32 // bytes that the peer has not acknowledged, the end of the stream counted as one
}

// inet_diag.h
const (
	inetReqSize = 56     // struct inet_diag_req_v2
	inetMsgSize = 72     // struct inet_diag_msg
	closing     = 1<<4 | // FIN_WAIT1
		1<<9 | 1<<11 // LAST_ACK, CLOSING
)

// Closing lists the connections of the network namespace that are closed and not delivered yet.
func (d *Diag) Closing() ([]Closing, error) {
	var out []Closing
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := d.closing(family)
		if err != nil {
			return nil, fmt.Errorf("connections that are closing: %w", err)
		}
		out = append(out, list...)
	}
	return out, nil
}

func (d *Diag) closing(family uint8) ([]Closing, error) {
	req := make([]byte, unix.NLMSG_HDRLEN+inetReqSize)
	ne := binary.NativeEndian
	ne.PutUint32(req, uint32(len(req)))
	ne.PutUint16(req[4:], diagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.NLMSG_HDRLEN:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	ne.PutUint32(body[4:], closing)
	if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var out []Closing
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		list, done, err := parseClosing(d.buf[:n])
		out = append(out, list...)
		if err != nil || done {
			return out, err
		}
	}
}

// parseClosing parses a datagram of inet_diag messages; done tells that the last one has been seen.
func parseClosing(b []byte) (out []Closing, done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= unix.NLMSG_HDRLEN {
		size := ne.Uint32(b)
		if size < unix.NLMSG_HDRLEN || uint64(size) > uint64(len(b)) {
			return nil, true, fmt.Errorf("sock_diag: a message of %d in %d bytes", size, len(b))
		}
		m := b[unix.NLMSG_HDRLEN:size]
		switch typ := ne.Uint16(b[4:]); {
		case typ == unix.NLMSG_DONE:
			return out, true, nil
		case typ == unix.NLMSG_ERROR && len(m) >= 4:
			errno := unix.Errno(-int32(ne.Uint32(m)))
			if errno == unix.ENOENT { // the kernel is built without this family
				return out, true, nil
			}
			return nil, true, fmt.Errorf("sock_diag: %w", errno)
		case typ != diagByFamily || len(m) < inetMsgSize:
			return nil, true, fmt.Errorf("sock_diag: message type %d of %d bytes", typ, len(m))
		case ne.Uint32(m[68:]) == 0: // no inode: no descriptor
			out = append(out, Closing{Local: diagAddr(m[0], m[8:24], m[4:]), Remote: diagAddr(m[0], m[24:40], m[6:]), Left: ne.Uint32(m[60:])})
		}
		b = b[min((int(size)+3)&^3, len(b)):]
	}
	return out, false, nil
}

func diagAddr(family uint8, addr, port []byte) netip.AddrPort {
	ip := netip.AddrFrom16([16]byte(addr))
	if family == unix.AF_INET {
		ip = netip.AddrFrom4([4]byte(addr))
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port))
}
