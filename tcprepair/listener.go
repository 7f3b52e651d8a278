package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"
)

// Listener is a listening socket: all that another kernel needs to listen as it did.
type Listener struct {
	V6    bool
	MPTCP bool           // of the protocol MPTCP, as Go's are: the fresh socket must be one too
	Local netip.AddrPort // the address may be the unspecified one
	// Backlog is what the program gave to listen(2), as far as the kernel's limit let it.
	Backlog int32
	// FastOpen is the length of the queue of TCP Fast Open, 0 if off.
	FastOpen   int32
	ReuseAddr  bool
	Buffers    Buffers
	Linger     Linger
	Congestion string
	Device     string
	Options    map[string]int64
}

// Validate checks a Listener from outside. The error names the field.
func (l *Listener) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("TCP listener %v: field %s: %s", l.Local, field, fmt.Sprintf(format, args...)))
	}
	ip := l.Local.Addr()
	if !ip.IsValid() || ip.Is4() == l.V6 || l.Local.Port() == 0 || !validName(ip.Zone()) || ip.Unmap().IsMulticast() {
		bad("Local", "not an address to listen on")
	}
	if l.Backlog < 0 || l.FastOpen < 0 {
		bad("Backlog, FastOpen", "%d and %d", l.Backlog, l.FastOpen)
	}
	if l.Linger.Seconds < 0 {
		bad("Linger", "%d seconds", l.Linger.Seconds)
	}
	if l.Buffers.Send >= 1<<31 || l.Buffers.Recv >= 1<<31 || l.Buffers.Locked > 3 {
		bad("Buffers", "%+v", l.Buffers)
	}
	if !validName(l.Congestion) || !validName(l.Device) {
		bad("Congestion, Device", "%.40q and %.40q", l.Congestion, l.Device)
	}
	if why := optionsProblem(l.Options); why != "" {
		bad("Options", "%s", why)
	}
	return errors.Join(errs...)
}
