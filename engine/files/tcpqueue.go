//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"

	"migrate/engine/bpf"
	"migrate/engine/sock"
	"migrate/tcprepair"
)

// Connections that wait in a listener's queue to be accepted can be looked at only by accepting them. So the dumper accepts them
// in the program's place, reads them, and ends its ends of them in repair, without a packet; they are put into the queue again at the
// destination, or here when the program is to go on.

func queueBlob(id uint32) string { return fmt.Sprintf("queue-%d", id) }

// queue is what the dumper has accepted in the place of one listener.
type queue struct {
	listener *description
	conns    []queued
}

// queued is one connection of a queue.
type queued struct {
	file   *os.File
	paused *tcprepair.Paused
	sock.Waiting
}

// openRequests prepares for the queues that are not empty. Without requests those are refused as busy.
func (r *dump) openRequests() {
	for _, desc := range r.snap.list {
		if desc.kind != kindTCP {
			continue
		}
		if state, err := tcpState(desc); err != nil || state != tcprepair.Listen {
			continue
		}
		if n, err := tcprepair.Waiting(desc.osFile()); err == nil && n > 0 {
			r.requests, _ = bpf.OpenRequests()
			return
		}
	}
}

// dumpQueue takes the connections out of a listener's queue. If one of them has ended already, which could not be put back, it changes
// nothing and returns the error given.
func (r *dump) dumpQueue(d *description, local netip.AddrPort, waits error) error {
	r.queueMu.Lock()
	defer r.queueMu.Unlock()
	count, err := tcprepair.Waiting(d.osFile())
	if err != nil {
		return err
	}
	diag := r.diag.of(d)
	if diag == nil {
		return fmt.Errorf("it is a socket of another network namespace: %w", ErrNotCarried)
	}
	list, err := diag.TCP(tcprepair.Established, tcprepair.CloseWait)
	if err != nil {
		return err
	}
	alive := 0
	for _, i := range list {
		if i.Ino == 0 && i.Local.Port() == local.Port() && (local.Addr().IsUnspecified() || i.Local.Addr().Unmap() == local.Addr().Unmap().WithZone("")) {
			alive++
		}
	}
	if alive != count {
		return waits
	}
	q := &queue{listener: d}
	r.queues = append(r.queues, q)
	fds, err := sock.Accept(d.fd)
	var pairs []sock.Pair
	for _, f := range fds {
		q.conns = append(q.conns, queued{file: f})
		if l, p, e := tcprepair.Ends(f); e == nil {
			pairs = append(pairs, sock.Pair{Local: l, Remote: p})
		}
	}
	if err == nil && r.opts.LockConnections {
		err = r.addLocked(r.diag.orFirst(d), pairs)
	}
	if err != nil {
		return err
	}
	return r.saveQueue(d, q)
}

// saveQueue reads the connections of a queue.
func (r *dump) saveQueue(d *description, q *queue) error {
	kernel, err := bpf.Sockets()
	if err != nil {
		return err
	}
	var list []sock.Waiting
	for i := range q.conns {
		c := &q.conns[i]
		fd, err := rawFD(c.file)
		if err != nil {
			return err
		}
		if c.paused, err = tcprepair.Pause(c.file); err != nil {
			return fmt.Errorf("a connection that waits to be accepted: %w", err)
		}
		c.PeerTimestamp = kernel[fd].PeerTimestamp
		if c.State, err = c.paused.Save(); err != nil {
			return fmt.Errorf("a connection that waits to be accepted: %w", notCarried(err))
		}
		list = append(list, c.Waiting)
	}
	r.blob(queueBlob(d.id), sock.EncodeWaiting(list))
	return nil
}

// requeue puts what was accepted into the queues again, before the tree runs on.
func (d *Dumper) requeue(ctx context.Context) error {
	if len(d.queues) == 0 {
		return nil
	}
	var errs []error
	for _, q := range d.queues {
		ns, err := d.diag.orFirst(q.listener).Namespace()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var list []sock.Waiting
		for _, c := range q.conns {
			if c.State == nil {
				errs = append(errs, fmt.Errorf("%s: a connection that waited to be accepted is lost: it could not be read", q.listener.where()))
			} else {
				list = append(list, c.Waiting)
			}
			errs = append(errs, c.file.Close())
		}
		errs = append(errs, sock.In(sock.Place{NetNS: ns}, func() error {
			return sock.Requeue(ctx, d.requests, q.listener.osFile(), list)
		}), ns.Close())
	}
	d.queues = nil
	return errors.Join(errs...)
}

// dropQueues ends the dumper's ends of them without a packet.
func (d *Dumper) dropQueues() error {
	var errs []error
	for _, q := range d.queues {
		for _, c := range q.conns {
			errs = append(errs, c.file.Close())
		}
	}
	d.queues = nil
	return errors.Join(errs...)
}

// settleTCP fills the queue of a listener, when all sockets are in place.
func settleTCP(r *Restorer, e *fdinfo.FileEntry) error {
	blob, ok := r.cp.Blobs[queueBlob(e.GetId())]
	if !ok || tcprepair.ConnState(e.Isk.GetState()) != tcprepair.Listen {
		return nil
	}
	list, err := sock.DecodeWaiting(blob)
	if err != nil {
		return fmt.Errorf("blob %s: %w", queueBlob(e.GetId()), err)
	}
	requests, err := bpf.OpenRequests()
	if err != nil {
		return err
	}
	for _, q := range list {
		r.queued = append(r.queued, q.State)
	}
	return sock.In(sock.Place{NetNS: r.netNS(e.GetId())}, func() error {
		return sock.Requeue(context.Background(), requests, r.fresh[e.GetId()], list)
	})
}
