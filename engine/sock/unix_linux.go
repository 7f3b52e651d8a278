package sock

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// UnixName is the name that a unix socket is bound to: a path, or bytes that begin with a zero (the abstract
// namespace), or nothing.
func UnixName(fd int) ([]byte, error) {
	raw, err := sockname(unix.SYS_GETSOCKNAME, fd)
	if err != nil {
		return nil, fmt.Errorf("name of a unix socket: %w", err)
	}
	return nameOf(raw), nil
}

// UnixPeerName is the name of its peer.
func UnixPeerName(fd int) ([]byte, error) {
	raw, err := sockname(unix.SYS_GETPEERNAME, fd)
	if err != nil {
		return nil, fmt.Errorf("name of the peer of a unix socket: %w", err)
	}
	return nameOf(raw), nil
}

func nameOf(raw []byte) []byte {
	if len(raw) <= 2 {
		return nil
	}
	name := raw[2:]
	if name[0] != 0 {
		name = bytes.TrimRight(name, "\x00")
	}
	return bytes.Clone(name)
}

// unixAddr is struct sockaddr_un for a name of UnixName; a path gets its final zero.
func unixAddr(name []byte) ([]byte, error) {
	if len(name) == 0 || len(name) > 108 {
		return nil, fmt.Errorf("a name of %d bytes, 1 to 108 are possible", len(name))
	}
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	b = append(b, name...)
	if name[0] != 0 && len(name) < 108 {
		b = append(b, 0)
	}
	return b, nil
}

// UnixAddr is struct sockaddr_un for a name, of which no more than fits counts.
func UnixAddr(name []byte) []byte {
	b, err := unixAddr(name[:min(len(name), 108)])
	if err != nil { // an empty name: to be refused by the kernel
		return binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	}
	return b
}

// BindUnix gives a unix socket its name, in the root directory, the working directory and the network namespace of
// the calling thread; see In.
func BindUnix(fd int, name []byte) error {
	addr, err := unixAddr(name)
	if err == nil {
		err = bind(fd, addr)
	}
	if err != nil {
		return fmt.Errorf("bind unix socket to %q: %w", name, err)
	}
	return nil
}

// ConnectUnix connects a unix socket to a name.
func ConnectUnix(fd int, name []byte) error {
	addr, err := unixAddr(name)
	if err == nil {
		err = connect(fd, addr)
	}
	if err != nil {
		return fmt.Errorf("connect unix socket to %q: %w", name, err)
	}
	return nil
}
