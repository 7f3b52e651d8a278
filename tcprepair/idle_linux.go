package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// An End is what the kernel knows of a connection that has ended and does not tell through the socket.
type End struct {
	Remote   netip.AddrPort
	Shutdown uint8
	Finished bool
	Error    int32
}

// SaveIdle reads a socket without a connection and changes nothing. remote is where a socket in SYN_SENT is connecting, and end what is
// known of one whose connection has ended, nil if nothing is.
func SaveIdle(f *os.File, remote netip.AddrPort, end *End) (*Idle, error) {
	s := &Idle{Remote: remote}
	if err := control(f, func(fd int) error { return saveIdle(fd, s, end) }); err != nil {
		return nil, fmt.Errorf("save socket: %w", err)
	}
	return s, nil
}

func saveIdle(fd int, s *Idle, end *End) error {
	v6, protocol, err := mustBe(fd, true)
	if err != nil {
		return err
	}
	s.V6, s.MPTCP = v6, protocol == unix.IPPROTO_MPTCP
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if s.Local, err = addrPort(fd, sa); err != nil {
		return err
	}
	if !s.Remote.IsValid() {
		s.Remote = unspecified(v6)
	}
	if s.Remote, err = inFamily(v6, s.Remote); err != nil {
		return err
	}
	i, err := tcpInfo(fd)
	if err != nil {
		return err
	}
	if s.TCP = i.state; s.TCP != Closed && s.TCP != SynSent {
		return &NotCarriedError{Socket: s.Name(), What: "the state " + i.state.String()}
	}
	if s.Foreign, err = foreign(fd, v6, s.Local); err != nil {
		return err
	}
	reuse, err := getInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	s.ReuseAddr = reuse != 0
	if s.FastOpen, err = fastOpen(fd); err != nil {
		return err
	}
	if err := s.Settings.save(fd, s.Name(), s.MPTCP, both, v6); err != nil {
		return err
	}
	if s.TCP == SynSent {
		err = saveSyn(fd, s)
	} else {
		err = saveEnd(fd, s, end)
	}
	if s.Remote.Port() != 0 {
		delete(s.Options, "TCP_MAXSEG") // once it has connected this is what the route has given
	}
	return err
}

func unspecified(v6 bool) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
}

// inFamily gives an IPv4 address of a socket of AF_INET6 the form that it has there.
func inFamily(v6 bool, a netip.AddrPort) (netip.AddrPort, error) {
	switch {
	case v6 && a.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()), nil
	case !v6 && !a.Addr().Is4():
		return a, fmt.Errorf("%v is no address of a socket of AF_INET", a)
	}
	return a, nil
}

// fastOpen is the length of the queue of TCP Fast Open.
func fastOpen(fd int) (int32, error) {
	v, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN)
	if err != nil && !quiet(err) {
		return 0, fmt.Errorf("TCP_FASTOPEN: %w", err)
	}
	return int32(v), nil
}

// foreign tells whether a socket is bound to an address that its host does not have: the program has allowed that for a while.
func foreign(fd int, v6 bool, local netip.AddrPort) (bool, error) {
	if ip := local.Addr().Unmap(); ip.IsUnspecified() || ip.IsLoopback() {
		return false, nil
	}
	probe, err := besides(fd, func() (int, error) {
		domain := unix.AF_INET
		if v6 {
			domain = unix.AF_INET6
		}
		return unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	})
	if err != nil {
		return false, fmt.Errorf("try the address %v: %w", local, err)
	}
	defer unix.Close(probe) //nolint:errcheck // only asked
	sa, err := sockaddr(fd, v6, netip.AddrPortFrom(local.Addr(), 0))
	if err != nil {
		return false, err
	}
	return errors.Is(unix.Bind(probe, sa), unix.EADDRNOTAVAIL), nil
}

// saveSyn reads the number of the SYN that is under way. The socket is in repair for a moment, which sends nothing.
func saveSyn(fd int, s *Idle) (err error) {
	if err := setRepair(fd, unix.TCP_REPAIR_ON); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP), setReuse(fd, s.ReuseAddr))
	}()
	if err := selectQueue(fd, sendQueue); err != nil {
		return err
	}
	next, err := getUint32(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	if err != nil {
		return fmt.Errorf("TCP_QUEUE_SEQ: %w", err)
	}
	s.SynSeq = next - 1
	return selectQueue(fd, noQueue)
}

// saveEnd finds out how the connection of a closed socket has ended.
func saveEnd(fd int, s *Idle, end *End) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP | unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	got := fds[0].Revents
	switch {
	case end != nil:
		remote, err := inFamily(s.V6, end.Remote)
		if err != nil {
			return err
		}
		s.Remote, s.Shutdown, s.Finished, s.Error = remote, end.Shutdown, end.Finished, end.Error
	case got&unix.POLLERR != 0:
		return &NotCarriedError{Socket: s.Name(), What: "an error that the program has not seen, which this kernel does not tell",
			Remedy: "a kernel with BTF and BPF tells"}
	case got&unix.POLLRDHUP != 0:
		s.Shutdown = 3
		if s.Local.Port() != 0 {
			s.Remote = netip.AddrPortFrom(s.Local.Addr(), s.Local.Port()^1) // it makes no difference any more
		}
	}
	if s.Remote.Port() != 0 && s.Local.Port() == 0 || s.Local.Addr().IsUnspecified() || s.Shutdown != 3 {
		s.Remote = unspecified(s.V6) // disconnected since, as by connect(2) to AF_UNSPEC
	}
	if s.Error != 0 && s.Error != errPipe && s.Error != errConnReset && s.Error != errConnRefused || s.Error != 0 && s.Remote.Port() == 0 {
		return &NotCarriedError{Socket: s.Name(), What: fmt.Sprintf("the error that the program has not seen yet (%v)", unix.Errno(s.Error))}
	}
	if s.Remote.Port() == 0 {
		return nil
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil || n == 0 {
		return err
	}
	buf := make([]byte, n+1)
	if n, _, err = unix.Recvfrom(fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT); err != nil {
		return fmt.Errorf("peek at what was received: %w", err)
	}
	s.RecvQueue = buf[:n:n]
	return nil
}

// RestoreIdle gives a fresh socket of the family and protocol the state, but for connecting: see Connect.
func RestoreIdle(f *os.File, s *Idle) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if err := control(f, func(fd int) error { return restoreIdle(fd, s) }); err != nil {
		return fmt.Errorf("restore socket %s: %w", s.Name(), err)
	}
	return nil
}

func restoreIdle(fd int, s *Idle) error {
	v6, protocol, err := mustBe(fd, true)
	if err != nil {
		return err
	}
	if v6 != s.V6 || (protocol == unix.IPPROTO_MPTCP) != s.MPTCP {
		return errors.New("the fresh socket is of another address family or protocol")
	}
	if err := s.Settings.restore(fd, both, v6); err != nil {
		return err
	}
	if err := setReuse(fd, s.ReuseAddr); err != nil {
		return err
	}
	if s.FastOpen > 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, int(s.FastOpen)); err != nil {
			return fmt.Errorf("set TCP_FASTOPEN to %d: %w", s.FastOpen, err)
		}
	}
	if err := bind(fd, v6, s.Local, s.Foreign, s.ReuseAddr); err != nil {
		return err
	}
	if s.connected() {
		if err := end(fd, s); err != nil {
			return err
		}
	} else if err := shutdown(fd, s.Shutdown); err != nil {
		return err
	}
	if err := restoreOptions(fd, s.Options, late, both, v6); err != nil {
		return err
	}
	if err := restoreLocked(fd, s.Buffers); err != nil {
		return err
	}
	if s.TCP == SynSent {
		if err := setSyn(fd, s); err != nil {
			return err
		}
	}
	return s.Settings.finish(fd, both, v6)
}

// shutdown shuts a socket that is not connected: that is an error, and the kernel does it all the same (inet_shutdown in
// net/ipv4/af_inet.c).
func shutdown(fd int, how uint8) error {
	if how == 0 {
		return nil
	}
	if err := unix.Shutdown(fd, int(how)-1); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("shut down: %w", err)
	}
	return nil
}

// bind binds a socket to where it was. Another socket of the tree may stand in the way that did not when the program bound it;
// so an address in use is bound by force (TCP_REPAIR), which those that are somebody else's survive: the kernel looks again when a
// socket listens or connects.
func bind(fd int, v6 bool, local netip.AddrPort, foreign, reuse bool) error {
	if local.Port() == 0 && local.Addr().IsUnspecified() {
		return nil
	}
	sa, err := sockaddr(fd, v6, local)
	if err != nil {
		return err
	}
	if local.Port() == 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	if foreign {
		free, err := getInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND)
		if err != nil {
			return fmt.Errorf("IP_FREEBIND: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
			return fmt.Errorf("set IP_FREEBIND: %w", err)
		}
		defer unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, free) //nolint:errcheck // it was its own value
	}
	err = unix.Bind(fd, sa)
	if errors.Is(err, unix.EADDRINUSE) && setRepair(fd, unix.TCP_REPAIR_ON) == nil {
		err = errors.Join(unix.Bind(fd, sa), setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP), setReuse(fd, reuse))
	}
	if err != nil {
		return fmt.Errorf("bind to %v (is the address configured, and the port free?): %w", local, err)
	}
	return nil
}

// restoreLocked sets the sizes of buffers that the program has set; the others follow the destination's own defaults.
func restoreLocked(fd int, b Buffers) error {
	if !b.LockKnown || b.Locked == 0 {
		return nil
	}
	if err := setBuffers(fd, b.Send, b.Recv); err != nil {
		return err
	}
	return unlockBuffers(fd, b)
}

// setSyn makes Connect begin with the number of the SYN that the peer may have seen: the kernel takes a number that a socket
// has already (tcp_v4_connect in net/ipv4/tcp_ipv4.c).
func setSyn(fd int, s *Idle) error {
	if err := setRepair(fd, unix.TCP_REPAIR_ON); err != nil {
		return err
	}
	err := selectQueue(fd, sendQueue)
	if err == nil {
		err = setUint32(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, s.SynSeq)
	}
	return errors.Join(err, selectQueue(fd, noQueue), setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP), setReuse(fd, s.ReuseAddr))
}

// Connect makes a restored socket connect again, as it did when it was saved; it does not wait. What the network answers at once is
// the program's to find out.
func Connect(f *os.File, s *Idle) error {
	err := control(f, func(fd int) error {
		sa, err := sockaddr(fd, s.V6, s.Remote)
		if err != nil {
			return err
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return fmt.Errorf("F_GETFL: %w", err)
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("set O_NONBLOCK: %w", err)
		}
		err = unix.Connect(fd, sa)
		if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.ECONNREFUSED) {
			err = nil
		}
		return errors.Join(err, unix.SetNonblock(fd, flags&unix.O_NONBLOCK != 0))
	})
	if err != nil {
		return fmt.Errorf("connect %s again: %w", s.Name(), err)
	}
	return nil
}

// end makes a bound socket one whose connection has ended: it gets a connection, with what was received, which then ends by a reset
// from its peer.
func end(fd int, s *Idle) error {
	st := &State{V6: s.V6, Local: s.Local, Remote: s.Remote, TCP: Established, RecvQueue: s.RecvQueue, RecvSeq: 1 << 20, SendSeq: 1 << 20,
		Window: Window{SndWl1: 1 << 20, SndWnd: 1000, MaxWindow: 1000, RcvWnd: 1000, RcvWup: 1 << 20}, MSSClamp: 536}
	if s.Error == errConnRefused {
		return refuse(fd, s, st)
	}
	if err := setRepair(fd, unix.TCP_REPAIR_ON); err != nil {
		return err
	}
	if err := growBuffers(fd, st); err != nil {
		return err
	}
	if err := join(fd, st); err != nil {
		return err
	}
	if err := writeQueue(fd, recvQueue, st.RecvQueue); err != nil {
		return fmt.Errorf("receive queue: %w", err)
	}
	if err := errors.Join(selectQueue(fd, noQueue), setWindow(fd, st.Window), setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP), setReuse(fd, s.ReuseAddr)); err != nil {
		return err
	}
	if s.Finished || s.Error == errPipe {
		if err := receive(fd, st, CloseWait, st.RecvSeq, flagFIN); err != nil {
			return err
		}
		st.TCP = CloseWait
	}
	if err := receive(fd, st, Closed, st.rcvNext(), flagRST); err != nil {
		return err
	}
	if s.Error == 0 { // the program has seen it
		_, err := getInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return err
	}
	return nil
}

// refuse makes a bound socket one whose connecting was answered by a reset. It connects to this host itself, which nobody notices: a
// filter keeps the kernel's own answer away.
func refuse(fd int, s *Idle, st *State) error {
	st.Remote = netip.AddrPortFrom(s.Local.Addr(), s.Local.Port()^1)
	remote, err := sockaddr(fd, s.V6, st.Remote)
	if err != nil {
		return err
	}
	deaf := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &deaf[0]}); err != nil {
		return fmt.Errorf("attach a socket filter: %w", err)
	}
	if err := setSyn(fd, &Idle{SynSeq: st.SendSeq - 1, Settings: s.Settings}); err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("set O_NONBLOCK: %w", err)
	}
	if err := unix.Connect(fd, remote); err == nil || !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect to %v: %w", st.Remote, err)
	}
	if err := errors.Join(unix.SetNonblock(fd, false), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)); err != nil {
		return fmt.Errorf("detach the socket filter: %w", err)
	}
	return receive(fd, st, Closed, 0, flagRST)
}
