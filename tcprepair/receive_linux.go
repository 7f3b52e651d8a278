package tcprepair

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// receive makes the socket receive one bare segment from its peer: the FIN that has no other way in, or the
// acknowledgement of ours. A raw socket in the same namespace sends it over the loopback interface, where it arrives with
// the route already chosen and so passes no check of its source. It returns when the socket is in the wanted state.
func receive(fd int, st *State, want ConnState, seq uint32, flags byte) error {
	what := fmt.Sprintf("receive the segment that leads to %v", want)
	raw, err := besides(fd, func() (int, error) { return openRaw(st.Local.Addr().Unmap().Is6()) })
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer unix.Close(raw) //nolint:errcheck // nothing was written that could be lost
	to, err := rawAddress(fd, st)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := unix.Sendto(raw, st.packet(seq, flags, nil), 0, to); err != nil {
		return fmt.Errorf("%s: send over the loopback interface (is lo up?): %w", what, err)
	}
	// Mostly the segment has been received before sendto returns. If it is left to ksoftirqd, there is no event for the
	// acknowledgement, so this looks again in short steps.
	for end := time.Now().Add(time.Second); ; time.Sleep(20 * time.Microsecond) {
		i, err := tcpInfo(fd)
		if err != nil {
			return err
		}
		if i.state == want {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: the socket is in %v still", what, i.state)
		}
	}
}

// A Peer speaks to a socket of a network namespace in the name of its peer: by a raw socket over the loopback interface. What it sends
// carries Mark.
type Peer struct {
	raw int
	to  unix.Sockaddr
	st  *State
}

// OpenPeer opens a Peer for a connection that a listener is to take. st has the numbers at which the peer begins.
func OpenPeer(listener *os.File, st *State) (*Peer, error) {
	p := &Peer{st: st}
	err := control(listener, func(fd int) (err error) {
		if p.to, err = rawAddress(fd, st); err != nil {
			return err
		}
		p.raw, err = besides(fd, func() (int, error) { return openRaw(st.Local.Addr().Unmap().Is6()) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("speak as %v: %w", st.Remote, err)
	}
	return p, nil
}

// Send sends one segment that acknowledges all that was sent, with data from the sequence number on, and the end of the stream after it
// if fin is set.
func (p *Peer) Send(seq uint32, data []byte, fin bool) error {
	var flags byte
	if fin {
		flags = flagFIN
	}
	if err := unix.Sendto(p.raw, p.st.packet(seq, flags, data), 0, p.to); err != nil {
		return fmt.Errorf("send to %v as %v over the loopback interface (is lo up?): %w", p.st.Local, p.st.Remote, err)
	}
	return nil
}

// Close closes it.
func (p *Peer) Close() error { return unix.Close(p.raw) }

// WithRoom runs fn while connections that come to a listener have room for a receive queue of n bytes, beyond what they begin with.
func WithRoom(listener *os.File, n int, fn func() error) error {
	const enough = 16 << 10 // for that the usual window will do
	if n <= enough {
		return fn()
	}
	return control(listener, func(fd int) (err error) {
		var s Settings
		if err := s.saveBuffers(fd); err != nil {
			return err
		}
		st := &State{Settings: s, RecvQueue: make([]byte, n)}
		st.Buffers.Send = 0
		if err := growBuffers(fd, st); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, setBuffers(fd, s.Buffers.Send, s.Buffers.Recv), unlockBuffers(fd, s.Buffers))
		}()
		if err := unlockBuffers(fd, s.Buffers); err != nil {
			return err
		}
		return fn()
	})
}

// rawAddress is where a raw socket sends to reach the local end.
func rawAddress(fd int, st *State) (unix.Sockaddr, error) {
	if ip := st.Local.Addr().Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4()}, nil
	}
	to, err := sockaddr(fd, true, st.Local)
	if sa, ok := to.(*unix.SockaddrInet6); ok {
		sa.Port = 0 // of a raw socket it is the protocol
	}
	return to, err
}

// besides opens another socket in the network namespace of the socket fd.
func besides(fd int, open func() (int, error)) (int, error) {
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return -1, fmt.Errorf("SIOCGSKNS: %w", err)
	}
	defer unix.Close(ns) //nolint:errcheck // a reference only
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread ends with the goroutine if it cannot be brought home.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- result{-1, err}
			runtime.UnlockOSThread()
			return
		}
		defer home.Close() //nolint:errcheck // a reference only
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- result{-1, fmt.Errorf("enter the socket's network namespace: %w", err)}
			runtime.UnlockOSThread()
			return
		}
		s, err := open()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- result{s, err}
	}()
	r := <-done
	return r.fd, r.err
}

// Mark is the mark (SO_MARK) of segments by which a socket is restored, so that rules that keep the peer's away can let them pass.
const Mark = 0x6d696773

func openRaw(v6 bool) (int, error) {
	family, level, opt := unix.AF_INET, unix.IPPROTO_IP, unix.IP_HDRINCL
	if v6 {
		family, level, opt = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL
	}
	s, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("raw socket: %w", err)
	}
	if err := unix.SetsockoptInt(s, level, opt, 1); err != nil {
		return -1, errors.Join(fmt.Errorf("raw socket: header included: %w", err), unix.Close(s))
	}
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, Mark); err != nil {
		return -1, errors.Join(fmt.Errorf("raw socket: mark: %w", err), unix.Close(s))
	}
	return s, nil
}
