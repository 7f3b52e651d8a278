package tcprepair

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// save reads the settings of a socket, without SO_REUSEADDR, which repair overwrites, and the keys of TCP_MD5SIG, which the socket does
// not tell. kind is onConn, onListn or both.
func (s *Settings) save(fd int, name string, mptcp bool, kind when, v6 bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	s.UID = st.Uid
	if err := s.saveBuffers(fd); err != nil {
		return err
	}
	var b [16]byte
	if _, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, b[:8]); err != nil {
		return fmt.Errorf("SO_LINGER: %w", err)
	}
	s.Linger = Linger{On: binary.NativeEndian.Uint32(b[:]) != 0, Seconds: int32(binary.NativeEndian.Uint32(b[4:]))}
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, b[:])
	if err != nil && !quiet(err) {
		return fmt.Errorf("SO_BINDTODEVICE: %w", err)
	}
	s.Device = unix.ByteSliceToString(b[:n])
	n, err = getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b[:])
	if err != nil && (!mptcp || !quiet(err)) {
		return fmt.Errorf("TCP_CONGESTION: %w", err)
	}
	s.Congestion = unix.ByteSliceToString(b[:n])
	if s.Options, err = saveOptions(fd, kind, v6); err != nil {
		return err
	}
	if s.Values, err = saveValues(fd, v6); err != nil {
		return err
	}
	return notCarried(fd, name, mptcp)
}

func (s *Settings) saveBuffers(fd int) error {
	for _, x := range []struct {
		opt int
		to  *uint32
	}{{unix.SO_SNDBUF, &s.Buffers.Send}, {unix.SO_RCVBUF, &s.Buffers.Recv}} {
		v, err := getUint32(fd, unix.SOL_SOCKET, x.opt)
		if err != nil {
			return fmt.Errorf("buffer size (option %d): %w", x.opt, err)
		}
		*x.to = v
	}
	lock, err := getUint32(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err == nil {
		s.Buffers.Locked, s.Buffers.LockKnown = lock, true
	} else if !quiet(err) {
		return fmt.Errorf("SO_BUF_LOCK: %w", err)
	}
	return nil
}

// saveValues reads the options of valueTable that are set.
func saveValues(fd int, v6 bool) (map[string][]byte, error) {
	values := map[string][]byte{}
	buf := make([]byte, 2048)
	for _, v := range valueTable {
		if v.name == socketFilter || v.name == KeysMD5 || v.level == solIPv6 && !v6 {
			continue
		}
		n, err := getsockopt(fd, v.level, v.num, buf[:min(v.max, len(buf))])
		switch {
		case quiet(err):
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", v.name, err)
		case len(bytes.Trim(buf[:n], "\x00")) > 0:
			values[v.name] = bytes.Clone(buf[:n])
		}
	}
	program, err := filterOf(fd)
	if program != nil {
		values[socketFilter] = program
	}
	return values, err
}

// filterOf reads the classic filter of a socket; nil if it has none, or one of which notCarried tells.
func filterOf(fd int) ([]byte, error) {
	// With a length of 0 the kernel tells the number of instructions, of 8 bytes each.
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, nil)
	if err != nil || n <= 0 || n > maxFilter {
		return nil, nil
	}
	program := make([]byte, 8*n)
	if _, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, program); err != nil {
		return nil, fmt.Errorf("read the socket filter: %w", err)
	}
	return program, nil
}

// filterProgram takes struct sock_filter apart.
func filterProgram(b []byte) []unix.SockFilter {
	program := make([]unix.SockFilter, len(b)/8)
	ne := binary.NativeEndian
	for i := range program {
		f := b[8*i:]
		program[i] = unix.SockFilter{Code: ne.Uint16(f), Jt: f[2], Jf: f[3], K: ne.Uint32(f[4:])}
	}
	return program
}

// restore sets everything but buffers and what belongs at the end. A fresh socket is asked to be bound afterwards.
func (s *Settings) restore(fd int, kind when, v6 bool) error {
	if s.UID != 0 {
		if err := unix.Fchown(fd, int(s.UID), -1); err != nil {
			return fmt.Errorf("give the socket to user %d: %w", s.UID, err)
		}
	}
	if err := restoreOptions(fd, s.Options, early, kind, v6); err != nil {
		return err
	}
	if s.Linger.On {
		l := unix.Linger{Onoff: 1, Linger: s.Linger.Seconds}
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l); err != nil {
			return fmt.Errorf("set SO_LINGER: %w", err)
		}
	}
	if s.Device != "" {
		if err := unix.BindToDevice(fd, s.Device); err != nil {
			return fmt.Errorf("bind to interface %q: %w", s.Device, err)
		}
	}
	if err := s.restoreValues(fd); err != nil {
		return err
	}
	return s.restoreCongestion(fd)
}

func (s *Settings) restoreCongestion(fd int) error {
	if s.Congestion == "" {
		return nil
	}
	var b [16]byte
	n, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b[:])
	if err == nil && unix.ByteSliceToString(b[:n]) == s.Congestion {
		return nil
	}
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, s.Congestion); err != nil {
		return fmt.Errorf("congestion control %q (is it built for this kernel?): %w", s.Congestion, err)
	}
	return nil
}

func (s *Settings) restoreValues(fd int) error {
	for _, v := range valueTable {
		b, ok := s.Values[v.name]
		if !ok {
			continue
		}
		var err error
		switch v.name {
		case socketFilter: // at the end
		case KeysMD5:
			err = setKeysMD5(fd, b)
		default:
			err = setsockopt(fd, v.level, v.num, b)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", v.name, err)
		}
	}
	return nil
}

// setKeysMD5 turns struct tcp_diag_md5sig into struct tcp_md5sig (include/uapi/linux/inet_diag.h and tcp.h).
func setKeysMD5(fd int, keys []byte) error {
	const (
		ext        = 38 // TCP_MD5SIG_EXT
		prefix     = 1  // TCP_MD5SIG_FLAG_PREFIX
		storage    = 128
		maxKeySize = 80
	)
	for ; len(keys) >= keyMD5Size; keys = keys[keyMD5Size:] {
		b := make([]byte, storage+8+maxKeySize)
		family := keys[0]
		binary.NativeEndian.PutUint16(b, uint16(family))
		if family == unix.AF_INET {
			copy(b[4:8], keys[4:8])
		} else {
			copy(b[8:24], keys[4:20])
		}
		b[storage], b[storage+1] = prefix, keys[1]
		copy(b[storage+2:], keys[2:4])
		copy(b[storage+8:], keys[20:keyMD5Size])
		if err := setsockopt(fd, unix.IPPROTO_TCP, ext, b); err != nil {
			return err
		}
	}
	return nil
}

// finish sets what would have been in the way before: a filter drops segments, and a lock of it forbids to set it.
func (s *Settings) finish(fd int, kind when, v6 bool) error {
	if b := s.Values[socketFilter]; len(b) > 0 {
		program := filterProgram(b)
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
			return fmt.Errorf("attach the socket filter: %w", err)
		}
	}
	return restoreOptions(fd, s.Options, last, kind, v6)
}

// notCarried looks for state that has no way into another kernel.
func notCarried(fd int, name string, mptcp bool) error {
	var b [40]byte
	refuse := func(what, remedy string) error { return &NotCarriedError{Socket: name, What: what, Remedy: remedy} }
	if n, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_ULP, b[:16]); err == nil && n > 0 && b[0] != 0 &&
		(!mptcp || unix.ByteSliceToString(b[:n]) != "mptcp") {
		return refuse("the upper layer protocol "+unix.ByteSliceToString(b[:n])+" ", "if it is tls, run the program without kernel TLS")
	}
	if _, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, nil); errors.Is(err, unix.EACCES) {
		return refuse("an eBPF socket filter", "")
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
