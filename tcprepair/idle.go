package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"
)

// Idle is a socket without a connection that could go on: one that was never connected, one that is connecting (SYN_SENT), and one
// whose connection has ended and that the program still holds.
type Idle struct {
	V6    bool
	MPTCP bool
	Local netip.AddrPort // port 0: it has none; the address may be the unspecified one
	// Foreign: see Listener.
	Foreign bool
	// Remote is where it is connecting, or was connected; its port is 0 if neither.
	Remote   netip.AddrPort
	TCP      ConnState // Closed or SynSent
	SynSeq   uint32    // connecting: the sequence number of the SYN
	FastOpen int32

	// Of a connection that has ended:
	Shutdown  uint8  // bit 0: nothing more will be received, bit 1: nothing can be sent (sk_shutdown of the kernel)
	Finished  bool   // the peer had ended its direction in order before
	Error     int32  // error that the program has not seen yet (SO_ERROR), 0 for none
	RecvQueue []byte // received and not read yet
	Settings
}

// Errors of ended connections that the kernel can be brought to, by numbers of Linux.
const (
	errPipe        = 32
	errConnReset   = 104
	errConnRefused = 111
)

// Validate checks an Idle from outside. The error names the field.
func (s *Idle) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("TCP socket %v-%v: field %s: %s", s.Local, s.Remote, field, fmt.Sprintf(format, args...)))
	}
	for _, a := range []netip.AddrPort{s.Local, s.Remote} {
		ip := a.Addr()
		if !ip.IsValid() || ip.Is4() == s.V6 || !validName(ip.Zone()) {
			bad("Local, Remote", "%v is no address of its family", a)
		}
	}
	ended := s.Shutdown != 0 || s.Error != 0 || len(s.RecvQueue) > 0
	switch {
	case s.TCP != Closed && s.TCP != SynSent:
		bad("TCP", "state %v", s.TCP)
	case s.TCP == SynSent && (ended || s.Finished || s.MPTCP || s.Remote.Port() == 0 || s.Local.Port() == 0):
		bad("TCP", "a socket that is connecting, with ends %v and %v, shut down %d, error %d", s.Local, s.Remote, s.Shutdown, s.Error)
	case s.connected() && (s.MPTCP || s.Local.Port() == 0):
		bad("Remote", "a connection that has ended, from %v", s.Local)
	case !s.connected() && (s.Error != 0 || len(s.RecvQueue) > 0):
		bad("Error, RecvQueue", "%d and %d bytes of a socket that was never connected", s.Error, len(s.RecvQueue))
	case s.Error != 0 && s.Error != errPipe && s.Error != errConnReset && s.Error != errConnRefused:
		bad("Error", "%d", s.Error)
	}
	if s.Shutdown > 3 || len(s.RecvQueue) > MaxQueue || s.FastOpen < 0 {
		bad("Shutdown, RecvQueue, FastOpen", "%d, %d bytes and %d", s.Shutdown, len(s.RecvQueue), s.FastOpen)
	}
	s.Settings.validate(bad)
	return errors.Join(errs...)
}

// connected tells whether it had a connection, which has ended.
func (s *Idle) connected() bool { return s.TCP == Closed && s.Remote.Port() != 0 }

// Name is what the socket is, for messages.
func (s *Idle) Name() string {
	if s.Remote.Port() != 0 {
		return s.Local.String() + "-" + s.Remote.String()
	}
	return s.Local.String()
}
