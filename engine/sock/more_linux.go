package sock

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// familyOf tells which options a socket has.
func familyOf(fd int) (family, error) {
	var v [3]int
	for i, opt := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		var err error
		if v[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err != nil {
			return 0, fmt.Errorf("what the socket is (option %d): %w", opt, err)
		}
	}
	f := map[int]family{unix.AF_UNIX: onUnix, unix.AF_INET: onInet, unix.AF_INET6: onInet6, unix.AF_PACKET: onPacket, unix.AF_NETLINK: onNetlink}[v[0]]
	switch {
	case f&onIP == 0:
	case v[1] == unix.SOCK_RAW:
		f |= onRaw
	case v[2] == unix.IPPROTO_UDP || v[2] == unix.IPPROTO_UDPLITE:
		f |= onUDP
	}
	return f, nil
}

// has tells whether sockets of the family have the option. Options of one protocol name both the protocol and, if need be, the
// version of the internet protocol.
func (f family) has(o intOption) bool {
	if o.on&(onRaw|onUDP) != 0 {
		version := o.on & onIP
		return f&o.on&(onRaw|onUDP) != 0 && (version == 0 || f&version != 0)
	}
	return f&o.on != 0
}

// SaveMore reads the options that SkOptsEntry has no room for. One that is set and not carried gives an error that matches
// ErrOption.
func SaveMore(fd int) (*More, error) {
	f, err := familyOf(fd)
	if err != nil {
		return nil, err
	}
	m := &More{Ints: map[string]int64{}, Bytes: map[string][]byte{}}
	for name, o := range intOptions {
		if !f.has(o) {
			continue
		}
		v, err := unix.GetsockoptInt(fd, o.level, o.num)
		if quiet(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if o.when != never {
			m.Ints[name] = int64(v)
		} else if v != 0 {
			return nil, fmt.Errorf("%s is %d: %w", name, v, ErrOption)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("owner of the socket: %w", err)
	}
	m.Ints[inodeUID], m.Ints[inodeGID], m.Ints[inodeMode] = int64(st.Uid), int64(st.Gid), int64(st.Mode&0o7777)
	for _, s := range stampOptions {
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, s.num); err == nil && v != 0 {
			m.Ints[s.name] = int64(v)
		}
	}
	buf := make([]byte, 2048)
	for name, o := range byteOptions {
		if !f.has(o) {
			continue
		}
		n, err := getsockopt(fd, o.level, o.num, buf)
		if err == nil && len(bytes.Trim(buf[:min(n, len(buf))], "\x00")) > 0 {
			m.Bytes[name] = bytes.Clone(buf[:min(n, len(buf))])
		} else if err != nil && !quiet(err) {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return m, nil
}

// own gives the socket itself its owner and mode.
func (m *More) own(fd int) error {
	uid, ok := m.Ints[inodeUID]
	if !ok {
		return nil
	}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if gid := m.Ints[inodeGID]; err == nil && (int64(st.Uid) != uid || int64(st.Gid) != gid) {
		err = unix.Fchown(fd, int(uid), int(gid))
	}
	if mode := m.Ints[inodeMode]; err == nil && int64(st.Mode&0o7777) != mode {
		err = unix.Fchmod(fd, uint32(mode))
	}
	if err != nil {
		return fmt.Errorf("owner and mode of the socket: %w", err)
	}
	return nil
}

// set gives a socket the options of one moment. Values that it has already are not set again.
func (m *More) set(fd int, when moment) error {
	if m == nil {
		return nil
	}
	for name, v := range m.Ints {
		o, ok := intOptions[name]
		if !ok || o.when != when {
			continue
		}
		if have, err := unix.GetsockoptInt(fd, o.level, o.num); err == nil && int64(have) == v {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.num, int(int32(v))); err != nil {
			return fmt.Errorf("set %s to %d: %w", name, v, err)
		}
	}
	if when == last {
		return m.own(fd)
	}
	if when != late {
		return nil
	}
	for _, s := range stampOptions {
		v, ok := m.Ints[s.name]
		if have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, s.num); !ok || err == nil && int64(have) == v {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, s.num, int(int32(v))); err != nil {
			return fmt.Errorf("set %s to %d: %w", s.name, v, err)
		}
	}
	for name, v := range m.Bytes {
		o := byteOptions[name]
		if err := unix.SetsockoptString(fd, o.level, o.num, string(v)); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
