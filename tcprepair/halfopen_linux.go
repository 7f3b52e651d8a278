package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// HalfOpen is how many connections to a listener have begun and are not established yet. The kernel gives no way to carry
// them: a peer whose last segment of the handshake reaches another kernel is answered with a reset. So before a listener moves, new
// connections are shut out (package agent/port) until HalfOpen and Waiting are both zero; the handshakes of a healthy peer
// take one round trip.
func HalfOpen(f *os.File) (int, error) {
	var n int
	err := control(f, func(fd int) error {
		v6, _, err := mustBe(fd, true)
		if err != nil {
			return err
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return fmt.Errorf("getsockname: %w", err)
		}
		local, err := addrPort(fd, sa)
		if err != nil {
			return err
		}
		diag, err := openDiag(fd)
		if err != nil {
			return err
		}
		defer unix.Close(diag) //nolint:errcheck // only asked
		// A listener for both families has its IPv4 connections in the list of AF_INET6 too.
		family := uint8(unix.AF_INET)
		if v6 {
			family = unix.AF_INET6
		}
		n, err = countHalfOpen(diag, family, local.Port())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("connections half open: %w", err)
	}
	return n, nil
}

// countHalfOpen asks sock_diag(7) for the sockets in SYN_RECV with a local port.
func countHalfOpen(diag int, family uint8, port uint16) (int, error) {
	b := make([]byte, unix.NLMSG_HDRLEN+diagRequestLen)
	ne := binary.NativeEndian
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], diagByFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req := b[unix.NLMSG_HDRLEN:]
	req[0], req[1] = family, unix.IPPROTO_TCP
	ne.PutUint32(req[4:], 1<<SynRecv)
	binary.BigEndian.PutUint16(req[8:], port) // the kernel filters by it
	if err := unix.Sendto(diag, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask sock_diag: %w", err)
	}
	count, buf := 0, make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(diag, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("sock_diag: %w", err)
		}
		found, done, err := parseDiag(buf[:n], port)
		count += found
		if done || err != nil {
			return count, err
		}
	}
}

// parseDiag counts the sockets of a local port in one datagram of sock_diag's answer.
func parseDiag(b []byte, port uint16) (count int, done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
		if n < unix.NLMSG_HDRLEN || uint64(n) > uint64(len(b)) {
			return count, false, fmt.Errorf("sock_diag: a message of %d bytes in %d", n, len(b))
		}
		body := b[unix.NLMSG_HDRLEN:n]
		switch {
		case kind == unix.NLMSG_DONE:
			return count, true, nil
		case kind == unix.NLMSG_ERROR && len(body) >= 4:
			return count, true, fmt.Errorf("sock_diag: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
		case len(body) >= 6 && binary.BigEndian.Uint16(body[4:]) == port: // struct inet_diag_msg: idiag_sport
			count++
		}
		b = b[min(uint64(len(b)), (uint64(n)+3)&^3):]
	}
	return count, false, nil
}
