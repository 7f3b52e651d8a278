//go:build linux

package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/sock"
)

// A connection from the tree to a daemon outside of it, such as journald or D-Bus, cannot be carried: half of it is in the daemon. The
// operator may say by the daemon's path what becomes of it (Options.ExternalUnix).
const (
	// Reconnect connects the socket anew at the destination, to the same path. What waits to be read is of the old connection, and gone.
	Reconnect = "reconnect"
	// HangUp makes it a socket whose peer has hung up. What waits can still be read.
	HangUp = "null"
)

// externalUnix is what becomes of a socket whose peer is outside of the tree; empty for all others and where nobody has said so.
func (d *Dumper) externalUnix(desc *description, u *sock.UnixInfo) string {
	if len(d.opts.ExternalUnix) == 0 || !u.HasPeer || u.Peer == 0 || d.unixSnapshot().bySocket(u.Peer) != nil {
		return ""
	}
	name, err := sock.UnixPeerName(desc.fd)
	if how := d.opts.ExternalUnix[UnixAddress(name)]; err == nil && len(name) > 0 && how != "" {
		return how
	}
	// One that was accepted from a client outside: the name is its own, and there is nobody to connect to.
	own, err := sock.UnixName(desc.fd)
	if err == nil && len(name) == 0 && len(own) > 0 && d.opts.ExternalUnix[UnixAddress(own)] == HangUp {
		return HangUp
	}
	return ""
}

// unixSnapshot is the one that is being looked at.
func (d *Dumper) unixSnapshot() *snapshot {
	if d.current != nil {
		return d.current
	}
	return d.held
}

// UnixAddress writes the name of a unix socket as an operator does: an abstract one begins with @.
func UnixAddress(name []byte) string {
	if len(name) > 0 && name[0] == 0 {
		return "@" + string(name[1:])
	}
	return string(name)
}

// outsidePeer refuses a socket whose peer is outside of the tree.
func outsidePeer(d *description, u *sock.UnixInfo) problem {
	name, _ := sock.UnixPeerName(d.fd) // only for the message, as the next
	own, _ := sock.UnixName(d.fd)
	how := map[bool]string{true: "stream", false: "datagram"}[u.Type != unix.SOCK_DGRAM]
	switch {
	case len(name) > 0:
		at := UnixAddress(name)
		return problem{reason: fmt.Sprintf("its peer is outside of the tree: %q (%s)", at, how),
			remedy: fmt.Sprintf("--external-unix %s=reconnect connects it anew at the destination, --external-unix %s=null lets the peer hang up", at, at)}
	case len(own) > 0:
		at := UnixAddress(own)
		return problem{reason: fmt.Sprintf("its peer is outside of the tree: socket %d, a client of %q", u.Peer, at),
			remedy: fmt.Sprintf("end the client, or let it hang up with --external-unix %s=null", at)}
	}
	return problem{reason: fmt.Sprintf("its peer is outside of the tree: socket %d, of a pair without names", u.Peer),
		remedy: "move it together with whoever holds the other end"}
}
