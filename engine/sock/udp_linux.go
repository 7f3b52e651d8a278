package sock

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// SaveUDP reads a UDP socket and changes nothing.
func SaveUDP(fd int) (*UDP, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, fmt.Errorf("SO_DOMAIN: %w", err)
	}
	u := &UDP{V6: domain == unix.AF_INET6}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	if u.Local, err = addrPort(local); err != nil {
		return nil, err
	}
	u.Remote = netip.AddrPortFrom(u.Local.Addr(), 0)
	if remote, err := unix.Getpeername(fd); err == nil {
		if u.Remote, err = addrPort(remote); err != nil {
			return nil, err
		}
	} else if err != unix.ENOTCONN {
		return nil, fmt.Errorf("getpeername: %w", err)
	}
	return u, nil
}

// RestoreUDP gives a fresh socket its address and its peer.
func RestoreUDP(fd int, u *UDP) error {
	if u.Local.Port() != 0 {
		if err := unix.Bind(fd, sockaddr(u.Local)); err != nil {
			return fmt.Errorf("bind to %v (is the address configured, and the port free?): %w", u.Local, err)
		}
	}
	if u.Remote.Port() != 0 {
		if err := unix.Connect(fd, sockaddr(u.Remote)); err != nil {
			return fmt.Errorf("connect to %v: %w", u.Remote, err)
		}
	}
	return nil
}

func addrPort(sa unix.Sockaddr) (netip.AddrPort, error) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		if a.ZoneId != 0 {
			return netip.AddrPort{}, fmt.Errorf("a link-local address of interface %d: %w", a.ZoneId, ErrOption)
		}
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("socket address of type %T", sa)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// MulticastGroups lists the groups that somebody has joined in the network namespace of a process. The kernel does not tell
// which socket it was, so while there is one no unconnected UDP socket can be carried for certain.
func MulticastGroups(pid int) ([]string, error) {
	v4, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/igmp", pid))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	v6, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/igmp6", pid))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return append(igmp(v4), igmp6(v6)...), nil
}

// igmp finds groups other than that of all hosts, 224.0.0.1, in /proc/net/igmp: lines that begin with tabs hold the
// group in hexadecimal, in the machine's byte order.
func igmp(b []byte) (groups []string) {
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); bytes.HasPrefix(line, []byte("\t")) && len(f) > 0 && string(f[0]) != "010000E0" {
			groups = append(groups, string(f[0]))
		}
	}
	return groups
}

// igmp6 finds groups that the kernel has not joined by itself: those are all nodes and all routers (ff0x::1, ff0x::2) and
// the solicited-node ones (ff02::1:ffxx:xxxx).
func igmp6(b []byte) (groups []string) {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 3 || len(f[2]) != 32 {
			continue
		}
		g := string(f[2])
		own := strings.HasPrefix(g, "ff02000000000000000000"+"01ff") || g[4:31] == strings.Repeat("0", 27) && (g[31] == '1' || g[31] == '2')
		if !own {
			groups = append(groups, g)
		}
	}
	return groups
}
