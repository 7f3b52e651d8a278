//go:build linux

package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

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
	Note: "pairs and connections within the tree with what waits in both directions, and listeners; datagrams to a path outside, such as /dev/log; " +
		"not with another peer outside of the tree, not with descriptors or credentials in flight; SO_PEERCRED tells the agent afterwards",
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
	for _, d := range s.list {
		if d.format() == unix.S_IFSOCK && uint32(d.stat.Ino) == ino {
			return d
		}
	}
	return nil
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
	if name := dm.service(d, u); name == nil && u.HasPeer && u.Peer != 0 && dm.current.bySocket(u.Peer) == nil {
		name, _ := sock.UnixPeerName(d.fd) // only for the message
		peer := fmt.Sprintf("socket %d", u.Peer)
		if len(name) > 0 {
			peer = fmt.Sprintf("%q", name)
		}
		out = append(out, problem{reason: "its peer is outside of the tree: " + peer})
	}
	return append(out, checkOptions(d)...)
}

// service is the path of the peer of a datagram socket that is outside of the tree, such as /dev/log: the socket only ever
// sends there, so at the destination it is connected to whoever has that path. nil for all other sockets.
func (d *Dumper) service(desc *description, u *sock.UnixInfo) []byte {
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
	if name := r.service(d, u); name != nil {
		r.blob(serviceBlob(d.id), name)
	}
	if u.HasFile {
		if err := r.unixFile(d, u, e); err != nil {
			return nil, err
		}
	}
	if err := r.unixState(d, u, e); err != nil {
		return nil, err
	}
	return &fdinfo.FileEntry{Usk: e}, nil
}

// unixState looks at what differs between listeners, connections and others, and peeks the queue.
func (r *dump) unixState(d *description, u *sock.UnixInfo, e *sk_unix.UnixSkEntry) error {
	if uint32(u.State) == unixListening {
		if u.Queue > 0 {
			return fmt.Errorf("%d connections wait to be accepted: %w", u.Queue, ErrBusy)
		}
		*e.Backlog = u.Backlog
		return nil
	}
	stream := u.Type == unix.SOCK_STREAM
	if u.HasPeer && u.Peer == 0 && u.Type != unix.SOCK_DGRAM && u.Shutdown != 3 {
		return fmt.Errorf("its peer has not accepted the connection: %w", ErrBusy)
	}
	if uint32(u.State) == unixClosed && u.Type != unix.SOCK_DGRAM {
		return nil
	}
	if !polled(d.fd, unix.POLLIN) {
		return nil
	}
	msgs, err := sock.Peek(d.fd, stream || u.Shutdown&1 != 0)
	if errors.Is(err, sock.ErrAncillary) {
		return fmt.Errorf("its queue: %w: %w", err, ErrNotCarried)
	}
	if err != nil {
		return fmt.Errorf("its queue: %w", err)
	}
	if len(msgs) == 0 {
		return nil
	}
	if !u.HasPeer || r.service(d, u) != nil {
		return fmt.Errorf("%d datagrams wait and it has no peer in the tree that could have sent them: %w", len(msgs), ErrNotCarried)
	}
	for i := range msgs {
		if err := r.fromPeer(u, msgs[i].From); err != nil {
			return err
		}
		msgs[i].From = nil
	}
	r.blob(unixBlob(d.id), sock.EncodeQueue(msgs))
	return nil
}

// fromPeer makes sure that a datagram came from the socket's peer, which will send it again.
func (r *dump) fromPeer(u *sock.UnixInfo, from []byte) error {
	if len(from) <= 2 {
		return nil
	}
	if peer := r.snap.bySocket(u.Peer); peer != nil {
		name, err := sock.UnixName(peer.fd)
		if err == nil && bytes.Equal(bytes.TrimRight(from[2:], "\x00"), bytes.TrimRight(name, "\x00")) {
			return nil
		}
	}
	return fmt.Errorf("a datagram from %q waits, which is not its peer: %w", from[2:], ErrNotCarried)
}

// unixFile records owner and mode of the file that a socket is bound to, and the directory that a relative path is relative to.
func (r *dump) unixFile(d *description, u *sock.UnixInfo, e *sk_unix.UnixSkEntry) error {
	h := d.holders[0]
	path := string(e.GetName())
	if path == "" {
		return nil
	}
	if path[0] != '/' {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", h.proc.PID))
		if err != nil {
			return fmt.Errorf("working directory: %w", err)
		}
		dir, ok := inRoot(cwd, d.root)
		if !ok {
			return fmt.Errorf("its path %q is relative to %s, outside of the root directory: %w", path, cwd, ErrNotCarried)
		}
		e.NameDir = proto.String(dir)
		path = dir + "/" + path
	}
	root, err := r.rootOf(d)
	if err != nil {
		return err
	}
	st, err := statIn(root, path)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || uint32(st.Ino) != u.FileIno {
		e.Deleted = proto.Bool(true)
		return nil
	}
	e.FilePerms = &sk_unix.FilePermsEntry{Mode: proto.Uint32(st.Mode), Uid: proto.Uint32(st.Uid), Gid: proto.Uint32(st.Gid)}
	return nil
}
