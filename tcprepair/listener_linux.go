package tcprepair

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SaveListener reads a listening socket, of TCP or MPTCP, and changes nothing. If connections wait in its queue, the error is a
// *WaitingError beside the listener: they are no part of it. (Shutting new connections out first, and letting the program run for a
// moment, empties the queue: package agent/port.)
func SaveListener(f *os.File) (*Listener, error) {
	l := &Listener{}
	err := control(f, func(fd int) error { return saveListener(fd, l) })
	var waits *WaitingError
	if errors.As(err, &waits) {
		return l, err
	}
	if err != nil {
		return nil, fmt.Errorf("save listener: %w", err)
	}
	return l, nil
}

// Waiting is how many connections are established at a listener and not yet accepted by the program.
func Waiting(f *os.File) (int, error) {
	var n int
	err := control(f, func(fd int) error {
		i, err := tcpInfo(fd)
		n = int(i.unacked)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("connections waiting: %w", err)
	}
	return n, nil
}

func saveListener(fd int, l *Listener) error {
	v6, protocol, err := mustBe(fd, true)
	if err != nil {
		return err
	}
	l.V6, l.MPTCP = v6, protocol == unix.IPPROTO_MPTCP
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if l.Local, err = addrPort(fd, sa); err != nil {
		return err
	}
	waits := l.saveQueue(fd)
	var waiting *WaitingError
	if waits != nil && !errors.As(waits, &waiting) {
		return waits
	}
	if l.Foreign, err = foreign(fd, v6, l.Local); err != nil {
		return err
	}
	reuse, err := getInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	l.ReuseAddr = reuse != 0
	if l.FastOpen, err = fastOpen(fd); err != nil {
		return err
	}
	if err := l.Settings.save(fd, l.Local.String(), l.MPTCP, onListn, v6); err != nil {
		return fmt.Errorf("%v: %w", l.Local, err)
	}
	return waits
}

func (l *Listener) saveQueue(fd int) error {
	listens, err := getInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("SO_ACCEPTCONN: %w", err)
	}
	if listens == 0 {
		return &NotCarriedError{Socket: l.Local.String(), What: "a socket that does not listen"}
	}
	i, err := tcpInfo(fd)
	if err != nil {
		return err
	}
	// For a listener the kernel puts these two numbers here (tcp_get_info in net/ipv4/tcp.c).
	l.Backlog = int32(min(i.sacked, 1<<31-1))
	if i.unacked > 0 {
		return &WaitingError{Listener: l.Local.String(), Count: int(i.unacked)}
	}
	return nil
}

// RestoreListener makes a fresh socket, of the state's family and protocol and in the right network namespace, listen. Connections
// can arrive from then on. If it fails, the caller closes the socket.
func RestoreListener(f *os.File, l *Listener) error {
	if err := l.Validate(); err != nil {
		return err
	}
	if err := control(f, func(fd int) error { return restoreListener(fd, l) }); err != nil {
		return fmt.Errorf("restore listener %v: %w", l.Local, err)
	}
	return nil
}

func restoreListener(fd int, l *Listener) error {
	v6, protocol, err := mustBe(fd, true)
	if err != nil {
		return err
	}
	if v6 != l.V6 || (protocol == unix.IPPROTO_MPTCP) != l.MPTCP {
		return errors.New("the fresh socket is of another address family or protocol")
	}
	if err := l.Settings.restore(fd, onListn, v6); err != nil {
		return err
	}
	if err := restoreOptions(fd, l.Options, late, onListn, v6); err != nil {
		return err
	}
	if err := restoreLocked(fd, l.Buffers); err != nil {
		return err
	}
	if err := setReuse(fd, l.ReuseAddr); err != nil {
		return err
	}
	if err := bind(fd, v6, l.Local, l.Foreign, l.ReuseAddr); err != nil {
		return err
	}
	if l.FastOpen > 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, int(l.FastOpen)); err != nil {
			return fmt.Errorf("set TCP_FASTOPEN to %d: %w", l.FastOpen, err)
		}
	}
	if err := unix.Listen(fd, int(l.Backlog)); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return l.Settings.finish(fd, onListn, v6)
}
