//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
	"migrate/tcprepair"
)

var kindUnix = &Kind{
	Name: "unix socket", Type: fdinfo.FdTypes_UNIXSK, Carried: true,
	Note: "all types and states with what waits in their queues: credentials, descriptors in flight, connections that wait to be accepted; " +
		"datagrams to a path outside, such as /dev/log; with another peer outside of the tree only as --external-unix says. SO_PEERCRED stays, unless its process is " +
		"outside of the tree and its id is taken at the destination. Where its file is mounted elsewhere, the new one is then",
	match: func(d *description) bool { s := d.socket(); return s != nil && s.domain == unix.AF_UNIX },
	check: checkUnix, dump: dumpUnix, open: openUnix, connect: connectUnix, settle: (*Restorer).finishUnix,
}

// States of unix sockets are those of TCP (net/unix/af_unix.c).
const (
	unixConnected = uint32(tcprepair.Established)
	unixClosed    = uint32(tcprepair.Closed)
	unixListening = uint32(tcprepair.Listen)
)

// bySocket finds a socket by its inode number.
func (s *snapshot) bySocket(ino uint32) *description {
	if s.sockets == nil {
		s.sockets = map[uint32]*description{}
		for _, d := range s.list {
			if d.format() == unix.S_IFSOCK {
				s.sockets[uint32(d.stat.Ino)] = d
			}
		}
	}
	return s.sockets[ino]
}

func checkUnix(_ context.Context, dm *Dumper, d *description) []problem {
	u, err := dm.diag.Unix(uint32(d.stat.Ino))
	if errors.Is(err, sock.ErrNoSocket) {
		return []problem{{reason: "it is a socket of another network namespace than that of the first process"}}
	}
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	var out []problem
	outside := u.HasPeer && u.Peer != 0 && dm.current.bySocket(u.Peer) == nil
	if outside && dm.service(d, u) == nil && dm.externalUnix(d, u) == "" && !dm.mayBeInFlight() {
		out = append(out, outsidePeer(d, u))
	}
	return append(out, checkOptions(d)...)
}

// service is the path of the peer of a datagram socket that is outside of the tree, such as /dev/log: the socket only ever
// sends there, so at the destination it is connected to whoever has that path. nil for all other sockets.
func (d *Dumper) service(desc *description, u *sock.UnixInfo) []byte {
	switch d.externalUnix(desc, u) {
	case HangUp:
		return nil
	case Reconnect:
		name, _ := sock.UnixPeerName(desc.fd) // externalUnix has read it
		return name
	}
	if u.Type != unix.SOCK_DGRAM || !u.HasPeer || u.Peer == 0 || d.current.bySocket(u.Peer) != nil {
		return nil
	}
	name, err := sock.UnixPeerName(desc.fd)
	if err != nil || len(name) == 0 || name[0] != '/' {
		return nil
	}
	if peer, err := d.diag.Unix(u.Peer); err != nil || peer.HasPeer && peer.Peer == u.Ino {
		return nil // it answers: what is on its way would be lost
	}
	return name
}

// serviceBlob holds the path that service tells.
func serviceBlob(id uint32) string { return fmt.Sprintf("unix-service-%d", id) }

// unixBlob holds a sock.UnixState.
func unixBlob(id uint32) string { return fmt.Sprintf("unix-%d", id) }

func dumpUnix(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	u, err := r.diag.Unix(uint32(d.stat.Ino))
	if err != nil {
		return nil, err
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	opts, err := r.sockOptions(d)
	if err != nil {
		return nil, err
	}
	name, err := sock.UnixName(d.fd)
	if err != nil {
		return nil, err
	}
	e := &sk_unix.UnixSkEntry{Id: proto.Uint32(d.id), Ino: proto.Uint32(u.Ino), Type: proto.Uint32(uint32(u.Type)), State: proto.Uint32(uint32(u.State)),
		Flags: proto.Uint32(uint32(d.flags)), Uflags: proto.Uint32(0), Backlog: proto.Uint32(0), Peer: proto.Uint32(u.Peer), Fown: owner, Opts: opts, Name: append([]byte{}, name...)} // the record must have a name, if an empty one
	if u.Shutdown != 0 {
		e.Shutdown = sk_opts.SkShutdown(u.Shutdown & 3).Enum()
	}
	if u.Type == unix.SOCK_DGRAM && !u.HasPeer {
		*e.State = unixClosed // the kernel says connected when others have connected to it
	}
	s := &sock.UnixState{}
	if name := r.service(d, u); name != nil {
		r.blob(serviceBlob(d.id), name)
	}
	switch r.externalUnix(d, u) {
	case Reconnect: // what waits belongs to the old connection
		d.queue, d.unseen = nil, false
	case HangUp:
		u.Peer, *e.Peer = 0, 0
		if u.Type != unix.SOCK_DGRAM {
			u.Shutdown = 3
			e.Shutdown = sk_opts.SkShutdown(u.Shutdown).Enum()
		}
	}
	if u.HasFile && len(name) > 0 {
		if err := r.unixFile(d, e, s); err != nil {
			return nil, err
		}
	}
	if err := r.unixState(d, u, e, s); err != nil {
		return nil, err
	}
	r.blob(unixBlob(d.id), sock.EncodeUnix(s))
	return &fdinfo.FileEntry{Usk: e}, nil
}

// unixState records what the socket has of its peer, its queue and, for a listener, what waits to be accepted.
func (r *dump) unixState(d *description, u *sock.UnixInfo, e *sk_unix.UnixSkEntry, s *sock.UnixState) error {
	var err error
	if s.Cred, s.Groups, err = sock.PeerCred(d.fd); err != nil {
		return err
	}
	if s.Cred != nil {
		if s.Cred, err = r.peerCred(d, s.Cred); err != nil {
			return err
		}
	}
	if uint32(u.State) == unixListening {
		*e.Backlog = u.Backlog
		return r.unixPending(d, u, s)
	}
	if u.HasPeer {
		if s.PeerName, err = sock.UnixPeerName(d.fd); err != nil {
			return err
		}
	}
	if u.HasPeer && u.Peer == 0 && u.Type != unix.SOCK_DGRAM && u.Shutdown != 3 && !r.accepting(u.Ino) {
		return fmt.Errorf("its connection to %q has not been accepted, and the listener is outside of the tree: %w", s.PeerName, ErrBusy)
	}
	if peer := r.snap.bySocket(u.Peer); u.Type == unix.SOCK_STREAM && len(d.queue) > 0 && peer != nil {
		p, err := r.diag.Unix(u.Peer)
		if err != nil {
			return err
		}
		s.Weight = p.Backlog
	}
	s.Reset = u.Type != unix.SOCK_DGRAM && u.Peer == 0 && polled(d.fd, unix.POLLERR)
	if d.unseen {
		return r.unreadQueue(d, u, s)
	}
	for _, q := range d.queue {
		p := q.Packet
		for _, f := range q.rights {
			p.Rights = append(p.Rights, f.id)
		}
		if u.Type == unix.SOCK_DGRAM {
			if err := r.sender(d, u, &p); err != nil {
				return err
			}
		}
		s.Packets = append(s.Packets, p)
	}
	return nil
}

// peerCred is what SO_PEERCRED tells a process of the tree: asked there when the peer is not in the tree and ids differ.
func (r *dump) peerCred(d *description, c *sock.Cred) (*sock.Cred, error) {
	if known, err := r.credOf(c); err == nil {
		return known, nil
	}
	h := d.holders[0]
	if h.proc.Caller == nil || h.fd == inFlight {
		return &sock.Cred{UID: c.UID, GID: c.GID}, nil
	}
	pid, err := askPeerPID(h)
	if err != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	return &sock.Cred{PID: pid, UID: c.UID, GID: c.GID}, nil
}

// sender makes sure that a datagram can be sent again: by the peer, from a name, or to a name.
func (r *dump) sender(d *description, u *sock.UnixInfo, p *sock.Packet) error {
	if len(p.From) > 0 {
		return nil
	}
	name, err := sock.UnixName(d.fd)
	if err != nil || len(name) > 0 {
		return err
	}
	if peer := r.snap.bySocket(u.Peer); u.HasPeer && (u.Peer == 0 || peer != nil) {
		return nil
	}
	return fmt.Errorf("a datagram of %d bytes waits, neither the sender nor the socket has a name, and its peer is another one: %w", len(p.Data), ErrNotCarried)
}

// unixFile records the file that a socket is bound to, wherever it is by now: its path, owner and mode, and the directory that
// a relative name is relative to.
func (r *dump) unixFile(d *description, e *sk_unix.UnixSkEntry, s *sock.UnixState) (err error) {
	fd, err := sock.BoundFile(d.fd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	full, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return err
	}
	if st.Nlink == 0 {
		e.Deleted = proto.Bool(true)
		full = strings.TrimSuffix(full, " (deleted)")
	}
	inside, ok := inRoot(full, d.root)
	if !ok {
		return fmt.Errorf("it is bound to %s, outside of the root directory %s: %w", full, d.root, ErrNotCarried)
	}
	s.Path = inside
	e.FilePerms = &sk_unix.FilePermsEntry{Mode: proto.Uint32(st.Mode), Uid: proto.Uint32(st.Uid), Gid: proto.Uint32(st.Gid)}
	name := string(e.GetName())
	if path.IsAbs(name) {
		return nil
	}
	if dir, ok := strings.CutSuffix(inside, "/"+path.Clean(name)); ok {
		e.NameDir = proto.String("/" + strings.TrimPrefix(dir, "/"))
		return nil
	}
	return nil // the directory was another one, or the file was renamed: the restore finds one that will do
}
