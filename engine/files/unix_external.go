//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"migrate/engine/sock"
)

// A connection from the tree to a daemon outside of it, such as journald or D-Bus, cannot be carried: half of it is in the daemon. The
// operator may say by the daemon's path what becomes of it (Options.ExternalUnix).
const (
	// Reconnect connects the socket anew at the destination, to the same absolute path or abstract name, as the process that it belongs
	// to. What waits to be read is of the old connection, and gone.
	Reconnect = "reconnect"
	// HangUp makes it a socket whose peer has hung up. What waits can still be read.
	HangUp = "null"
)

// externalUnix is what becomes of a socket whose peer is outside of the tree; empty for all others and where nobody has said so.
func (d *Dumper) externalUnix(desc *description, u *sock.UnixInfo) string {
	if len(d.opts.ExternalUnix) == 0 || !u.HasPeer || u.Peer == 0 || d.current.bySocket(u.Peer) != nil {
		return ""
	}
	name, err := sock.UnixPeerName(desc.fd)
	if err == nil && len(name) > 0 {
		switch how := d.opts.ExternalUnix[UnixAddress(name)]; {
		case how == HangUp, how == Reconnect && reachable(name):
			return how
		}
	}
	// One that was accepted from a client outside: the name is its own, and there is nobody to connect to.
	own, err := sock.UnixName(desc.fd)
	if err == nil && len(name) == 0 && len(own) > 0 && d.opts.ExternalUnix[UnixAddress(own)] == HangUp {
		return HangUp
	}
	return ""
}

// reachable tells whether a name means the same wherever a process stands: an absolute path or an abstract name.
func reachable(name []byte) bool { return name[0] == '/' || name[0] == 0 }

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
	case len(name) > 0 && !reachable(name):
		return problem{reason: fmt.Sprintf("its peer is outside of the tree: %q (%s)", name, how),
			remedy: fmt.Sprintf("--external-unix %s=null lets the peer hang up; a relative path cannot be connected anew", name)}
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

// connectAnew connects a socket to a name outside of the tree. The daemon of a stream asks the kernel who its client is (SO_PEERCRED in
// unix(7)), so the call is made in the process itself, with its user and groups.
func (p *unixPlan) connectAnew(ctx context.Context, s *unixSock, name []byte) error {
	place := p.r.placeOf(s.entry, "")
	if !s.stream() || p.r.env.Caller == nil {
		return sock.In(place, func() error { return sock.ConnectUnix(s.fd, name) })
	}
	dir := ""
	if name[0] != 0 { // the process has not changed its root directory yet
		var at string
		err := sock.In(place, func() (err error) {
			at, err = filepath.EvalSymlinks(string(name))
			return err
		})
		if err != nil {
			return err
		}
		at = path.Join("/", p.r.chroot(p.r.homes[s.GetId()].vpid), at)
		dir, name = path.Dir(at), []byte(path.Base(at))
	}
	a, err := p.itself(s.entry)
	if err != nil {
		return err
	}
	// A daemon that does not accept must not hold up the restore.
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return fmt.Errorf("O_NONBLOCK: %w", err)
	}
	err = a.connect(ctx, s.fd, dir, name)
	if errors.Is(err, unix.EAGAIN) {
		err = fmt.Errorf("its queue of connections is full: %w", err)
	}
	return errors.Join(err, unix.SetNonblock(s.fd, false))
}
