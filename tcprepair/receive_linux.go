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
	var to unix.Sockaddr
	if ip := st.Local.Addr().Unmap(); ip.Is4() {
		to = &unix.SockaddrInet4{Addr: ip.As4()}
	} else if to, err = sockaddr(fd, true, st.Local); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if sa, ok := to.(*unix.SockaddrInet6); ok {
		sa.Port = 0 // of a raw socket it is the protocol
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
