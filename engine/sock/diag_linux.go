package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Diag asks the kernel about the sockets of one network namespace (sock_diag(7)). It is used by one
// goroutine at a time.
type Diag struct {
	fd     int
	cookie uint64
	buf    []byte
}

// ErrNoSocket means that the namespace has no such socket.
var ErrNoSocket = errors.New("no such socket in the network namespace")

// NewDiag opens a Diag in the network namespace of the calling thread; see In.
func NewDiag() (*Diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a sock_diag socket: %w", err)
	}
	d := &Diag{fd: fd, buf: make([]byte, 16<<10)}
	if d.cookie, err = NetNSCookie(fd); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return d, nil
}

// Close closes it.
func (d *Diag) Close() error { return unix.Close(d.fd) }

// NetNS is the cookie of its network namespace.
func (d *Diag) NetNS() uint64 { return d.cookie }

// Namespace is a handle of its network namespace, for the caller to close.
func (d *Diag) Namespace() (*os.File, error) {
	fd, err := unix.IoctlRetInt(d.fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("handle of a network namespace (SIOCGSKNS): %w", err)
	}
	return os.NewFile(uintptr(fd), "network namespace"), nil
}

// NetNSCookie names the network namespace of a socket, uniquely since boot (SO_NETNS_COOKIE, Linux 5.14).
func NetNSCookie(fd int) (uint64, error) {
	var b [8]byte
	if _, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE, b[:]); err != nil {
		return 0, fmt.Errorf("SO_NETNS_COOKIE (Linux 5.14 or later is needed): %w", err)
	}
	return binary.NativeEndian.Uint64(b[:]), nil
}

// UnixInfo is what the kernel tells about a unix socket (include/uapi/linux/unix_diag.h).
type UnixInfo struct {
	Type, State uint8  // SOCK_*, and 1 connected, 7 not connected, 10 listening
	Ino         uint32 // inode number of the socket
	HasPeer     bool
	Peer        uint32 // inode number of the peer; 0 when the peer was closed
	HasFile     bool   // it is bound to a path
	FileDev     uint32 // device of that file, as the kernel encodes it (major<<20 | minor)
	FileIno     uint32
	Queue       uint32 // listening: connections that wait; else bytes that wait (of the first message for datagrams)
	Backlog     uint32 // listening: the longest queue; else bytes sent and not yet read by the peer
	Shutdown    uint8  // bit 0: for reading, bit 1: for writing
	// Waiting are the clients of the connections that wait, by the inode numbers of their sockets; 0 for one that was closed.
	Waiting []uint32
}

// unix_diag.h
const (
	diagByFamily = 20
	unixShow     = 0x2 | 0x4 | 0x8 | 0x10 // UDIAG_SHOW_VFS, PEER, ICONS, RQLEN

	attrVFS, attrPeer, attrIcons, attrQueue, attrShutdown = 1, 2, 3, 4, 6
)

// Unix asks about the unix socket with the inode number given.
func (d *Diag) Unix(ino uint32) (*UnixInfo, error) {
	req := make([]byte, unix.NLMSG_HDRLEN+24)
	ne := binary.NativeEndian
	ne.PutUint32(req, uint32(len(req)))
	ne.PutUint16(req[4:], diagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST)
	body := req[unix.NLMSG_HDRLEN:]
	body[0] = unix.AF_UNIX
	ne.PutUint32(body[4:], 0xffffffff)
	ne.PutUint32(body[8:], ino)
	ne.PutUint32(body[12:], unixShow)
	ne.PutUint64(body[16:], ^uint64(0)) // no cookie
	if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask about unix socket %d: %w", ino, err)
	}
	n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
	if err != nil {
		return nil, fmt.Errorf("answer about unix socket %d: %w", ino, err)
	}
	u, err := parseUnixDiag(d.buf[:n])
	if err != nil {
		return nil, fmt.Errorf("unix socket %d: %w", ino, err)
	}
	return u, nil
}

// parseUnixDiag parses one netlink message: a unix_diag_msg with attributes, or an error.
func parseUnixDiag(b []byte) (*UnixInfo, error) {
	ne := binary.NativeEndian
	if len(b) < unix.NLMSG_HDRLEN+4 {
		return nil, fmt.Errorf("sock_diag: an answer of %d bytes", len(b))
	}
	size := ne.Uint32(b)
	if uint64(size) > uint64(len(b)) || size < unix.NLMSG_HDRLEN+4 {
		return nil, fmt.Errorf("sock_diag: a message of %d in %d bytes", size, len(b))
	}
	body := b[unix.NLMSG_HDRLEN:size]
	if typ := ne.Uint16(b[4:]); typ == unix.NLMSG_ERROR {
		errno := unix.Errno(-int32(ne.Uint32(body)))
		if errno == unix.ENOENT {
			return nil, ErrNoSocket
		}
		return nil, fmt.Errorf("sock_diag: %w", errno)
	} else if typ != diagByFamily || len(body) < 16 {
		return nil, fmt.Errorf("sock_diag: message type %d of %d bytes", typ, len(body))
	}
	u := &UnixInfo{Type: body[1], State: body[2], Ino: ne.Uint32(body[4:])}
	for a := body[16:]; len(a) >= 4; {
		n := int(ne.Uint16(a))
		if n < 4 || n > len(a) {
			return nil, fmt.Errorf("sock_diag: an attribute of %d in %d bytes", n, len(a))
		}
		u.attribute(ne.Uint16(a[2:]), a[4:n])
		a = a[min((n+3)&^3, len(a)):]
	}
	return u, nil
}

func (u *UnixInfo) attribute(typ uint16, v []byte) {
	ne := binary.NativeEndian
	switch {
	case typ == attrVFS && len(v) >= 8:
		u.HasFile, u.FileIno, u.FileDev = true, ne.Uint32(v), ne.Uint32(v[4:])
	case typ == attrPeer && len(v) >= 4:
		u.HasPeer, u.Peer = true, ne.Uint32(v)
	case typ == attrIcons:
		for ; len(v) >= 4; v = v[4:] {
			u.Waiting = append(u.Waiting, ne.Uint32(v))
		}
	case typ == attrQueue && len(v) >= 8:
		u.Queue, u.Backlog = ne.Uint32(v), ne.Uint32(v[4:])
	case typ == attrShutdown && len(v) >= 1:
		u.Shutdown = v[0]
	}
}
