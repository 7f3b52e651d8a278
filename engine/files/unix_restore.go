//go:build linux

package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"

	"migrate/engine/sock"
)

// unixPlan is the making of all unix sockets of a checkpoint. In open: all sockets and connections, each connection through
// a listener of its name, or a pair. In connect, when all other descriptions exist and can be in flight: what waits in listeners
// and queues, in order; then datagram sockets get their peers.
type unixPlan struct {
	r         *Restorer
	list      []*unixSock
	byIno     map[uint32]*unixSock
	byID      map[uint32]*unixSock
	pending   map[uint32]bool // records of clients that wait at a listener
	helpers   map[uint32]Helper
	temporary []*unixSock // listeners that no record holds
	fresh     uint32      // number of the last temporary file
	filled    bool
}

// unixSock is one socket. One that no record holds has no State.
type unixSock struct {
	*sk_unix.UnixSkEntry
	entry *fdinfo.FileEntry
	state *sock.UnixState
	fd    int // in this program; -1 until it is made
	peer  *unixSock
	other int // descriptor of the other end, if no record holds it; -1 for none

	place  *unixPlace // of the file that it is bound to
	heard  *sock.Cred // who has called listen last
	linked bool       // datagrams: connected
	done   bool       // the queue is filled
}

func (s *unixSock) stream() bool { return s.GetType() != unix.SOCK_DGRAM }

// newUnixPlan checks the records against each other.
func newUnixPlan(r *Restorer) (*unixPlan, error) {
	p := &unixPlan{r: r, byIno: map[uint32]*unixSock{}, byID: map[uint32]*unixSock{}, pending: map[uint32]bool{}, helpers: map[uint32]Helper{}}
	for _, e := range r.entries() {
		if e.GetType() != fdinfo.FdTypes_UNIXSK {
			continue
		}
		if e.Usk.Id == nil || e.Usk.State == nil || e.Usk.GetId() != e.GetId() {
			return nil, fmt.Errorf("unix socket of file %d: its record has no id, another one or no state", e.GetId())
		}
		if t := e.Usk.GetType(); t != unix.SOCK_STREAM && t != unix.SOCK_DGRAM && t != unix.SOCK_SEQPACKET {
			return nil, fmt.Errorf("unix socket of type %d", t)
		}
		s := &unixSock{UnixSkEntry: e.Usk, entry: e, fd: -1, other: -1, state: &sock.UnixState{}}
		if b := r.cp.Blobs[unixBlob(e.GetId())]; b != nil {
			var err error
			if s.state, err = sock.DecodeUnix(b); err != nil {
				return nil, fmt.Errorf("blob %s: %w", unixBlob(e.GetId()), err)
			}
		}
		p.list = append(p.list, s)
		p.byID[e.GetId()] = s
		if s.GetIno() != 0 {
			p.byIno[s.GetIno()] = s
		}
	}
	for _, s := range p.list {
		s.peer = p.byIno[s.GetPeer()]
		for _, w := range s.state.Pending {
			if c := p.byID[w.Client]; w.Client != 0 && (c == nil || c.GetType() != s.GetType() || c == s || p.pending[w.Client]) {
				return nil, fmt.Errorf("blob %s: connection from file %d", unixBlob(s.GetId()), w.Client)
			}
			p.pending[w.Client] = true
		}
	}
	delete(p.pending, 0)
	return p, nil
}

// openUnix makes all of them with the first.
func openUnix(ctx context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	if r.unix == nil {
		p, err := newUnixPlan(r)
		if err != nil {
			return err
		}
		r.unix = p
		if err := p.open(ctx); err != nil {
			return errors.Join(err, p.closeHelpers())
		}
	}
	if r.files[e.GetId()] == nil {
		return errors.New("it has not been made with the other unix sockets")
	}
	return nil
}

// firstUnix makes the unix sockets before all other descriptions.
func (r *Restorer) firstUnix(ctx context.Context) error {
	for _, e := range r.entries() {
		if e.GetType() == fdinfo.FdTypes_UNIXSK {
			if err := openUnix(ctx, r, e); err != nil {
				return r.blame(e, err)
			}
			return nil
		}
	}
	return nil
}

func (p *unixPlan) open(ctx context.Context) error {
	for _, step := range []func(context.Context, *unixSock) error{p.single, p.listening, p.connection, p.pairOfDatagrams} {
		for _, s := range p.list {
			if err := step(ctx, s); err != nil {
				return p.r.blame(s.entry, err)
			}
		}
	}
	return nil
}

// single makes sockets that exist by themselves.
func (p *unixPlan) single(_ context.Context, s *unixSock) error {
	switch {
	case s.stream() && s.GetState() == unixConnected && !p.pending[s.GetId()] && p.service(s) == nil:
		return nil
	case !s.stream() && p.paired(s):
		return nil
	}
	fd, err := p.rawSocket(s, int(s.GetType()))
	if err != nil {
		return err
	}
	p.made(s, fd)
	return p.bind(s, s.fd)
}

// service is the name to which a socket is connected anew; nil for all others.
func (p *unixPlan) service(s *unixSock) []byte { return p.r.cp.Blobs[serviceBlob(s.GetId())] }

// paired tells whether a datagram socket was born with another one (socketpair(2)), or can only be made so because its peer has
// no name.
func (p *unixPlan) paired(s *unixSock) bool {
	if p.partner(s) != nil {
		return true
	}
	orphan := s.peer == nil && s.GetState() == unixConnected && s.GetPeer() == 0
	return orphan && (s.state.Cred != nil || len(s.state.PeerName) == 0)
}

// partner is the other end of a pair of datagram sockets, if it is in the checkpoint.
func (p *unixPlan) partner(s *unixSock) *unixSock {
	if q := s.peer; q != nil && q != s && q.GetType() == s.GetType() &&
		(len(q.GetName()) == 0 || q.peer == s && s.state.Cred != nil && q.state.Cred != nil) {
		return q
	}
	if len(s.GetName()) > 0 {
		return nil
	}
	for _, q := range p.list {
		if q != s && q.peer == s && q.GetType() == s.GetType() {
			return q // it is connected to a socket without a name
		}
	}
	return nil
}

// rawSocket makes a socket in the network namespace of another one.
func (p *unixPlan) rawSocket(of *unixSock, typ int) (fd int, err error) {
	err = sock.In(sock.Place{NetNS: p.r.netNS(of.GetId())}, func() (err error) {
		fd, err = unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("unix socket: %w", err)
	}
	return fd, nil
}

func (p *unixPlan) made(s *unixSock, fd int) {
	s.fd = fd
	p.r.put(s.GetId(), fd)
}

// gone stands for a socket that no record holds: one of the type of s, with what is known of its name.
func (p *unixPlan) gone(s *unixSock, name []byte, fd int) *unixSock {
	deleted := true
	e := &sk_unix.UnixSkEntry{Id: s.Id, Type: s.Type, Name: name, NameDir: s.NameDir, Deleted: &deleted}
	return &unixSock{UnixSkEntry: e, entry: s.entry, fd: fd, other: -1, state: &sock.UnixState{}}
}

// listening makes listeners listen, at first to as many as wait.
func (p *unixPlan) listening(ctx context.Context, s *unixSock) error {
	if s.GetState() != unixListening {
		return nil
	}
	return p.listen(ctx, s, s.state.Cred, s.state.Groups, max(int(s.GetBacklog()), len(s.state.Pending), 1))
}

// listen lets somebody call listen(2), if it was another one before: who connects is told of the last caller.
func (p *unixPlan) listen(ctx context.Context, s *unixSock, cred *sock.Cred, groups []uint32, backlog int) error {
	if cred == nil {
		cred, groups = s.state.Cred, s.state.Groups
	}
	if s.heard != nil && cred != nil && *s.heard == *cred {
		return nil
	}
	a, err := p.actor(ctx, s.entry, cred, groups)
	if err != nil {
		return err
	}
	if err := a.listen(ctx, s.fd, backlog); err != nil {
		return fmt.Errorf("listen on %q: %w", s.GetName(), err)
	}
	s.heard = cred
	return nil
}

// connection makes both ends of a connection that has been accepted or was born as a pair.
func (p *unixPlan) connection(ctx context.Context, s *unixSock) error {
	if !s.stream() || s.GetState() != unixConnected || s.fd >= 0 {
		return nil
	}
	q := s.peer
	switch {
	case q != nil && (q.peer != s || q == s || q.GetType() != s.GetType() || q.GetState() != unixConnected || q.fd >= 0):
		return fmt.Errorf("its peer %d has another peer", s.GetPeer())
	case q == nil && s.GetPeer() != 0:
		return errors.New("its peer is not in the checkpoint")
	case q == nil: // what is known of the other end is what this one tells
		q = p.gone(s, s.state.PeerName, -1)
	}
	if len(s.GetName()) == 0 && len(q.GetName()) == 0 {
		return p.pair(ctx, s, q)
	}
	server, client := s, q
	l := p.listener(s)
	if l == nil {
		if l = p.listener(q); l != nil || len(s.GetName()) == 0 {
			server, client = q, s
		}
	}
	if l == nil {
		var err error
		if l, err = p.temporaryListener(server); err != nil {
			return err
		}
	}
	return p.through(ctx, l, server, client)
}

// sameNet tells whether two sockets with one name may mean each other: abstract names are those of a network namespace.
func (p *unixPlan) sameNet(a, b *unixSock) bool {
	return len(a.GetName()) > 0 && a.GetName()[0] != 0 || p.r.netNS(a.GetId()) == p.r.netNS(b.GetId())
}

// listener finds the socket on which s was accepted: it has the listener's name and file.
func (p *unixPlan) listener(s *unixSock) *unixSock {
	if len(s.GetName()) == 0 {
		return nil
	}
	for _, lists := range [][]*unixSock{p.list, p.temporary} {
		for _, l := range lists {
			if l.GetState() == unixListening && l.GetType() == s.GetType() && bytes.Equal(l.GetName(), s.GetName()) && p.sameNet(l, s) &&
				(s.state.Path == "" || s.state.Path == l.state.Path && s.GetDeleted() == l.GetDeleted()) {
				return l
			}
		}
	}
	return nil
}

// temporaryListener stands for one that has been closed since.
func (p *unixPlan) temporaryListener(s *unixSock) (*unixSock, error) {
	fd, err := p.rawSocket(s, int(s.GetType()))
	if err != nil {
		return nil, err
	}
	l := p.gone(s, s.GetName(), fd)
	state := unixListening
	l.State = &state
	if s.FilePerms != nil {
		l.Deleted, l.FilePerms, l.state.Path = s.Deleted, s.FilePerms, s.state.Path
	}
	p.temporary = append(p.temporary, l)
	return l, p.bind(l, fd)
}

// through connects through a listener, so that names and credentials come out as they were.
func (p *unixPlan) through(ctx context.Context, l, server, client *unixSock) error {
	if err := p.listen(ctx, l, client.state.Cred, client.state.Groups, max(1, int(l.GetBacklog()))); err != nil {
		return err
	}
	cfd, err := p.rawSocket(client, int(client.GetType()))
	if err != nil {
		return err
	}
	if client.State != nil {
		p.made(client, cfd)
	} else {
		server.other = cfd
	}
	if err := p.bind(client, cfd); err != nil {
		return err
	}
	a, err := p.actor(ctx, client.entry, server.state.Cred, server.state.Groups)
	if err != nil {
		return err
	}
	if err := p.connect(ctx, cfd, l, a); err != nil {
		return err
	}
	sfd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("accept on %q: %w", l.GetName(), err)
	}
	if server.State != nil {
		p.made(server, sfd)
	} else {
		client.other = sfd
	}
	return nil
}

// connect connects a socket to a named one; nobody remembers who has connected a datagram socket.
func (p *unixPlan) connect(ctx context.Context, fd int, to *unixSock, a *actor) error {
	dir, name := to.address()
	var failed error
	if to.stream() && a != nil {
		if failed = a.connect(ctx, fd, dir, name); failed == nil {
			return nil
		}
		// The actor may be in another mount namespace, where the path means something else.
	}
	if err := sock.In(p.r.placeOf(to.entry, dir), func() error { return sock.ConnectUnix(fd, name) }); err != nil {
		return errors.Join(err, failed)
	}
	return nil
}

// pair makes both ends by socketpair(2); one of them may have no record.
func (p *unixPlan) pair(ctx context.Context, s, q *unixSock) error {
	a, err := p.actor(ctx, s.entry, s.state.Cred, s.state.Groups)
	if err != nil {
		return err
	}
	x, y, err := a.pair(ctx, int(s.GetType()))
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	p.made(s, x)
	if q.State == nil {
		s.other = y
	} else {
		p.made(q, y)
	}
	return errors.Join(p.bind(s, x), p.bind(q, y))
}

// pairOfDatagrams makes datagram sockets that were born as pairs.
func (p *unixPlan) pairOfDatagrams(ctx context.Context, s *unixSock) error {
	if s.stream() || s.fd >= 0 || !p.paired(s) {
		return nil
	}
	q := p.partner(s)
	if q != nil && q.fd >= 0 {
		return errors.New("its peer was born with another one")
	}
	s.linked = q == s.peer
	if q == nil {
		return p.pair(ctx, s, p.gone(s, s.state.PeerName, -1))
	}
	q.linked = q.peer == s
	return p.pair(ctx, s, q)
}
