// Package tcprepair takes one TCP connection out of one kernel and puts it into another, by the socket option
// TCP_REPAIR (Linux 4.18 and later for what is used here; tcp(7) does not describe it, net/ipv4/tcp.c does).
//
// The order of calls is held by types:
//
//	source:       Pause(file) -> *Paused -- Save --> *State
//	                             *Paused -- Resume: the connection goes on here
//	                             *Paused -- Drop: it ends here without a packet
//	destination:  Restore(fresh socket, *State) -> *Held -- Release: the connection goes on here
//	                                               *Held -- Drop: it ends here without a packet
//
// A socket in repair sends nothing of its own accord when its last descriptor is closed. It is not deaf: the
// kernel still queues and acknowledges what arrives, so frames must be kept away from it before Save
// (package agent/port), and Paused.Unchanged tells whether something slipped through all the same.
// Nor is it mute: timers of the kernel may retransmit while it is in repair, so what it sends must be kept from
// leaving once its state has been saved.
//
// Listening sockets have no connection to carry: SaveListener and RestoreListener. Connections that are on their way to one are not
// carried; Waiting and HalfOpen count them, so that a mover can wait until there are none.
//
// Nothing is dropped in silence. State that is not carried yields a *NotCarriedError that names it; the few
// things that no interface of the kernel can put back (negotiated ECN, the congestion control's own memory,
// out-of-order segments, which the peer sends again as the standard allows) are listed by State.Losses. One thing cannot be seen
// through the socket: the keys of TCP_MD5SIG. Signed tells of them, and is to be asked beforehand.
//
// The package takes no locks and starts no goroutines that outlive a call. Every call works on one socket; many
// sockets may be worked on at once. A failed Restore leaves a socket that the caller closes: it is in repair
// by then, or not yet connected, and closing it sends nothing. State and its checks compile on every system.
package tcprepair
