package sock

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// DatagramInfo is what the kernel tells of a UDP socket beside its names.
type DatagramInfo struct{ Shutdown uint8 } // as in Inet

// Datagrams lists the bound sockets of a protocol (UDP or UDP-Lite) in the network namespace, by inode number. A kernel without
// CONFIG_INET_UDP_DIAG lists none.
func (d *Diag) Datagrams(proto int) (map[uint32]DatagramInfo, error) {
	out := map[uint32]DatagramInfo{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := inetRequest(family, uint8(proto), 1<<(attrInetShutdown-1), unix.NLM_F_REQUEST|unix.NLM_F_DUMP, ^uint32(0))
		if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, fmt.Errorf("ask about sockets of protocol %d: %w", proto, err)
		}
		for done := false; !done; {
			n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
			if err == unix.EINTR {
				continue
			}
			if err == nil {
				done, err = parseDatagrams(d.buf[:n], out)
			}
			if err != nil {
				return nil, fmt.Errorf("sockets of protocol %d: %w", proto, err)
			}
		}
	}
	return out, nil
}

// attrInetShutdown is INET_DIAG_SHUTDOWN (linux/inet_diag.h).
const attrInetShutdown = 8

// parseDatagrams parses a datagram of inet_diag messages; done tells that the last one has been seen.
func parseDatagrams(b []byte, out map[uint32]DatagramInfo) (done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= unix.NLMSG_HDRLEN {
		size := ne.Uint32(b)
		if size < unix.NLMSG_HDRLEN || uint64(size) > uint64(len(b)) {
			return true, fmt.Errorf("sock_diag: a message of %d in %d bytes", size, len(b))
		}
		m := b[unix.NLMSG_HDRLEN:size]
		switch typ := ne.Uint16(b[4:]); {
		case typ == unix.NLMSG_DONE:
			return true, nil
		case typ == unix.NLMSG_ERROR && len(m) >= 4:
			if errno := unix.Errno(-int32(ne.Uint32(m))); errno != unix.ENOENT && errno != 0 {
				return true, fmt.Errorf("sock_diag: %w", errno)
			}
			return true, nil // the kernel is built without this protocol
		case typ != diagByFamily || len(m) < inetMsgSize:
			return true, fmt.Errorf("sock_diag: message type %d of %d bytes", typ, len(m))
		}
		var i DatagramInfo
		for a := m[inetMsgSize:]; len(a) >= 4; {
			n := int(ne.Uint16(a))
			if n < 4 || n > len(a) {
				return true, fmt.Errorf("sock_diag: an attribute of %d in %d bytes", n, len(a))
			}
			if ne.Uint16(a[2:]) == attrInetShutdown && n > 4 {
				i.Shutdown = a[4]
			}
			a = a[min((n+3)&^3, len(a)):]
		}
		out[ne.Uint32(m[68:])] = i
		b = b[min((int(size)+3)&^3, len(b)):]
	}
	return false, nil
}

// PeerIn finds the peer of a socket in /proc/PID/net/raw, raw6, icmp or icmp6, which tell of it even if it has no port.
func PeerIn(table []byte, ino uint64) (netip.Addr, bool) {
	for line := range bytes.Lines(table) {
		f := bytes.Fields(line)
		if len(f) < 10 || string(f[9]) != strconv.FormatUint(ino, 10) {
			continue
		}
		text, _, _ := bytes.Cut(f[2], []byte(":"))
		ip := make([]byte, hex.DecodedLen(len(text)))
		if _, err := hex.Decode(ip, text); err != nil || len(ip)%4 != 0 {
			return netip.Addr{}, false
		}
		for w := ip; len(w) >= 4; w = w[4:] { // words in the machine's byte order
			binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
		}
		a, ok := netip.AddrFromSlice(ip)
		return a, ok && !a.IsUnspecified()
	}
	return netip.Addr{}, false
}
