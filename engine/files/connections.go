//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/sock"
	"migrate/tcprepair"
)

// A Connection is a TCP connection that moves, for the report.
type Connection struct {
	Local, Remote string
	State         string
	Unacked       int // bytes written by the program and not acknowledged by the peer
	Unread        int // bytes received and not read by the program
}

func connectionOf(s *tcprepair.State) Connection {
	return Connection{Local: s.Local.String(), Remote: s.Remote.String(), State: s.TCP.String(), Unacked: len(s.SendQueue), Unread: len(s.RecvQueue)}
}

// Connections tells of the connections that Dump has saved.
func (d *Dumper) Connections() []Connection {
	var out []Connection
	for _, p := range d.paused {
		if p.state != nil {
			out = append(out, connectionOf(p.state))
		}
	}
	return out
}

// lookedAt is what Pending has seen of a connection.
type lookedAt struct {
	timeouts uint16 // tcpi_total_rto
	silent   bool   // the peer leaves what is sent again and again without an answer
}

// Timeouts are the retransmission time-outs (RFC 6298) of a connection around a freeze.
type Timeouts struct {
	Local, Remote string // as in Connection
	Count         uint16 // from the last call of Pending to Dump
	Silent        bool   // its peer answered nothing already then: those that it has have other reasons
}

// Timeouts tells of the connections that Dump has saved and the last Pending has met, but those of which there is nothing to tell.
func (d *Dumper) Timeouts() []Timeouts {
	var out []Timeouts
	for _, p := range d.paused {
		was, ok := d.looked[p.ino]
		if p.state == nil || !ok {
			continue
		}
		t := Timeouts{p.state.Local.String(), p.state.Remote.String(), p.conn.Timeouts() - was.timeouts, was.silent}
		if t.Count > 0 || t.Silent {
			out = append(out, t)
		}
	}
	return out
}

// States are the connections that Dump has saved, for the delivery of captured frames.
func (d *Dumper) States() []*tcprepair.State {
	var out []*tcprepair.State
	for _, p := range d.paused {
		if p.state != nil {
			out = append(out, p.state)
		}
	}
	for _, q := range d.queues {
		for _, c := range q.conns {
			if c.State != nil {
				out = append(out, c.State)
			}
		}
	}
	return out
}

// Unchanged makes sure that no connection moved on since Dump.
func (d *Dumper) Unchanged() error {
	for _, p := range d.paused {
		if err := p.conn.Unchanged(p.state); err != nil {
			return err
		}
	}
	for _, q := range d.queues {
		for _, c := range q.conns {
			if err := c.paused.Unchanged(c.State); err != nil {
				return err
			}
		}
	}
	return nil
}

// Unfence is for connections that may stay in repair for long, with no way out of the host: see tcprepair.Paused.
func (d *Dumper) Unfence() error {
	var errs []error
	for _, p := range d.paused {
		errs = append(errs, p.conn.Unfence())
	}
	return errors.Join(errs...)
}

// Connections tells of the connections that Open has restored.
func (r *Restorer) Connections() []Connection {
	var out []Connection
	for _, h := range r.held {
		out = append(out, connectionOf(h.state))
	}
	return out
}

// States are the connections that Open has restored.
func (r *Restorer) States() []*tcprepair.State {
	var out []*tcprepair.State
	for _, h := range r.held {
		out = append(out, h.state)
	}
	return append(out, r.queued...)
}

// heldConn is a restored connection before its release.
type heldConn struct {
	conn  *tcprepair.Held
	state *tcprepair.State
}

// Recover takes all connections of a tree out of repair that a dead agent has left there. The tree must be stopped. It returns how
// many there were.
func (d *Dumper) Recover(ctx context.Context, procs []*engine.Process) (int, error) {
	if err := d.prepare(procs); err != nil {
		return 0, err
	}
	snap, err := d.collect(ctx, procs, 1)
	if err != nil {
		return 0, err
	}
	n := 0
	var errs []error
	for _, desc := range snap.list {
		if desc.kind != kindTCP {
			continue
		}
		if v, err := unix.GetsockoptInt(desc.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || v != unix.TCP_REPAIR_ON {
			continue
		}
		p, err := tcprepair.Pause(desc.osFile())
		if err == nil {
			err = p.Resume()
		}
		errs = append(errs, err)
		n++
	}
	return n, errors.Join(append(errs, snap.close())...)
}

// Pending counts the connections that wait to be accepted or are being opened at the listeners of a tree. While it is not zero, Dump
// would fail with ErrBusy: the caller shuts new connections out and waits for zero before it stops the tree. Timeouts counts from the
// last call.
func (d *Dumper) Pending(ctx context.Context, procs []*engine.Process) (n int, err error) {
	if err := d.prepare(procs); err != nil {
		return 0, err
	}
	snap, err := d.collect(ctx, procs, 1)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, snap.close()) }()
	d.looked = map[uint32]lookedAt{}
	for _, desc := range snap.list {
		if desc.kind != kindTCP {
			continue
		}
		i, err := unix.GetsockoptTCPInfo(desc.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			continue // it has been closed meanwhile
		}
		if tcprepair.ConnState(i.State) != tcprepair.Listen {
			d.looked[uint32(desc.stat.Ino)] = lookedAt{i.Total_rto, i.Retransmits > 0}
			continue
		}
		waiting, err := tcprepair.Waiting(desc.osFile())
		if err != nil {
			return 0, err
		}
		half, err := tcprepair.HalfOpen(desc.osFile())
		if err != nil {
			return 0, err
		}
		n += waiting + half
	}
	return n, nil
}

// undelivered refuses to leave behind what the program wrote to connections that it has closed since. It is known only
// of a network namespace that is the tree's own.
func (d *Dumper) undelivered(snap *snapshot) error {
	here, err := ownNetNS()
	if err != nil || here == d.diag.first.NetNS() {
		return err
	}
	// Looking through the table of connections takes milliseconds: not where all are held by descriptors.
	known := 0
	for _, desc := range snap.list {
		if desc.kind != kindTCP {
			continue
		}
		if state, err := tcpState(desc); err == nil && state != tcprepair.Closed {
			known++
		}
	}
	if n, err := sock.InUse(d.procs[0].PID); err != nil || n <= known {
		return err
	}
	list, err := d.diag.first.Closing()
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.Left > 1 {
			return fmt.Errorf("connection %v-%v was closed by the program, and %d bytes of it are not delivered yet: %w", c.Local, c.Remote, c.Left-1, ErrBusy)
		}
	}
	return nil
}

// ownNetNS is the cookie of the network namespace of this thread.
func ownNetNS() (cookie uint64, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("unix socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return sock.NetNSCookie(fd)
}
