package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Signed tells whether a connection or listener signs its segments (TCP_MD5SIG, as routers do). Its keys cannot be carried, and the
// peer would drop what is not signed. The socket itself has no option that tells, so Save cannot: this asks sock_diag(7), which
// takes longer, and is to be called before the program is stopped.
func Signed(f *os.File) (bool, error) {
	var signed bool
	err := control(f, func(fd int) error {
		v6, _, err := mustBe(fd, true)
		if err != nil {
			return err
		}
		req, err := diagRequest(fd, v6)
		if err != nil {
			return err
		}
		diag, err := openDiag(fd)
		if err != nil {
			return err
		}
		defer unix.Close(diag) //nolint:errcheck // only asked
		if err := unix.Sendto(diag, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("ask sock_diag: %w", err)
		}
		buf := make([]byte, 32<<10)
		n, _, err := unix.Recvfrom(diag, buf, 0)
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		signed, err = parseSigned(buf[:n])
		return err
	})
	if err != nil {
		return false, fmt.Errorf("signature of a connection: %w", err)
	}
	return signed, nil
}

func openDiag(fd int) (int, error) {
	diag, err := besides(fd, func() (int, error) {
		return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	})
	if err != nil {
		return -1, fmt.Errorf("sock_diag socket: %w", err)
	}
	return diag, nil
}

// Of include/uapi/linux/inet_diag.h and sock_diag.h.
const (
	diagByFamily   = 20 // SOCK_DIAG_BY_FAMILY
	diagRequestLen = 56 // struct inet_diag_req_v2
	diagAnswerLen  = 72 // struct inet_diag_msg
	diagInfo       = 2  // INET_DIAG_INFO
	diagMD5        = 18 // INET_DIAG_MD5SIG
)

// diagRequest asks for the one socket with these two ends.
func diagRequest(fd int, v6 bool) ([]byte, error) {
	local, remote, err := ends(fd)
	if err != nil {
		return nil, err
	}
	b := make([]byte, unix.NLMSG_HDRLEN+diagRequestLen)
	ne, be := binary.NativeEndian, binary.BigEndian
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], diagByFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	req := b[unix.NLMSG_HDRLEN:]
	req[0], req[1] = unix.AF_INET, unix.IPPROTO_TCP
	if v6 {
		req[0] = unix.AF_INET6
	}
	req[2] = 1 << (diagInfo - 1)   // with its tcp_info, and with that the keys
	ne.PutUint32(req[4:], 1<<32-1) // in any state
	be.PutUint16(req[8:], local.Port())
	be.PutUint16(req[10:], remote.Port())
	copy(req[12:28], local.Addr().AsSlice())
	copy(req[28:44], remote.Addr().AsSlice())
	device, err := getUint32(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err == nil {
		ne.PutUint32(req[44:], device)
	}
	ne.PutUint64(req[48:], 1<<64-1) // INET_DIAG_NOCOOKIE
	return b, nil
}

// ends reads both addresses of a socket; a listener has no remote one.
func ends(fd int) (local, remote netip.AddrPort, err error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return local, remote, fmt.Errorf("getsockname: %w", err)
	}
	if local, err = addrPort(fd, sa); err != nil {
		return local, remote, err
	}
	sa, err = unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return local, remote, nil
	}
	if err != nil {
		return local, remote, fmt.Errorf("getpeername: %w", err)
	}
	remote, err = addrPort(fd, sa)
	return local, remote, err
}

// Ends are the two addresses of a connection. The error matches ENOTCONN if the socket has no peer.
func Ends(f *os.File) (local, remote netip.AddrPort, err error) {
	err = control(f, func(fd int) (err error) {
		local, remote, err = ends(fd)
		if err == nil && !remote.IsValid() {
			err = unix.ENOTCONN
		}
		return err
	})
	return local, remote, err
}

// parseSigned looks for keys in sock_diag's answer about one socket.
func parseSigned(b []byte) (bool, error) {
	if len(b) < unix.NLMSG_HDRLEN {
		return false, fmt.Errorf("sock_diag: an answer of %d bytes", len(b))
	}
	n, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
	if n < unix.NLMSG_HDRLEN || uint64(n) > uint64(len(b)) {
		return false, fmt.Errorf("sock_diag: a message of %d bytes in %d", n, len(b))
	}
	body := b[unix.NLMSG_HDRLEN:n]
	if kind == unix.NLMSG_ERROR && len(body) >= 4 {
		return false, fmt.Errorf("sock_diag: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
	}
	if len(body) < diagAnswerLen {
		return false, fmt.Errorf("sock_diag: an answer of %d bytes", len(body))
	}
	for a := body[diagAnswerLen:]; len(a) >= 4; {
		size := int(binary.NativeEndian.Uint16(a))
		if size < 4 || size > len(a) {
			return false, fmt.Errorf("sock_diag: an attribute of %d bytes in %d", size, len(a))
		}
		if binary.NativeEndian.Uint16(a[2:]) == diagMD5 {
			return true, nil
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return false, nil
}
