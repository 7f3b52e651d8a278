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
	// Foreign: the address was not one of the host, because the program had set IP_FREEBIND when it bound the socket.
	Foreign bool
	// Backlog is what the program gave to listen(2), as far as the kernel's limit let it.
	Backlog int32
	// FastOpen is the length of the queue of TCP Fast Open, 0 if off.
	FastOpen int32
	Settings
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
	l.Settings.validate(bad)
	return errors.Join(errs...)
}
