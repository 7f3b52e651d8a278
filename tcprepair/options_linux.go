package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// saveOptions reads all options of the table that this kind of socket has.
func saveOptions(fd int, kind when, v6 bool) (map[string]int64, error) {
	opts := make(map[string]int64, len(optionTable))
	for _, o := range optionTable {
		if o.when&kind == 0 || o.when&onlyV6 != 0 && !v6 {
			continue
		}
		v, err := getInt(fd, o.level, o.num)
		if quiet(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", o.name, err)
		}
		opts[o.name] = int64(v)
	}
	return opts, nil
}

// restoreOptions sets the recorded options of one moment, where the fresh socket has another value.
func restoreOptions(fd int, opts map[string]int64, moment, kind when, v6 bool) error {
	for _, o := range optionTable {
		want, ok := opts[o.name]
		if !ok || o.when&moment == 0 || o.when&kind == 0 || o.when&onlyV6 != 0 && !v6 {
			continue
		}
		have, err := getInt(fd, o.level, o.num)
		if err == nil && int64(have) == int64(int32(want)) {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.num, int(int32(want))); err != nil {
			return fmt.Errorf("set %s to %d: %w", o.name, want, err)
		}
	}
	return nil
}

// common is what connections and listeners share beside the table.
type common struct {
	buffers    Buffers
	linger     Linger
	congestion string
	device     string
}

func saveCommon(fd int, name string, mptcp bool) (common, error) {
	var c common
	for _, x := range []struct {
		opt int
		to  *uint32
	}{{unix.SO_SNDBUF, &c.buffers.Send}, {unix.SO_RCVBUF, &c.buffers.Recv}} {
		v, err := getUint32(fd, unix.SOL_SOCKET, x.opt)
		if err != nil {
			return c, fmt.Errorf("buffer size (option %d): %w", x.opt, err)
		}
		*x.to = v
	}
	lock, err := getUint32(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err == nil {
		c.buffers.Locked, c.buffers.LockKnown = lock, true
	} else if !quiet(err) {
		return c, fmt.Errorf("SO_BUF_LOCK: %w", err)
	}
	var b [16]byte
	if _, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, b[:8]); err != nil {
		return c, fmt.Errorf("SO_LINGER: %w", err)
	}
	c.linger = Linger{On: binary.NativeEndian.Uint32(b[:]) != 0, Seconds: int32(binary.NativeEndian.Uint32(b[4:]))}
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, b[:])
	if err != nil && !quiet(err) {
		return c, fmt.Errorf("SO_BINDTODEVICE: %w", err)
	}
	c.device = unix.ByteSliceToString(b[:n])
	n, err = getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b[:])
	if err != nil && (!mptcp || !quiet(err)) {
		return c, fmt.Errorf("TCP_CONGESTION: %w", err)
	}
	c.congestion = unix.ByteSliceToString(b[:n])
	return c, notCarried(fd, name, mptcp)
}

// restoreCommon sets what the table leaves out, except the buffers.
func restoreCommon(fd int, linger Linger, congestion, device string) error {
	if linger.On {
		l := unix.Linger{Onoff: 1, Linger: linger.Seconds}
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l); err != nil {
			return fmt.Errorf("set SO_LINGER: %w", err)
		}
	}
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return fmt.Errorf("bind to interface %q: %w", device, err)
		}
	}
	if congestion == "" {
		return nil
	}
	var b [16]byte
	n, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b[:])
	if err == nil && unix.ByteSliceToString(b[:n]) == congestion {
		return nil
	}
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion); err != nil {
		return fmt.Errorf("congestion control %q (is it built for this kernel?): %w", congestion, err)
	}
	return nil
}

// notCarried looks for state that has no way into another kernel.
func notCarried(fd int, name string, mptcp bool) error {
	var b [40]byte
	refuse := func(what, remedy string) error { return &NotCarriedError{Socket: name, What: what, Remedy: remedy} }
	if n, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_ULP, b[:16]); err == nil && n > 0 && b[0] != 0 &&
		(!mptcp || unix.ByteSliceToString(b[:n]) != "mptcp") {
		return refuse("the upper layer protocol "+unix.ByteSliceToString(b[:n])+" ", "if it is tls, run the program without kernel TLS")
	}
	if n, err := getsockopt(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, b[:]); err == nil && n > 0 {
		return refuse("a set of IP options", "")
	}
	// SO_GET_FILTER: the number of instructions (a length of 0 asks for just that), or EACCES for eBPF.
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, nil)
	if n > 0 || errors.Is(err, unix.EACCES) {
		return refuse("a socket filter", "")
	}
	if _, err := getsockopt(fd, unix.IPPROTO_TCP, tcpAOInfo, make([]byte, 56)); err == nil {
		return refuse("TCP-AO authentication", "")
	}
	return nil
}

// setBuffers makes room for at least the given bytes in both queues, whatever the limits of the system.
func setBuffers(fd int, send, recv uint32) error {
	for _, x := range []struct {
		name       string
		force, get int
		size       uint32
	}{
		{"SO_SNDBUF", unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, send},
		{"SO_RCVBUF", unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recv},
	} {
		// The kernel doubles what it is given.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, x.force, int(x.size/2)); err != nil {
			return fmt.Errorf("set %s to %d: %w", x.name, x.size, err)
		}
	}
	return nil
}

// unlockBuffers gives the sizing of the buffers back to whom it belonged. Where the kernel has no SO_BUF_LOCK the sizes
// stay fixed.
func unlockBuffers(fd int, b Buffers) error {
	if !b.LockKnown {
		return nil
	}
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, int(b.Locked))
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("set SO_BUF_LOCK to %d: %w", b.Locked, err)
	}
	return nil
}
