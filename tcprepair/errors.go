package tcprepair

import (
	"errors"
	"fmt"
)

// A NotCarriedError names state of a socket that this package cannot move to another kernel. The socket has
// not been changed by the call that returned it.
type NotCarriedError struct {
	Socket string // local and remote address
	What   string // the state that is not carried, such as "TCP state SYN_SENT" or "kernel TLS"
	Remedy string // what can be done about it; may be empty
}

func (e *NotCarriedError) Error() string {
	s := fmt.Sprintf("connection %s: %s is not carried", e.Socket, e.What)
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// A WaitingError tells that connections wait in a listener's queue, where the kernel gives no way to take them
// out or to put them in.
type WaitingError struct {
	Listener string // address of the listening socket
	Count    int    // connections that are established and not yet accepted
}

func (e *WaitingError) Error() string {
	return fmt.Sprintf("listener %s: %d connection(s) established but not yet accepted by the program are not carried; try again when it has accepted them",
		e.Listener, e.Count)
}

var (
	// ErrChanged: the connection moved on after its state was saved; the saved state must not be used.
	ErrChanged = errors.New("connection changed after its state was saved")
	// ErrNotInRepair: the socket is not in repair, so it is not one that this package holds.
	ErrNotInRepair = errors.New("socket is not in repair")
)
