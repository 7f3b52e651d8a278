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

// Adopt takes over the connections of a complete skeleton whose Restorer died with its program before Release. It is called
// on a new Restorer of the same checkpoint, in place of Open and Install, while the skeleton stands still; then Release or Drop
// do as always. Connections that are out of repair already are passed over.
func (r *Restorer) Adopt(ctx context.Context, procs []*engine.Process) (err error) {
	d := NewDumper(Options{})
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.prepare(procs); err != nil {
		return err
	}
	snap, err := d.collect(ctx, procs, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snap.close()) }()
	for _, desc := range snap.list {
		if desc.kind != kindTCP {
			continue
		}
		if err := r.adoptIdle(desc); err != nil {
			return fmt.Errorf("%s: %w", desc.where(), err)
		}
		if v, err := unix.GetsockoptInt(desc.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || v != unix.TCP_REPAIR_ON {
			continue
		}
		if err := r.adopt(desc); err != nil {
			return fmt.Errorf("%s: %w", desc.where(), err)
		}
	}
	return nil
}

func (r *Restorer) adopt(desc *description) error {
	h := desc.holders[0]
	id, ok := r.tables[h.proc.VPID][h.fd]
	blob := r.cp.Blobs[tcpBlob(id)]
	if !ok || blob == nil {
		return errors.New("it is in repair, and the checkpoint has no connection there")
	}
	state, err := sock.DecodeTCP(blob)
	if err != nil {
		return fmt.Errorf("blob %s: %w", tcpBlob(id), err)
	}
	dup, err := unix.FcntlInt(uintptr(desc.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate: %w", err)
	}
	held, err := tcprepair.Adopt(r.put(id, dup), state)
	if err != nil {
		return err
	}
	r.held = append(r.held, heldConn{conn: held, state: state})
	return nil
}

// adoptIdle takes over a socket that is to connect at the release.
func (r *Restorer) adoptIdle(desc *description) error {
	h := desc.holders[0]
	id, ok := r.tables[h.proc.VPID][h.fd]
	blob := r.cp.Blobs[idleBlob(id)]
	if !ok || blob == nil {
		return nil
	}
	s, err := sock.DecodeIdle(blob)
	if err != nil {
		return fmt.Errorf("blob %s: %w", idleBlob(id), err)
	}
	if state, err := tcpState(desc); err != nil || state != tcprepair.Closed {
		return err // it connects already
	}
	dup, err := unix.FcntlInt(uintptr(desc.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate: %w", err)
	}
	r.connecting(r.put(id, dup), s)
	return nil
}
