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

// SaveInet reads a socket and changes nothing. groups are those that it may have joined: Candidates.
func SaveInet(fd int, groups []Membership) (*Inet, error) {
	var v [2]int
	for i, opt := range []int{unix.SO_DOMAIN, unix.SO_TYPE} {
		var err error
		if v[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err != nil {
			return nil, fmt.Errorf("socket option %d: %w", opt, err)
		}
	}
	u := &Inet{V6: v[0] == unix.AF_INET6, Raw: v[1] == unix.SOCK_RAW}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	if u.Local, err = addrPort(fd, local); err != nil {
		return nil, err
	}
	u.Remote = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if u.V6 {
		u.Remote = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	if remote, err := unix.Getpeername(fd); err == nil {
		if u.Remote, err = addrPort(fd, remote); err != nil {
			return nil, err
		}
	} else if err != unix.ENOTCONN {
		return nil, fmt.Errorf("getpeername: %w", err)
	}
	if err := u.interfaces(fd); err != nil {
		return nil, err
	}
	return u, u.memberships(fd, groups)
}

// ifOption is an option whose value is the index of an interface.
type ifOption struct {
	level, num int
	network    bool // in network byte order
	to         *string
}

func (u *Inet) ifOptions() []ifOption {
	list := []ifOption{{levelIP, unix.IP_UNICAST_IF, true, &u.UnicastIf}}
	if u.V6 {
		list = append(list, ifOption{levelIPv6, unix.IPV6_MULTICAST_IF, false, &u.MulticastIfV6}, ifOption{levelIPv6, unix.IPV6_UNICAST_IF, true, &u.UnicastIfV6})
	}
	return list
}

// interfaces reads the options that name interfaces.
func (u *Inet) interfaces(fd int) error {
	for _, o := range u.ifOptions() {
		index, err := unix.GetsockoptInt(fd, o.level, o.num)
		if err != nil || index == 0 {
			continue
		}
		if o.network {
			index = swapped(index)
		}
		if *o.to, err = deviceName(fd, index); err != nil {
			return err
		}
	}
	if a, err := unix.GetsockoptInet4Addr(fd, levelIP, unix.IP_MULTICAST_IF); err == nil && a != [4]byte{} {
		u.MulticastIf = netip.AddrFrom4(a).String()
	}
	return nil
}

func swapped(n int) int {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(n))
	return int(binary.BigEndian.Uint32(b[:]))
}

// restoreInterfaces sets them.
func (u *Inet) restoreInterfaces(fd int) error {
	for _, o := range u.ifOptions() {
		if *o.to == "" {
			continue
		}
		index, err := deviceIndex(fd, *o.to)
		if err != nil {
			return err
		}
		if o.network {
			index = swapped(index)
		}
		if err := unix.SetsockoptInt(fd, o.level, o.num, index); err != nil {
			return fmt.Errorf("interface %q for option %d: %w", *o.to, o.num, err)
		}
	}
	if u.MulticastIf == "" {
		return nil
	}
	a, err := netip.ParseAddr(u.MulticastIf)
	if err != nil || !a.Is4() {
		return fmt.Errorf("IP_MULTICAST_IF: address %.40q", u.MulticastIf)
	}
	if err := unix.SetsockoptInet4Addr(fd, levelIP, unix.IP_MULTICAST_IF, a.As4()); err != nil {
		return fmt.Errorf("IP_MULTICAST_IF %v: %w", a, err)
	}
	return nil
}

// BindInet gives a fresh socket its address.
func BindInet(fd int, u *Inet) error {
	if u.Local.Port() == 0 && u.Local.Addr().IsUnspecified() || u.Raw && u.Local.Addr().IsUnspecified() {
		return nil
	}
	if u.Local.Port() == 0 && !u.Raw {
		if err := unix.SetsockoptInt(fd, levelIP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	sa, err := sockaddr(fd, u.Local)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		return fmt.Errorf("bind to %v (is the address configured, and the port free?): %w", u.Local, err)
	}
	return nil
}

// ConnectInet gives it its peer, and then what it had of groups and interfaces.
func ConnectInet(fd int, u *Inet) error {
	if u.Remote.Port() != 0 || !u.Remote.Addr().IsUnspecified() {
		sa, err := sockaddr(fd, u.Remote)
		if err == nil {
			err = unix.Connect(fd, sa)
		}
		if err != nil {
			return fmt.Errorf("connect to %v: %w", u.Remote, err)
		}
	}
	if err := u.restoreInterfaces(fd); err != nil {
		return err
	}
	return u.join(fd)
}

// Shut shuts a socket down, when its queue has been filled.
func Shut(fd int, u *Inet) error {
	if u.Shutdown&3 != 0 {
		// On a socket without a peer it takes effect and says that there is none (inet_shutdown in net/ipv4/af_inet.c).
		if err := unix.Shutdown(fd, int(u.Shutdown&3)-1); err != nil && err != unix.ENOTCONN {
			return fmt.Errorf("shutdown %d: %w", u.Shutdown, err)
		}
	}
	return nil
}

func addrPort(fd int, sa unix.Sockaddr) (netip.AddrPort, error) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			name, err := deviceName(fd, int(a.ZoneId))
			if err != nil {
				return netip.AddrPort{}, err
			}
			ip = ip.WithZone(name)
		}
		return netip.AddrPortFrom(ip, uint16(a.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("socket address of type %T", sa)
}

func sockaddr(fd int, a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		index, err := deviceIndex(fd, zone)
		if err != nil {
			return nil, err
		}
		sa.ZoneId = uint32(index)
	}
	return sa, nil
}

// deviceName is the name of an interface in the network namespace of a socket (netdevice(7)).
func deviceName(fd, index int) (string, error) {
	req, err := unix.NewIfreq("-")
	if err != nil {
		return "", err
	}
	req.SetUint32(uint32(index))
	if err := ioctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
		return "", fmt.Errorf("name of interface %d: %w", index, err)
	}
	return req.Name(), nil
}

func deviceIndex(fd int, name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err == nil {
		err = ioctlIfreq(fd, unix.SIOCGIFINDEX, req)
	}
	if err != nil {
		return 0, fmt.Errorf("interface %.20q is not here: %w", name, err)
	}
	return int(req.Uint32()), nil
}

// Candidates lists the groups that somebody has joined in a network namespace, from /proc/PID/net/igmp and igmp6.
func Candidates(v4, v6 []byte) []Membership { return append(igmp(v4), igmp6(v6)...) }

// igmp reads /proc/net/igmp: a line of an interface begins with its index and name, those of its groups begin with tabs and the
// group in hexadecimal, in the machine's byte order.
func igmp(b []byte) (list []Membership) {
	device := ""
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		if !bytes.HasPrefix(line, []byte("\t")) {
			device = string(bytes.TrimSuffix(f[1], []byte(":")))
			continue
		}
		var ip [4]byte
		if n, err := strconv.ParseUint(string(f[0]), 16, 32); err == nil {
			binary.NativeEndian.PutUint32(ip[:], uint32(n))
			list = append(list, Membership{Device: device, Group: netip.AddrFrom4(ip)})
		}
	}
	return list
}

// igmp6 reads /proc/net/igmp6: index, name, group in hexadecimal.
func igmp6(b []byte) (list []Membership) {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 3 || len(f[2]) != 32 {
			continue
		}
		var ip [16]byte
		if _, err := hex.Decode(ip[:], f[2]); err != nil {
			continue
		}
		list = append(list, Membership{Device: string(f[1]), Group: netip.AddrFrom16(ip)})
	}
	return list
}

// Options of groups that are not of one version of the protocol (linux/in.h, RFC 3678).
const (
	mcastJoinGroup = 42
	mcastMSFilter  = 48
	filterHeader   = 4 + 4 + 128 + 4 + 4 // struct group_filter without its sources
	maxSources     = 1 << 12
)

// memberships finds which of the groups this socket has joined.
func (u *Inet) memberships(fd int, candidates []Membership) error {
	ne := binary.NativeEndian
	for _, g := range candidates {
		level := levelIP
		if g.Group.Is6() {
			if level = levelIPv6; !u.V6 {
				continue
			}
		}
		index, err := deviceIndex(fd, g.Device)
		if err != nil {
			return err
		}
		var buf []byte
		n := 16
		for room := 0; room < n && n <= maxSources; { // what it has is told, however much room there is
			room = n
			buf = make([]byte, filterHeader+128*room)
			ne.PutUint32(buf, uint32(index))
			putStorage(buf[8:], g.Group)
			ne.PutUint32(buf[140:], uint32(room))
			if _, err = getsockopt(fd, level, mcastMSFilter, buf); err != nil {
				break
			}
			n = int(ne.Uint32(buf[140:]))
		}
		if err != nil {
			continue // it has not
		}
		g.Include = ne.Uint32(buf[136:]) == 1 // MCAST_INCLUDE
		if n > maxSources {
			return fmt.Errorf("group %v has %d sources, more than %d are not carried: %w", g.Group, n, maxSources, ErrOption)
		}
		for i := range n {
			g.Sources = append(g.Sources, storageIP(buf[filterHeader+128*i:]))
		}
		u.Groups = append(u.Groups, g)
	}
	return nil
}

// join joins the groups again.
func (u *Inet) join(fd int) error {
	ne := binary.NativeEndian
	for _, g := range u.Groups {
		level := levelIP
		if g.Group.Is6() {
			level = levelIPv6
		}
		index, err := deviceIndex(fd, g.Device)
		if err != nil {
			return err
		}
		req := make([]byte, 8+128)
		ne.PutUint32(req, uint32(index))
		putStorage(req[8:], g.Group)
		if err := unix.SetsockoptString(fd, level, mcastJoinGroup, string(req)); err != nil {
			return fmt.Errorf("join group %v on %s: %w", g.Group, g.Device, err)
		}
		if !g.Include && len(g.Sources) == 0 {
			continue
		}
		filter := make([]byte, filterHeader+128*len(g.Sources))
		ne.PutUint32(filter, uint32(index))
		putStorage(filter[8:], g.Group)
		if g.Include {
			ne.PutUint32(filter[136:], 1)
		}
		ne.PutUint32(filter[140:], uint32(len(g.Sources)))
		for i, s := range g.Sources {
			putStorage(filter[filterHeader+128*i:], s)
		}
		if err := unix.SetsockoptString(fd, level, mcastMSFilter, string(filter)); err != nil {
			return fmt.Errorf("sources of group %v on %s: %w", g.Group, g.Device, err)
		}
	}
	return nil
}

// putStorage writes struct sockaddr_storage.
func putStorage(b []byte, a netip.Addr) {
	if a.Is4() {
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		copy(b[4:], a.AsSlice())
		return
	}
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	copy(b[8:], a.AsSlice())
}

func storageIP(b []byte) netip.Addr {
	if binary.NativeEndian.Uint16(b) == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b[4:8]))
	}
	return netip.AddrFrom16([16]byte(b[8:24]))
}
