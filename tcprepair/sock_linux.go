package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Constants that x/sys lacks (include/uapi/linux/tcp.h).
const (
	noQueue   = 0 // TCP_NO_QUEUE
	recvQueue = 1 // TCP_RECV_QUEUE
	sendQueue = 2 // TCP_SEND_QUEUE

	optMSS       = 2 // codes of TCP_REPAIR_OPTIONS: TCPOPT_* of include/net/tcp.h
	optWindow    = 3
	optSACK      = 4
	optTimestamp = 8

	infoTimestamps = 1 << 0 // tcpi_options: TCPI_OPT_*
	infoSACK       = 1 << 1
	infoWScale     = 1 << 2
	infoECN        = 1 << 3
	infoMicro      = 1 << 6

	tcpAOInfo = 40 // TCP_AO_INFO

	minInfo  = 32  // of struct tcp_info: what every kernel fills
	totalRTO = 240 // where tcpi_total_rto is in it, which older kernels leave alone
)

// control runs fn with the descriptor of f, and keeps it open meanwhile. (File.Fd would make the open file
// blocking, for the program that shares it too.)
func control(f *os.File, fn func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("socket %s: %w", f.Name(), err)
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return fmt.Errorf("socket %s: %w", f.Name(), err)
	}
	return inner
}

func getInt(fd, level, opt int) (int, error) {
	v, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		return 0, err
	}
	return v, nil
}

func getUint32(fd, level, opt int) (uint32, error) {
	var b [4]byte
	if _, err := getsockopt(fd, level, opt, b[:]); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b[:]), nil
}

func setUint32(fd, level, opt int, v uint32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return setsockopt(fd, level, opt, b[:])
}

// info is the part of TCP_INFO (struct tcp_info) that is needed here.
type info struct {
	state                ConnState
	options              uint8
	sendScale, recvScale uint8
	unacked, sacked      uint32 // of a listener: connections that wait, and the backlog
	timeouts             uint16 // tcpi_total_rto (Linux 6.7; else 0)
}

func tcpInfo(fd int) (info, error) {
	var b [totalRTO + 2]byte
	n, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, b[:])
	if err != nil {
		return info{}, fmt.Errorf("TCP_INFO: %w", err)
	}
	if n < minInfo {
		return info{}, fmt.Errorf("TCP_INFO: %d bytes, want %d", n, minInfo)
	}
	i := info{
		state: ConnState(b[0]), options: b[5],
		unacked: binary.NativeEndian.Uint32(b[24:]), sacked: binary.NativeEndian.Uint32(b[28:]),
		timeouts: binary.NativeEndian.Uint16(b[totalRTO:]),
	}
	// Two bit-fields of four bits each, tcpi_snd_wscale first: on little-endian machines in the low half.
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		i.sendScale, i.recvScale = b[6]&15, b[6]>>4
	} else {
		i.sendScale, i.recvScale = b[6]>>4, b[6]&15
	}
	return i, nil
}

func getWindow(fd int) (Window, error) {
	var b [20]byte
	if _, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b[:]); err != nil {
		return Window{}, fmt.Errorf("TCP_REPAIR_WINDOW: %w", err)
	}
	u := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
	return Window{SndWl1: u(0), SndWnd: u(1), MaxWindow: u(2), RcvWnd: u(3), RcvWup: u(4)}, nil
}

func setWindow(fd int, w Window) error {
	var b [20]byte
	for i, v := range []uint32{w.SndWl1, w.SndWnd, w.MaxWindow, w.RcvWnd, w.RcvWup} {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	if err := setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, b[:]); err != nil {
		return fmt.Errorf("set TCP_REPAIR_WINDOW: %w", err)
	}
	return nil
}

func setRepair(fd, v int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, v); err != nil {
		return fmt.Errorf("set TCP_REPAIR to %d: %w", v, err)
	}
	return nil
}

func selectQueue(fd, q int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, q); err != nil {
		return fmt.Errorf("set TCP_REPAIR_QUEUE to %d: %w", q, err)
	}
	return nil
}

// mustBe checks that the socket is a stream socket of AF_INET or AF_INET6 and of the protocol TCP; it tells whether it is
// of AF_INET6. MPTCP is let through for listeners only.
func mustBe(fd int, listener bool) (v6 bool, protocol int, err error) {
	domain, err := getInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return false, 0, fmt.Errorf("SO_DOMAIN: %w", err)
	}
	if domain != unix.AF_INET && domain != unix.AF_INET6 {
		return false, 0, fmt.Errorf("address family %d is not an internet one", domain)
	}
	protocol, err = getInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return false, 0, fmt.Errorf("SO_PROTOCOL: %w", err)
	}
	if protocol != unix.IPPROTO_TCP && (protocol != unix.IPPROTO_MPTCP || !listener) {
		what := fmt.Sprintf("protocol %d", protocol)
		if protocol == unix.IPPROTO_MPTCP {
			what = "Multipath TCP"
		}
		return false, 0, &NotCarriedError{Socket: localName(fd), What: what}
	}
	return domain == unix.AF_INET6, protocol, nil
}

func localName(fd int) string {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Sprintf("fd %d", fd)
	}
	ap, err := addrPort(fd, sa)
	if err != nil {
		return fmt.Sprintf("fd %d", fd)
	}
	return ap.String()
}

// addrPort translates an address. The zone of a link-local one becomes its interface's name in the socket's own
// network namespace.
func addrPort(fd int, sa unix.Sockaddr) (netip.AddrPort, error) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 && !ip.Is4In6() {
			name, err := deviceName(fd, a.ZoneId)
			if err != nil {
				return netip.AddrPort{}, err
			}
			ip = ip.WithZone(name)
		}
		return netip.AddrPortFrom(ip, uint16(a.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("socket address of type %T", sa)
}

func sockaddr(fd int, v6 bool, ap netip.AddrPort) (unix.Sockaddr, error) {
	if !v6 {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	if zone := ap.Addr().Zone(); zone != "" {
		ifr, err := unix.NewIfreq(zone)
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
		}
		if err != nil {
			return nil, fmt.Errorf("interface %q of address %v: %w", zone, ap, err)
		}
		sa.ZoneId = ifr.Uint32()
	}
	return sa, nil
}

// deviceName asks the socket's namespace for the name of an interface (SIOCGIFNAME, netdevice(7)).
func deviceName(fd int, index uint32) (string, error) {
	b := make([]byte, 40) // struct ifreq
	binary.NativeEndian.PutUint32(b[unix.IFNAMSIZ:], index)
	if err := ioctlBytes(fd, unix.SIOCGIFNAME, b); err != nil {
		return "", fmt.Errorf("name of interface %d: %w", index, err)
	}
	return unix.ByteSliceToString(b[:unix.IFNAMSIZ]), nil
}

// quiet tells whether an error of getsockopt means only that this kernel or socket has no such option.
func quiet(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}
