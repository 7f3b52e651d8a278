//go:build linux

package files

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/sock"
)

// A descriptor in flight is one that was sent over a unix socket (SCM_RIGHTS in unix(7)) and not received yet. It is no process's, but
// its description is of the tree; a socket in flight has a queue of its own. Peeking duplicates such descriptors, so they are
// found when the tree is stopped, with all that waits in the queues.

// inFlight is the number of a descriptor that is in flight, in holders and homes.
const inFlight = -1

// A unixPacket is a packet of a unix socket's queue.
type unixPacket struct {
	sock.Packet
	rights []*description
}

// unixQueues peeks all unix sockets, also those that are found on the way.
func (d *Dumper) unixQueues(c *collector) error {
	for i := 0; i < len(c.list); i++ { // the list grows
		desc := c.list[i]
		if err := d.diag.note(desc); err != nil {
			return fmt.Errorf("%s: %w", desc.where(), err)
		}
		if s := desc.socket(); s == nil || s.domain != unix.AF_UNIX || !polled(desc.fd, unix.POLLIN) {
			continue
		}
		if err := d.unixQueue(c, desc); err != nil {
			return fmt.Errorf("%s: its queue: %w", desc.where(), err)
		}
	}
	return nil
}

func (d *Dumper) unixQueue(c *collector, desc *description) error {
	u, err := d.diag.Unix(uint32(desc.stat.Ino))
	if errors.Is(err, sock.ErrNoSocket) {
		return nil // of another network namespace: refused
	}
	if err != nil {
		return err
	}
	stream := u.Type == unix.SOCK_STREAM
	if u.Type != unix.SOCK_DGRAM && uint32(u.State) != unixConnected {
		return nil
	}
	if polled(desc.fd, unix.POLLERR) {
		desc.unseen = true // a peek would take the error away: the kernel's memory tells of the queue
		return nil
	}
	list, err := sock.PeekUnix(desc.fd, stream, stream || u.Shutdown&1 != 0)
	if err != nil {
		return err
	}
	h := desc.holders[0]
	for i, p := range list {
		q := unixPacket{Packet: p.Packet}
		for k, fd := range p.FDs {
			f, err := c.addDuplicate(fd, holder{proc: h.proc, fd: inFlight}, desc.root)
			if err != nil {
				list[i].FDs = p.FDs[k+1:]
				sock.ClosePeeked(list[i:])
				return err
			}
			q.rights = append(q.rights, f)
		}
		if q.Cred != nil {
			if q.Cred, err = d.credOf(q.Cred); err != nil {
				sock.ClosePeeked(list[i+1:])
				return err
			}
		}
		desc.queue = append(desc.queue, q)
	}
	return nil
}

// credOf is a credential with the process as the tree knows it.
func (d *Dumper) credOf(c *sock.Cred) (*sock.Cred, error) {
	own := len(d.procs) > 0 && d.procs[0].Group() == d.procs[0].VPID // the tree sees the ids that this program sees
	for _, p := range d.procs {
		if uint32(p.Group()) == c.PID {
			return &sock.Cred{PID: uint32(p.VPID), UID: c.UID, GID: c.GID}, nil
		}
	}
	if own || c.PID == 0 {
		return c, nil
	}
	return nil, fmt.Errorf("it holds credentials of process %d, which is not in the tree: %w", c.PID, ErrNotCarried)
}

// mayBeInFlight tells whether something waits in a unix socket of a running tree, so that a description may be of the tree
// although no process has it open. In a stopped tree all are known.
func (d *Dumper) mayBeInFlight() bool {
	if d.frozen || d.current == nil {
		return false
	}
	if d.current.waiting == nil {
		waits := false
		for _, desc := range d.current.list {
			if s := desc.socket(); s != nil && s.domain == unix.AF_UNIX && polled(desc.fd, unix.POLLIN) {
				waits = true
				break
			}
		}
		d.current.waiting = &waits
	}
	return *d.current.waiting
}

// inFlightBlob holds pairs of numbers (4 bytes each, little-endian): the record of a description that is only in flight, and the
// process, as the tree knows it, in whose place it is made.
const inFlightBlob = "in-flight"

func (r *dump) noteInFlight() {
	var b []byte
	for _, desc := range r.snap.list {
		if h := desc.holders[0]; h.fd == inFlight {
			b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, desc.id), uint32(h.proc.VPID))
		}
	}
	if b != nil {
		r.blob(inFlightBlob, b)
	}
}

// homesInFlight gives the records that are only in flight a home.
func (r *Restorer) homesInFlight(cp *images.Checkpoint) error {
	b := cp.Blobs[inFlightBlob]
	if len(b)%8 != 0 {
		return fmt.Errorf("blob %s has %d bytes", inFlightBlob, len(b))
	}
	for ; len(b) > 0; b = b[8:] {
		id, vpid := binary.LittleEndian.Uint32(b), int(binary.LittleEndian.Uint32(b[4:]))
		if _, ok := r.homes[id]; ok || cp.Process(uint32(vpid)) == nil {
			return fmt.Errorf("blob %s: file %d of process %d", inFlightBlob, id, vpid)
		}
		r.homes[id] = home{vpid, inFlight}
		r.holders[id] = []int{vpid}
	}
	return nil
}

// needsLending tells whether a record that is only in flight must be at hand in its home for a moment.
func (r *Restorer) needsLending(e *fdinfo.FileEntry) bool {
	if r.homes[e.GetId()].fd != inFlight {
		return false
	}
	flags, owner := statusFlags(e)
	return e.Epfd != nil || e.Tfd != nil || flags&unix.O_ASYNC != 0 || owner.GetPid() != 0 || owner.GetSignum() != 0
}
