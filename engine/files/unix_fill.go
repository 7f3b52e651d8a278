//go:build linux

package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/sock"
)

// connectUnix fills all queues with the first.
func connectUnix(ctx context.Context, r *Restorer, _ *fdinfo.FileEntry) error {
	p := r.unix
	if p == nil || p.filled {
		return nil
	}
	p.filled = true
	return errors.Join(p.fill(ctx), p.closeHelpers())
}

func (p *unixPlan) fill(ctx context.Context) error {
	for _, step := range []func(context.Context, *unixSock) error{p.fillPending, p.fillEarly, p.link, p.fillLate, p.settle} {
		for _, s := range p.list {
			if err := step(ctx, s); err != nil {
				return p.r.blame(s.entry, err)
			}
		}
	}
	var errs []error
	for _, l := range p.temporary {
		errs = append(errs, unix.Close(l.fd))
	}
	p.temporary = nil
	return errors.Join(errs...)
}

// filling resolves what packets refer to.
func (p *unixPlan) filling(ctx context.Context, to []byte) sock.Filling {
	return sock.Filling{To: to, FD: p.r.descriptor, PID: func(vpid uint32) (int, error) {
		if vpid == 0 {
			return 0, nil
		}
		if c, err := p.process(ctx, vpid); err != nil || c != nil {
			if err != nil {
				return 0, err
			}
			return c.PID(), nil
		}
		return 0, fmt.Errorf("credentials of process %d, which is not in the tree and whose id is taken here", vpid)
	}}
}

// fillPending makes the connections that wait to be accepted, in order, and sends what their clients have sent.
func (p *unixPlan) fillPending(ctx context.Context, s *unixSock) error {
	for _, w := range s.state.Pending {
		client := p.byID[w.Client]
		if client == nil { // it was closed
			fd, err := p.rawSocket(s, int(s.GetType()))
			if err != nil {
				return err
			}
			client = p.gone(s, nil, fd)
		}
		err := p.listen(ctx, s, client.state.Cred, client.state.Groups, max(int(s.GetBacklog()), len(s.state.Pending)))
		if err == nil {
			var a *actor
			if a, err = p.itself(client.entry); err == nil {
				err = p.connect(ctx, client.fd, s, a)
			}
		}
		if err == nil {
			err = sock.FillUnix(client.fd, w.Packets, p.filling(ctx, nil))
		}
		if client.State == nil {
			err = errors.Join(err, unix.Close(client.fd))
		}
		if err != nil {
			return fmt.Errorf("a connection that waits to be accepted: %w", err)
		}
	}
	if s.GetState() != unixListening {
		return nil
	}
	backlog, final := int(s.GetBacklog()), s.state.Cred
	if s.heard == nil || final == nil || *s.heard != *final || backlog < max(len(s.state.Pending), 1) {
		s.heard = nil
		return p.listen(ctx, s, final, s.state.Groups, backlog)
	}
	return nil
}

// early tells whether datagrams must be sent before their receiver gets a peer: the kernel takes them only from the peer then.
func (s *unixSock) early() bool {
	if s.linked {
		return false
	}
	for _, m := range s.state.Packets {
		if s.peer == nil || s.peer.peer != s || !bytes.Equal(m.From, s.peer.GetName()) {
			return true
		}
	}
	return false
}

func (p *unixPlan) fillEarly(ctx context.Context, s *unixSock) error {
	if s.stream() || !s.early() {
		return nil
	}
	s.done = true
	for i, m := range s.state.Packets {
		if err := p.datagram(ctx, s, &s.state.Packets[i]); err != nil {
			return fmt.Errorf("a datagram from %q: %w", m.From, err)
		}
	}
	return nil
}

// datagram sends one to a socket by its name.
func (p *unixPlan) datagram(ctx context.Context, to *unixSock, m *sock.Packet) (err error) {
	from := p.senderOf(to, m.From)
	if from == nil {
		fd, err := p.rawSocket(to, unix.SOCK_DGRAM)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		from = p.gone(to, m.From, fd)
		if err := p.bind(from, fd); err != nil {
			return err
		}
	}
	dir, name := to.address()
	return sock.In(p.r.placeOf(to.entry, dir), func() error { return sock.FillUnix(from.fd, []sock.Packet{*m}, p.filling(ctx, name)) })
}

// senderOf finds the socket that has sent a datagram: by its name or, if it has none, among those that send there.
func (p *unixPlan) senderOf(to *unixSock, name []byte) *unixSock {
	for _, s := range p.list {
		if s.GetType() != to.GetType() || !bytes.Equal(s.GetName(), name) || s.fd < 0 || !p.sameNet(s, to) {
			continue
		}
		if len(name) > 0 || s.peer == to {
			return s
		}
	}
	return nil
}

// link connects datagram sockets that were not born as pairs. A socket that has a peer takes no others, so those that are
// connected to it come first.
func (p *unixPlan) link(ctx context.Context, s *unixSock) error {
	service := p.service(s)
	if s.stream() && len(service) == 0 || s.linked || s.GetState() != unixConnected {
		return nil
	}
	s.linked = true
	for _, q := range p.list {
		if q.peer == s && q != s.peer {
			if err := p.link(ctx, q); err != nil {
				return err
			}
		}
	}
	if len(service) > 0 {
		if err := p.connectAnew(ctx, s, service); err != nil {
			return fmt.Errorf("connecting anew to %q: %w", UnixAddress(service), err)
		}
		return nil
	}
	to := s.peer
	switch {
	case to == nil && s.GetPeer() == 0 && s.other >= 0:
		return nil // born with a peer that is closed by now
	case to == nil && s.GetPeer() == 0: // it was closed
		fd, err := p.rawSocket(s, unix.SOCK_DGRAM)
		if err != nil {
			return err
		}
		s.other = fd
		to = p.gone(s, s.state.PeerName, fd)
		if err := p.bind(to, fd); err != nil {
			return err
		}
	case to == nil:
		return errors.New("its peer is not in the checkpoint")
	}
	return p.connect(ctx, s.fd, to, nil)
}

// fillLate fills queues from the peers.
func (p *unixPlan) fillLate(ctx context.Context, s *unixSock) error {
	if len(s.state.Packets) == 0 || s.done {
		return nil
	}
	from := s.other
	if s.peer != nil {
		from = s.peer.fd
	}
	if from < 0 {
		return fmt.Errorf("%d packets wait, and it has no peer", len(s.state.Packets))
	}
	f := p.filling(ctx, nil)
	if s.GetType() == unix.SOCK_STREAM {
		f.Weight = s.state.Weight
	}
	return sock.FillUnix(from, s.state.Packets, f)
}

// settle closes ends that were closed. What such an end had not read makes an error for the other one.
func (p *unixPlan) settle(_ context.Context, s *unixSock) error {
	if s.other < 0 {
		return nil
	}
	var err error
	if s.state.Reset {
		err = sock.FillUnix(s.fd, []sock.Packet{{Data: []byte{0}}}, sock.Filling{})
	}
	err = errors.Join(err, unix.Close(s.other))
	s.other = -1
	return err
}

// finishUnix runs when all queues are filled.
func (r *Restorer) finishUnix(e *fdinfo.FileEntry) error {
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	closed := e.Usk.GetType() != unix.SOCK_DGRAM && e.Usk.GetPeer() == 0 && !r.unix.pending[e.GetId()] && e.Usk.GetState() == unixConnected
	if how := int(e.Usk.GetShutdown()); how != 0 && !closed {
		if err := unix.Shutdown(fd, how-1); err != nil { // SHUT_RD, SHUT_WR and SHUT_RDWR are one less than the bits
			return fmt.Errorf("shutdown %d: %w", how, err)
		}
	}
	return r.lateOptions(e.GetId(), fd, e.Usk.GetOpts())
}
