package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/tcprepair"
)

// A TCPInfo is a TCP socket of a network namespace, as sock_diag(7) tells of it: all but those in CLOSE.
type TCPInfo struct {
	State         tcprepair.ConnState
	Local, Remote netip.AddrPort // without zones
	Ino           uint32         // 0: no descriptor holds it
	Left          uint32         // of a connection: bytes that the peer has not acknowledged, the end of the stream counted as one
	Received      uint32         // of a connection: bytes that the program has not read
	Keys          []byte         // of TCP_MD5SIG: see tcprepair.KeysMD5
	// Of a connection, from tcp_info: bytes that the peer has acknowledged in this connection's life here, those of Left that have never
	// been sent, and the retransmission time-outs of its life here (Linux 6.7; else 0).
	Acked    uint64
	Unsent   uint32
	Timeouts uint16
}

// inet_diag.h
const (
	inetReqSize = 56 // struct inet_diag_req_v2
	inetMsgSize = 72 // struct inet_diag_msg
	inetExtInfo = 1 << 1
	attrInfo    = 2  // INET_DIAG_INFO
	attrMD5     = 18 // INET_DIAG_MD5SIG

	// In struct tcp_info (linux/tcp.h): tcpi_bytes_acked, tcpi_notsent_bytes, tcpi_total_rto.
	infoAcked, infoUnsent, infoTimeouts = 120, 144, 240
)

// InUse counts the TCP sockets of the network namespace of a process that listen, are connected, or deliver what is left after
// they were closed: those in CLOSE and TIME_WAIT are not among them ("inuse" in /proc/PID/net/sockstat and sockstat6).
func InUse(pid int) (int, error) {
	sum := 0
	for _, f := range []struct{ file, line string }{{"sockstat", "TCP: inuse "}, {"sockstat6", "TCP6: inuse "}} {
		path := fmt.Sprintf("/proc/%d/net/%s", pid, f.file)
		b, err := os.ReadFile(path)
		if f.file == "sockstat6" && errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(b), f.line)
		word := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
		n, err := strconv.Atoi(word)
		if err != nil {
			return 0, fmt.Errorf("%s: no number after %q", path, f.line)
		}
		sum += n
	}
	return sum, nil
}

// Closing lists the connections of the network namespace that no descriptor holds any more, while the kernel still delivers what the
// program wrote before it closed them.
func (d *Diag) Closing() ([]TCPInfo, error) {
	list, err := d.TCP(tcprepair.FinWait1, tcprepair.LastAck, tcprepair.Closing)
	out := list[:0]
	for _, c := range list {
		if c.Ino == 0 {
			out = append(out, c)
		}
	}
	return out, err
}

// Connections lists the TCP connections of the network namespace that are open, at one end at least.
func (d *Diag) Connections() ([]TCPInfo, error) {
	return d.TCP(tcprepair.Established, tcprepair.FinWait1, tcprepair.FinWait2, tcprepair.CloseWait, tcprepair.LastAck, tcprepair.Closing)
}

// TCP lists the TCP sockets of the network namespace in some states.
func (d *Diag) TCP(states ...tcprepair.ConnState) ([]TCPInfo, error) {
	var mask uint32
	for _, s := range states {
		mask |= 1 << s
	}
	var out []TCPInfo
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := d.tcp(family, mask)
		if err != nil {
			return nil, fmt.Errorf("TCP sockets of the network namespace: %w", err)
		}
		out = append(out, list...)
	}
	return out, nil
}

// TCPOf tells of one connection, which costs some microseconds where TCP looks through the whole table of this machine's
// connections (some milliseconds). v6 says that its socket is of AF_INET6. ErrNoSocket when the kernel finds none, which
// it also says of one that is bound to a device.
func (d *Diag) TCPOf(v6 bool, local, remote netip.AddrPort) (TCPInfo, error) {
	family := uint8(unix.AF_INET)
	if v6 {
		family = unix.AF_INET6
	}
	req := inetRequest(family, unix.IPPROTO_TCP, inetExtInfo, unix.NLM_F_REQUEST, ^uint32(0))
	id := req[unix.NLMSG_HDRLEN+8:] // struct inet_diag_sockid
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	for i, a := range []netip.Addr{local.Addr(), remote.Addr()} {
		if to := id[4+16*i : 20+16*i]; v6 {
			b := a.As16() // an IPv4 address in its mapped form
			copy(to, b[:])
		} else {
			b := a.Unmap().As4()
			copy(to, b[:])
		}
	}
	for i := range 8 {
		id[40+i] = 0xff // INET_DIAG_NOCOOKIE
	}
	if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return TCPInfo{}, fmt.Errorf("sock_diag: %w", err)
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return TCPInfo{}, fmt.Errorf("sock_diag: %w", err)
		}
		list, _, err := parseTCP(d.buf[:n])
		if err != nil {
			return TCPInfo{}, err
		}
		if len(list) != 1 {
			return TCPInfo{}, fmt.Errorf("connection %v-%v: %w", local, remote, ErrNoSocket)
		}
		return list[0], nil
	}
}

// inetRequest is a message with struct inet_diag_req_v2 about sockets of a protocol in some states; more is the mask of the
// attributes that are asked for. The rest of it is zero.
func inetRequest(family, proto, more uint8, flags uint16, states uint32) []byte {
	req := make([]byte, unix.NLMSG_HDRLEN+inetReqSize)
	ne := binary.NativeEndian
	ne.PutUint32(req, uint32(len(req)))
	ne.PutUint16(req[4:], diagByFamily)
	ne.PutUint16(req[6:], flags)
	body := req[unix.NLMSG_HDRLEN:]
	body[0], body[1], body[2] = family, proto, more
	ne.PutUint32(body[4:], states)
	return req
}

func (d *Diag) tcp(family uint8, states uint32) ([]TCPInfo, error) {
	req := inetRequest(family, unix.IPPROTO_TCP, inetExtInfo, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, states)
	if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var out []TCPInfo
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		list, done, err := parseTCP(d.buf[:n])
		out = append(out, list...)
		if err != nil || done {
			return out, err
		}
	}
}

// parseTCP parses a datagram of inet_diag messages; done tells that the last one has been seen.
func parseTCP(b []byte) (out []TCPInfo, done bool, err error) {
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
		}
		i := TCPInfo{State: tcprepair.ConnState(m[1]), Local: diagAddr(m[0], m[8:24], m[4:]), Remote: diagAddr(m[0], m[24:40], m[6:]),
			Ino: ne.Uint32(m[68:]), Left: ne.Uint32(m[60:]), Received: ne.Uint32(m[56:])}
		if err := i.attributes(m[inetMsgSize:]); err != nil {
			return nil, true, err
		}
		out = append(out, i)
		b = b[min((int(size)+3)&^3, len(b)):]
	}
	return out, false, nil
}

// attributes reads those of a message.
func (i *TCPInfo) attributes(b []byte) error {
	ne := binary.NativeEndian
	for len(b) >= 4 {
		n := int(ne.Uint16(b))
		if n < 4 || n > len(b) {
			return fmt.Errorf("sock_diag: an attribute of %d in %d bytes", n, len(b))
		}
		switch v := b[4:n]; ne.Uint16(b[2:]) {
		case attrMD5:
			if len(v) > 0 {
				i.Keys = append([]byte{}, v...)
			}
		case attrInfo: // a prefix of it on older kernels
			if len(v) >= infoAcked+8 {
				i.Acked = ne.Uint64(v[infoAcked:])
			}
			if len(v) >= infoUnsent+4 {
				i.Unsent = ne.Uint32(v[infoUnsent:])
			}
			if len(v) >= infoTimeouts+2 {
				i.Timeouts = ne.Uint16(v[infoTimeouts:])
			}
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

func diagAddr(family uint8, addr, port []byte) netip.AddrPort {
	ip := netip.AddrFrom16([16]byte(addr))
	if family == unix.AF_INET {
		ip = netip.AddrFrom4([4]byte(addr))
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port))
}
