package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"
)

// ConnState is a state of the TCP state machine, by the kernel's numbers (include/net/tcp_states.h).
type ConnState uint8

// The states. Those marked with a star are carried.
const (
	Established ConnState = 1  // *
	SynSent     ConnState = 2  //
	SynRecv     ConnState = 3  //
	FinWait1    ConnState = 4  // * we closed our direction, the peer has not acknowledged it
	FinWait2    ConnState = 5  // * we closed our direction, the peer knows
	TimeWait    ConnState = 6  //
	Closed      ConnState = 7  //
	CloseWait   ConnState = 8  // * the peer closed its direction
	LastAck     ConnState = 9  // * both closed, the peer first; ours is not acknowledged
	Listen      ConnState = 10 // see Listener
	Closing     ConnState = 11 // * both closed at once; ours is not acknowledged
	NewSynRecv  ConnState = 12 //
)

var stateNames = [...]string{"0", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
	"CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"}

func (s ConnState) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("TCP state %d", uint8(s))
}

// carried tells whether a connection in this state can be saved and restored.
func (s ConnState) carried() bool {
	switch s {
	case Established, CloseWait, FinWait1, FinWait2, LastAck, Closing:
		return true
	}
	return false
}

// peerClosed tells whether the peer's FIN has been received in order: it takes one sequence number.
func (s ConnState) peerClosed() bool { return s == CloseWait || s == LastAck || s == Closing }

// weClosed tells whether a FIN of ours stands at the end of what we send: it takes one sequence number.
func (s ConnState) weClosed() bool {
	return s == FinWait1 || s == FinWait2 || s == LastAck || s == Closing
}

// Limits of a State from outside. The kernel's own limit of a window is 1 GiB (RFC 7323).
const (
	MaxQueue   = 1 << 30 // bytes in one queue
	maxScale   = 14      // RFC 7323, section 2.3
	maxOptions = 128
	maxName    = 16 // TCP_CA_NAME_MAX and IFNAMSIZ, with the final NUL
)

// Window is the sliding window of a connection, as TCP_REPAIR_WINDOW gives it (struct tcp_repair_window in
// include/uapi/linux/tcp.h; the names are the kernel's). Windows are bytes, the others sequence numbers.
type Window struct {
	SndWl1    uint32 // sequence number of the segment that last changed SndWnd
	SndWnd    uint32 // what the peer lets us send
	MaxWindow uint32 // the largest SndWnd ever
	RcvWnd    uint32 // what we let the peer send
	RcvWup    uint32 // what was received when we last acknowledged
}

// Urgent says what became of the urgent byte that stands in the receive queue (MSG_OOB of recv(2)).
type Urgent uint8

// The program reads the byte by MSG_OOB or, with SO_OOBINLINE, in its place.
const (
	NotUrgent     Urgent = iota
	UrgentWaits          // it was not read
	UrgentWasRead        // it was read by MSG_OOB, and is passed over in the queue
)

// Linger is SO_LINGER (socket(7)).
type Linger struct {
	On      bool
	Seconds int32
}

// Buffers are the limits of a socket's queues, in bytes as getsockopt gives them (twice what a program set).
type Buffers struct {
	Send, Recv uint32
	// Locked is SO_BUF_LOCK: bit 0 the program has set Send, bit 1 it has set Recv. The kernel adjusts only
	// what is not locked. LockKnown is false where the kernel has no SO_BUF_LOCK (before 5.15).
	Locked    uint32
	LockKnown bool
}

// State is one TCP connection at one instant: all that another kernel needs to go on with it. Numbers of
// sequences wrap. The zero value is not valid.
type State struct {
	// V6 tells that the socket is of AF_INET6. Its addresses may still be IPv4 ones, mapped (::ffff:a.b.c.d).
	V6            bool
	Local, Remote netip.AddrPort // a link-local address has its interface's name as its zone
	TCP           ConnState
	// ReadShutdown: the program has shut its reading side while the peer's was open.
	ReadShutdown bool

	RecvQueue []byte // received in order and not read yet
	Urgent    Urgent // whether there is a mark of urgent data in RecvQueue
	UrgentAt  uint32 // where in RecvQueue the urgent byte is
	RecvSeq   uint32 // number of the next byte after RecvQueue (the peer's FIN, if received, has this number)
	SendQueue []byte // written by the program, not acknowledged by the peer
	SendSeq   uint32 // number of the next byte after SendQueue (our FIN, if any, has this number)
	Unsent    uint32 // how many bytes at the end of SendQueue have never been sent
	// FinUnsent: our FIN (see TCP) has not been sent either.
	FinUnsent bool
	Window    Window

	MSSClamp             uint32 // what the peer announced, bytes
	WindowScaling        bool
	SendScale, RecvScale uint8
	SACK                 bool
	ECN                  bool // negotiated; see Losses
	Timestamps           bool
	Timestamp            uint32 // our clock of the timestamp option at the instant of Save
	MicroTimestamps      bool   // that clock counts microseconds (a route's feature, Linux 6.7)

	Settings
}

// Name is the connection's addresses, for messages.
func (s *State) Name() string { return s.Local.String() + "-" + s.Remote.String() }

// Unacknowledged is how many bytes of the peer (and its FIN) have been received and not acknowledged yet. If
// it is not zero, the restored socket must be made to acknowledge (AckProbe), or the peer may wait for
// its retransmission time-out.
func (s *State) Unacknowledged() uint32 {
	n := s.RecvSeq - s.Window.RcvWup
	if s.TCP.peerClosed() {
		n++
	}
	return n
}

// Losses lists what of this connection another kernel cannot be told. None of it changes what the
// programs at both ends see; it can cost speed for a while.
func (s *State) Losses() []string {
	out := []string{
		"the congestion control's measurements start anew",
		"segments that arrived out of order are sent again by the peer",
	}
	if s.ECN {
		out = append(out, "explicit congestion notification ends")
	}
	return out
}

// unacked is the number of the first byte that the peer has not acknowledged.
func (s *State) unacked() uint32 { return s.SendSeq - uint32(len(s.SendQueue)) }

// sndNext is the number after the last one sent, our FIN included.
func (s *State) sndNext() uint32 {
	n := s.SendSeq - s.Unsent
	if s.TCP.weClosed() && !s.FinUnsent {
		n++
	}
	return n
}

// rcvNext is the number after the last one received, the peer's FIN included.
func (s *State) rcvNext() uint32 {
	if s.TCP.peerClosed() {
		return s.RecvSeq + 1
	}
	return s.RecvSeq
}

// Validate checks a State from outside: every length bounded and every value one that a kernel could have had.
// The error names the field.
func (s *State) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("TCP connection %s: field %s: %s", s.Name(), field, fmt.Sprintf(format, args...)))
	}
	if !s.TCP.carried() {
		bad("TCP", "state %v cannot be restored", s.TCP)
	}
	if why := pairProblem(s.V6, s.Local, s.Remote); why != "" {
		bad("Local, Remote", "%s", why)
	}
	if len(s.RecvQueue) > MaxQueue || len(s.SendQueue) > MaxQueue {
		bad("RecvQueue, SendQueue", "%d and %d bytes, at most %d each", len(s.RecvQueue), len(s.SendQueue), MaxQueue)
	}
	if uint64(s.Unsent) > uint64(len(s.SendQueue)) {
		bad("Unsent", "%d bytes of a queue of %d", s.Unsent, len(s.SendQueue))
	}
	if s.FinUnsent && (!s.TCP.weClosed() || s.TCP == FinWait2) {
		bad("FinUnsent", "in state %v", s.TCP)
	}
	if s.Unsent > 0 && s.TCP.weClosed() && !s.FinUnsent {
		bad("FinUnsent", "the end was sent before %d bytes of data", s.Unsent)
	}
	if s.TCP == FinWait2 && len(s.SendQueue) > 0 {
		bad("SendQueue", "%d bytes in state %v", len(s.SendQueue), s.TCP)
	}
	if s.Urgent > UrgentWasRead || s.Urgent != NotUrgent && uint64(s.UrgentAt) >= uint64(len(s.RecvQueue)) || s.Urgent == NotUrgent && s.UrgentAt != 0 {
		bad("Urgent, UrgentAt", "%d at %d of %d bytes", s.Urgent, s.UrgentAt, len(s.RecvQueue))
	}
	if s.ReadShutdown && s.TCP.peerClosed() {
		bad("ReadShutdown", "in state %v", s.TCP)
	}
	s.validateWindow(bad)
	s.Settings.validate(bad)
	return errors.Join(errs...)
}

func (s *State) validateWindow(bad func(field, format string, args ...any)) {
	if s.MSSClamp == 0 || s.MSSClamp > 65535 {
		bad("MSSClamp", "%d", s.MSSClamp)
	}
	if s.SendScale > maxScale || s.RecvScale > maxScale {
		bad("SendScale, RecvScale", "%d and %d, at most %d", s.SendScale, s.RecvScale, maxScale)
	}
	if !s.WindowScaling && (s.SendScale != 0 || s.RecvScale != 0) {
		bad("WindowScaling", "scales %d and %d without it", s.SendScale, s.RecvScale)
	}
	if s.MicroTimestamps && !s.Timestamps {
		bad("MicroTimestamps", "without timestamps")
	}
	// The kernel's own conditions: tcp_repair_set_window in net/ipv4/tcp.c.
	w, next := s.Window, s.rcvNext()
	if w.MaxWindow < w.SndWnd {
		bad("Window.MaxWindow", "%d is less than SndWnd %d", w.MaxWindow, w.SndWnd)
	}
	if after(w.SndWl1, next+w.RcvWnd) {
		bad("Window.SndWl1", "%d is beyond the receive window", w.SndWl1)
	}
	if after(w.RcvWup, next) {
		bad("Window.RcvWup", "%d is after what was received, %d", w.RcvWup, next)
	}
	if w.SndWnd > MaxQueue || w.RcvWnd > MaxQueue || w.MaxWindow > MaxQueue {
		bad("Window", "a window larger than %d bytes", MaxQueue)
	}
}

// after compares sequence numbers as the kernel does (include/net/tcp.h).
func after(a, b uint32) bool { return int32(b-a) < 0 }

// validName accepts names of interfaces and of congestion controls, and the empty one.
func validName(s string) bool {
	if len(s) >= maxName {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' || c == '/' {
			return false
		}
	}
	return true
}

// pairProblem says what is wrong with a connection's addresses, or nothing.
func pairProblem(v6 bool, local, remote netip.AddrPort) string {
	for _, a := range []netip.AddrPort{local, remote} {
		ip := a.Addr()
		switch {
		case !ip.IsValid() || a.Port() == 0:
			return fmt.Sprintf("%v is not the address of an end", a)
		case ip.Is4() == v6:
			return fmt.Sprintf("%v is of another family than the socket", a)
		case ip.Unmap().IsUnspecified() || ip.Unmap().IsMulticast():
			return fmt.Sprintf("%v cannot be connected", a)
		case !validName(ip.Zone()):
			return fmt.Sprintf("%.60q has no valid zone", a.String())
		}
	}
	if local.Addr().Is4In6() != remote.Addr().Is4In6() {
		return fmt.Sprintf("%v and %v are of different families", local, remote)
	}
	return ""
}
