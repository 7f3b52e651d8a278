//go:build linux

package files

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/sock"
	"migrate/tcprepair"
)

// connLockBlob holds the name of the lock of a checkpoint's connections (sock.Lock).
const connLockBlob = "tcp-lock"

// lockConnections locks the tree's connections where no gate of package agent/port stands before it: what arrives after their
// state was read would be acknowledged and lost, and once the tree is gone the kernel would answer their peers with a reset. The lock
// stays when the tree is destroyed, until the checkpoint is restored.
func (r *dump) lockConnections() error {
	if !r.opts.LockConnections {
		return nil
	}
	var pairs []sock.Pair
	for _, desc := range r.snap.list {
		if desc.kind != kindTCP {
			continue
		}
		state, err := tcpState(desc)
		if err != nil {
			return fmt.Errorf("%s: %w", desc.where(), err)
		}
		switch state {
		case tcprepair.Closed, tcprepair.Listen:
		default:
			if i := r.tcpInfo[uint32(desc.stat.Ino)]; i.Remote.Port() != 0 {
				pairs = append(pairs, sock.Pair{Local: i.Local, Remote: i.Remote})
				continue
			}
			p, err := connEnds(desc)
			if errors.Is(err, unix.ENOTCONN) {
				continue // it has ended meanwhile
			}
			if err != nil {
				return fmt.Errorf("%s: %w", desc.where(), err)
			}
			pairs = append(pairs, p)
		}
	}
	if len(pairs) == 0 && r.requests == nil { // nor any that waits to be accepted
		return nil
	}
	l, err := r.newLock()
	if err != nil {
		return err
	}
	r.lock = l
	r.blob(connLockBlob, []byte(l.Name()))
	return l.Add(pairs)
}

// connLock is a lock with the network namespace in which it is.
type connLock struct {
	*sock.Lock
	ns *os.File
}

func (d *Dumper) newLock() (*connLock, error) {
	ns, err := d.diag.Namespace()
	if err != nil {
		return nil, err
	}
	l := &connLock{ns: ns}
	err = sock.In(sock.Place{NetNS: ns}, func() (err error) {
		l.Lock, err = sock.NewLock()
		return err
	})
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return l, nil
}

// unlock lets the connections' segments pass again.
func (d *Dumper) unlock() error {
	if d.lock == nil {
		return nil
	}
	if err := sock.In(sock.Place{NetNS: d.lock.ns}, func() error { return sock.Unlock(d.lock.Name()) }); err != nil {
		return err
	}
	return d.keepLock()
}

// keepLock lets go of the lock, which stays.
func (d *Dumper) keepLock() error {
	if d.lock == nil {
		return nil
	}
	err := errors.Join(d.lock.Close(), d.lock.ns.Close())
	d.lock = nil
	return err
}

// unlock removes the lock that the dump has left, before the connections leave repair.
func (r *Restorer) unlock() error {
	name, ok := r.cp.Blobs[connLockBlob]
	if !ok {
		return nil
	}
	return sock.In(sock.Place{NetNS: r.env.NetNS}, func() error { return sock.Unlock(string(name)) })
}

// connEnds are the two ends of a connection.
func connEnds(d *description) (p sock.Pair, err error) {
	if p.Local, p.Remote, err = tcprepair.Ends(d.osFile()); err != nil {
		return p, fmt.Errorf("ends of the connection: %w", err)
	}
	return p, nil
}
