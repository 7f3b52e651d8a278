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
	pairs := map[*sock.Diag][]sock.Pair{}
	add := func(desc *description, p sock.Pair) {
		d := r.diag.orFirst(desc)
		pairs[d] = append(pairs[d], p)
	}
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
				add(desc, sock.Pair{Local: i.Local, Remote: i.Remote})
				continue
			}
			p, err := connEnds(desc)
			if errors.Is(err, unix.ENOTCONN) {
				continue // it has ended meanwhile
			}
			if err != nil {
				return fmt.Errorf("%s: %w", desc.where(), err)
			}
			add(desc, p)
		}
	}
	if _, ok := pairs[r.diag.first]; !ok && r.requests != nil { // for those that wait to be accepted
		pairs[r.diag.first] = nil
	}
	for d, list := range pairs {
		if err := r.addLocked(d, list); err != nil {
			return err
		}
	}
	return nil
}

// addLocked locks connections of a network namespace. The lock of one that the root of the tree is not in goes with it when the tree
// has ended.
func (r *dump) addLocked(d *sock.Diag, pairs []sock.Pair) error {
	l := r.barriers[d]
	if l == nil {
		var err error
		if l, err = newConnLock(d); err != nil {
			return err
		}
		if r.barriers == nil {
			r.barriers = map[*sock.Diag]*connLock{}
		}
		r.barriers[d] = l
		if d == r.diag.first {
			r.blob(connLockBlob, []byte(l.Name()))
		}
	}
	return l.Add(pairs)
}

// connLock is a lock with the network namespace in which it is.
type connLock struct {
	*sock.Lock
	ns *os.File
}

func newConnLock(d *sock.Diag) (*connLock, error) {
	ns, err := d.Namespace()
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
	for _, l := range d.barriers {
		if err := sock.In(sock.Place{NetNS: l.ns}, func() error { return sock.Unlock(l.Name()) }); err != nil {
			return err
		}
	}
	return d.keepLock()
}

// keepLock lets go of the lock, which stays.
func (d *Dumper) keepLock() error {
	var errs []error
	for _, l := range d.barriers {
		errs = append(errs, l.Close(), l.ns.Close())
	}
	d.barriers = nil
	return errors.Join(errs...)
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
