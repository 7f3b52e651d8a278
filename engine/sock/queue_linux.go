package sock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrAncillary means that a queue holds something beside data that is not carried.
var ErrAncillary = errors.New("it holds ancillary data that is not carried")

// tooLong is the length of a message that the buffer did not hold.
type tooLong int

func (t tooLong) Error() string { return fmt.Sprintf("a message of %d bytes", int(t)) }

// PeekDatagrams reads all that waits in the receive queue of a UDP socket and leaves it there, with its options as they were.
// The owners of the socket must be stopped. An empty datagram can be peeked only once; see PeekUnix.
func PeekDatagrams(fd int, u *Inet) (list []Datagram, err error) {
	options := []intOption{{levelSocket, unix.SO_PEEK_OFF, 0, 0}, {levelIP, unix.IP_PKTINFO, 1, 0}, {levelUDP, 104, 0, 0}} // UDP_GRO
	if u.V6 {
		options = append(options, intOption{levelIPv6, unix.IPV6_RECVPKTINFO, 1, 0})
	}
	for _, o := range options {
		want := int(o.on) // the value to peek with
		was, e := unix.GetsockoptInt(fd, o.level, o.num)
		if e == nil && was != want {
			e = unix.SetsockoptInt(fd, o.level, o.num, want)
			defer func() {
				if e := unix.SetsockoptInt(fd, o.level, o.num, was); e != nil {
					err = errors.Join(err, fmt.Errorf("put socket option %d back to %d: %w", o.num, was, e))
				}
			}()
		}
		if e != nil && !quiet(e) {
			return nil, fmt.Errorf("socket option %d: %w", o.num, e)
		}
	}
	buf, oob := make([]byte, 1<<16), make([]byte, 1024)
	for total := 0; ; {
		n, oobn, _, from, err := recvmsgPeek(fd, buf, oob)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return list, nil
		case err != nil:
			return nil, err
		case n > len(buf):
			return nil, fmt.Errorf("a datagram of %d bytes", n)
		}
		d := Datagram{Data: bytes.Clone(buf[:n]), To: arrivedAt(oob[:oobn])}
		if d.From, err = rawAddrPort(from); err != nil {
			return nil, err
		}
		if total += n; total > MaxQueue || len(list) >= MaxMessages {
			return nil, fmt.Errorf("the queue holds more than %d bytes or %d messages", MaxQueue, MaxMessages)
		}
		list = append(list, d)
	}
}

// arrivedAt is the local address that IP_PKTINFO or IPV6_PKTINFO tells.
func arrivedAt(oob []byte) netip.Addr {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == levelIP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			return netip.AddrFrom4([4]byte(m.Data[4:8])) // ipi_spec_dst: an address of this host, also for a broadcast
		case m.Header.Level == levelIPv6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			return netip.AddrFrom16([16]byte(m.Data[:16])).Unmap()
		}
	}
	return netip.Addr{}
}

// rawAddrPort reads struct sockaddr_in or sockaddr_in6.
func rawAddrPort(b []byte) (netip.AddrPort, error) {
	switch {
	case len(b) >= 8 && binary.NativeEndian.Uint16(b) == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])), nil
	case len(b) >= 24 && binary.NativeEndian.Uint16(b) == unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:])), nil
	}
	return netip.AddrPort{}, fmt.Errorf("the address of a sender has %d bytes", len(b))
}

// Inject puts datagrams into the queue of a bound UDP socket: as packets of their senders, which a raw socket sends to an address
// of this host. The kernel gives them to the socket as it does any that arrive, on the loopback interface. It must run in
// the network namespace of the socket.
func Inject(fd int, u *Inet, proto int) (err error) {
	if len(u.Queue) == 0 {
		return nil
	}
	undo, err := u.alone(fd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo()) }()
	raw := map[bool]int{}
	defer func() {
		for _, r := range raw {
			err = errors.Join(err, unix.Close(r))
		}
	}()
	for i, d := range u.Queue {
		from, to := d.From.Addr().Unmap(), u.target(d)
		if from.Is4() != to.Is4() {
			return fmt.Errorf("datagram %d of the queue is from %v to %v", i, from, to)
		}
		r, ok := raw[to.Is4()]
		if !ok {
			if r, err = rawSender(to.Is4()); err != nil {
				return err
			}
			raw[to.Is4()] = r
		}
		packet := udpPacket(netip.AddrPortFrom(from, d.From.Port()), netip.AddrPortFrom(to, u.Local.Port()), d.Data, proto)
		sa, err := sockaddr(fd, netip.AddrPortFrom(to, 0))
		if err != nil {
			return err
		}
		if u.Remote.Port() == 0 {
			u.prefer(fd, d.From)
		}
		if err := unix.Sendto(r, packet, unix.MSG_DONTWAIT, sa); err != nil {
			return fmt.Errorf("datagram %d of the queue, from %v to %v: %w", i, d.From, to, err)
		}
	}
	got, err := PeekDatagrams(fd, u)
	if err == nil && !slices.EqualFunc(got, u.Queue, func(a, b Datagram) bool { return a.From == b.From && bytes.Equal(a.Data, b.Data) }) {
		err = fmt.Errorf("%d datagrams were to be in the queue, %d are (does a packet filter drop them?)", len(u.Queue), len(got))
	}
	return err
}

// noPeer is an address of AF_UNSPEC, which takes a socket's peer away (connect(2)).
var noPeer = make([]byte, 16)

// alone makes the socket take what comes over the loopback interface, although it is bound to another one, until undo.
func (u *Inet) alone(fd int) (undo func() error, err error) {
	var b [16]byte
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, b[:])
	device := unix.ByteSliceToString(b[:n])
	if err == nil && device != "" {
		err = unix.BindToDevice(fd, "")
	}
	if err != nil && !quiet(err) {
		return nil, fmt.Errorf("SO_BINDTODEVICE: %w", err)
	}
	return func() error {
		var errs []error
		if u.Remote.Port() == 0 {
			errs = append(errs, connect(fd, noPeer))
		}
		if device != "" {
			errs = append(errs, unix.BindToDevice(fd, device))
		}
		return errors.Join(errs...)
	}, nil
}

// prefer connects the socket to the sender for the time being, so that it is preferred to others of the same address
// (SO_REUSEPORT, SO_REUSEADDR). Where no route leads there, it may be the only one.
func (u *Inet) prefer(fd int, from netip.AddrPort) {
	_ = connect(fd, noPeer) // what a first peer has fixed may not do for the second
	if sa, err := sockaddr(fd, from); err == nil {
		_ = unix.Connect(fd, sa)
	}
}

// target is where a datagram is sent so that the socket gets it.
func (u *Inet) target(d Datagram) netip.Addr {
	local := u.Local.Addr().Unmap()
	switch {
	case !local.IsUnspecified() && !local.IsMulticast():
		return local
	case d.To.IsValid() && !d.To.IsMulticast() && !d.To.IsUnspecified() && d.To.Is4() == d.From.Addr().Unmap().Is4():
		return d.To
	case d.From.Addr().Unmap().Is4():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

func rawSender(v4 bool) (int, error) {
	domain, level, opt := unix.AF_INET6, levelIPv6, unix.IPV6_HDRINCL
	if v4 {
		domain, level, opt = unix.AF_INET, levelIP, unix.IP_HDRINCL
	}
	r, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("raw socket: %w", err)
	}
	if err := unix.SetsockoptInt(r, level, opt, 1); err != nil {
		return -1, errors.Join(fmt.Errorf("raw socket with headers: %w", err), unix.Close(r))
	}
	return r, nil
}

// udpPacket is a whole IP packet (RFC 791, 8200, 768).
func udpPacket(from, to netip.AddrPort, data []byte, proto int) []byte {
	be := binary.BigEndian
	udp := make([]byte, 8, 8+len(data))
	be.PutUint16(udp, from.Port())
	be.PutUint16(udp[2:], to.Port())
	be.PutUint16(udp[4:], uint16(8+len(data))) // UDP-Lite: all of it is covered
	udp = append(udp, data...)
	src, dst := from.Addr().AsSlice(), to.Addr().AsSlice()
	pseudo := slices.Concat(src, dst, []byte{0, byte(proto), byte(len(udp) >> 8), byte(len(udp))})
	be.PutUint16(udp[6:], checksum(pseudo, udp))
	if from.Addr().Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, byte(proto)
		be.PutUint16(ip[2:], uint16(20+len(udp)))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		be.PutUint16(ip[10:], checksum(ip))
		return append(ip, udp...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, byte(proto), 64
	be.PutUint16(ip[4:], uint16(len(udp)))
	copy(ip[8:], src)
	copy(ip[24:], dst)
	return append(ip, udp...)
}

// checksum is that of RFC 1071, and never the 0 that means none.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			sum += uint32(p[i])<<8 | uint32(p[i+1])
		}
		if len(p)%2 == 1 {
			sum += uint32(p[len(p)-1]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if c := ^uint16(sum); c != 0 {
		return c
	}
	return 0xffff
}
