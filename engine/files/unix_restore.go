//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"

	"migrate/engine/sock"
)

// unixEntry finds a record by the inode number of its socket; nil when there is none.
func (r *Restorer) unixEntry(ino uint32) *fdinfo.FileEntry {
	for _, e := range r.entries() {
		if ino != 0 && e.Usk != nil && e.Usk.GetIno() == ino {
			return e
		}
	}
	return nil
}

// listenerOf finds the listener on which the socket was accepted: an accepted socket has the listener's name.
func (r *Restorer) listenerOf(e *sk_unix.UnixSkEntry) *fdinfo.FileEntry {
	for _, l := range r.entries() {
		if l.Usk != nil && l.Usk.GetState() == unixListening && len(e.GetName()) > 0 && string(l.Usk.GetName()) == string(e.GetName()) {
			return l
		}
	}
	return nil
}

// mutual tells whether two sockets are each other's peer.
func mutual(a, b *sk_unix.UnixSkEntry) bool {
	return a.GetPeer() == b.GetIno() && b.GetPeer() == a.GetIno() && a.GetType() == b.GetType()
}

func openUnix(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	u := e.Usk
	if t := u.GetType(); t != unix.SOCK_STREAM && t != unix.SOCK_DGRAM && t != unix.SOCK_SEQPACKET {
		return fmt.Errorf("unix socket of type %d", t)
	}
	peer := r.unixEntry(u.GetPeer())
	switch {
	case u.GetState() == unixConnected && peer != nil && mutual(u, peer.Usk):
		if r.listenerOf(u) != nil || r.listenerOf(peer.Usk) != nil {
			return nil // connectUnix makes it when the listener is there
		}
		return r.unixPair(e, peer)
	case u.GetState() == unixConnected && u.GetPeer() == 0 && r.cp.Blobs[serviceBlob(e.GetId())] == nil:
		return r.unixOrphan(e)
	}
	return r.unixSingle(e)
}

// unixPair makes both ends of a connection.
func (r *Restorer) unixPair(a, b *fdinfo.FileEntry) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, int(a.Usk.GetType())|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	r.put(a.GetId(), fds[0])
	r.put(b.GetId(), fds[1])
	return errors.Join(r.bindUnix(a, fds[0]), r.bindUnix(b, fds[1]))
}

// unixOrphan makes an end whose peer is gone: what the peer sent is still there, then comes the end.
func (r *Restorer) unixOrphan(e *fdinfo.FileEntry) (err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, int(e.Usk.GetType())|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fds[1])) }()
	r.put(e.GetId(), fds[0])
	if err := r.bindUnix(e, fds[0]); err != nil {
		return err
	}
	return r.fillUnix(e, fds[1])
}

func (r *Restorer) fillUnix(e *fdinfo.FileEntry, from int) error {
	msgs, err := sock.DecodeQueue(r.cp.Blobs[unixBlob(e.GetId())])
	if err != nil {
		return fmt.Errorf("blob %s: %w", unixBlob(e.GetId()), err)
	}
	return sock.Fill(from, msgs)
}

func (r *Restorer) unixSingle(e *fdinfo.FileEntry) error {
	var fd int
	err := sock.In(sock.Place{NetNS: r.env.NetNS}, func() (err error) {
		fd, err = unix.Socket(unix.AF_UNIX, int(e.Usk.GetType())|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("unix socket: %w", err)
	}
	r.put(e.GetId(), fd)
	if err := r.bindUnix(e, fd); err != nil {
		return err
	}
	if e.Usk.GetState() == unixListening {
		if err := unix.Listen(fd, int(e.Usk.GetBacklog())); err != nil {
			return fmt.Errorf("listen on %q: %w", e.Usk.GetName(), err)
		}
	}
	return nil
}

// connectUnix makes the connections that go through a listener, those of datagram sockets to one name, and then fills the
// queues and sets what must come last.
func connectUnix(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	u := e.Usk
	peer := r.unixEntry(u.GetPeer())
	if r.files[e.GetId()] == nil {
		if err := r.unixAccept(e, peer); err != nil {
			return err
		}
	}
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	if name := r.cp.Blobs[serviceBlob(e.GetId())]; len(name) > 0 {
		p := sock.Place{NetNS: r.env.NetNS, Root: r.rootPath(r.homes[e.GetId()].vpid)}
		return sock.In(p, func() error { return sock.ConnectUnix(fd, name) })
	}
	if peer != nil && r.files[peer.GetId()] != nil {
		from, err := r.descriptor(peer.GetId())
		if err != nil {
			return err
		}
		if mutual(u, peer.Usk) {
			err = r.fillUnix(e, from)
		} else {
			err = r.inPlace(e, func() error { return sock.ConnectUnix(fd, peer.Usk.GetName()) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// finishUnix runs when all queues are filled.
func (r *Restorer) finishUnix(e *fdinfo.FileEntry) error {
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	if how := int(e.Usk.GetShutdown()); how != 0 && e.Usk.GetPeer() != 0 {
		if err := unix.Shutdown(fd, how-1); err != nil { // SHUT_RD, SHUT_WR and SHUT_RDWR are one less than the bits
			return fmt.Errorf("shutdown %d: %w", how, err)
		}
	}
	return r.lateOptions(e.GetId(), fd, e.Usk.GetOpts())
}

// unixAccept connects through the listener, so that names and credentials come out as they were.
func (r *Restorer) unixAccept(a, b *fdinfo.FileEntry) error {
	if b == nil {
		return errors.New("its peer is not in the checkpoint")
	}
	server, client := a, b
	l := r.listenerOf(a.Usk)
	if l == nil {
		server, client = b, a
		if l = r.listenerOf(b.Usk); l == nil {
			return errors.New("neither end was accepted on a listener of the checkpoint")
		}
	}
	lfd, err := r.descriptor(l.GetId())
	if err != nil {
		return err
	}
	if err := r.unixSingle(client); err != nil {
		return err
	}
	cfd, err := r.descriptor(client.GetId())
	if err != nil {
		return err
	}
	if err := r.inPlace(l, func() error { return sock.ConnectUnix(cfd, l.Usk.GetName()) }); err != nil {
		return err
	}
	sfd, _, err := unix.Accept4(lfd, unix.SOCK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("accept on %q: %w", l.Usk.GetName(), err)
	}
	r.put(server.GetId(), sfd)
	return nil
}

// inPlace runs fn where the name of a socket means what it meant to its process.
func (r *Restorer) inPlace(e *fdinfo.FileEntry, fn func() error) error {
	p := sock.Place{NetNS: r.env.NetNS}
	if name := e.Usk.GetName(); len(name) > 0 && name[0] != 0 {
		p.Root, p.Dir = r.rootPath(r.homes[e.GetId()].vpid), e.Usk.GetNameDir()
	}
	return sock.In(p, fn)
}

// A boundPath is a socket file that was made here. If there was a file before, such as that of the source on a shared
// file system, it stands aside until the end is known.
type boundPath struct {
	dir        int // descriptor of the directory
	base, side string
	gone       bool // it was deleted at the source
}

// bindUnix gives a socket its name. An accepted socket has its listener's, and is not bound again.
func (r *Restorer) bindUnix(e *fdinfo.FileEntry, fd int) error {
	name := e.Usk.GetName()
	if len(name) == 0 {
		return nil
	}
	if name[0] == 0 {
		return r.inPlace(e, func() error { return sock.BindUnix(fd, name) })
	}
	full := string(name)
	if !strings.HasPrefix(full, "/") {
		full = path.Join("/", e.Usk.GetNameDir(), full)
	}
	root, err := r.rootOf(e.GetId())
	if err != nil {
		return err
	}
	dir, err := openIn(root, path.Dir(full), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return missing(path.Dir(full), err)
	}
	b := boundPath{dir: dir, base: path.Base(full), gone: e.Usk.GetDeleted()}
	var st unix.Stat_t
	if unix.Fstatat(dir, b.base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		b.side = fmt.Sprintf(".%s.migrate-%d", b.base, e.GetId())
		if err := unix.Renameat(dir, b.base, dir, b.side); err != nil {
			return errors.Join(fmt.Errorf("set %s aside: %w", full, err), unix.Close(dir))
		}
	}
	r.bound = append(r.bound, b)
	if err := r.inPlace(e, func() error { return sock.BindUnix(fd, name) }); err != nil {
		return err
	}
	if p := e.Usk.GetFilePerms(); p != nil {
		if err := unix.Fchownat(dir, b.base, int(p.GetUid()), int(p.GetGid()), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("owner of %s: %w", full, err)
		}
		if err := unix.Fchmodat(dir, b.base, p.GetMode()&0o7777, 0); err != nil {
			return fmt.Errorf("mode of %s: %w", full, err)
		}
	}
	return nil
}

// keepPaths removes the files that stand aside, and the new ones of sockets whose file was deleted at the source.
func (r *Restorer) keepPaths() error {
	var errs []error
	for _, b := range r.bound {
		switch {
		case b.gone && b.side != "":
			errs = append(errs, unix.Renameat(b.dir, b.side, b.dir, b.base))
		case b.gone:
			errs = append(errs, unix.Unlinkat(b.dir, b.base, 0))
		case b.side != "":
			errs = append(errs, unix.Unlinkat(b.dir, b.side, 0))
		}
		errs = append(errs, unix.Close(b.dir))
	}
	r.bound = nil
	return errors.Join(errs...)
}

// putBackPaths undoes bindUnix.
func (r *Restorer) putBackPaths() error {
	var errs []error
	for _, b := range r.bound {
		if b.side != "" {
			errs = append(errs, unix.Renameat(b.dir, b.side, b.dir, b.base))
		} else if err := unix.Unlinkat(b.dir, b.base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
		errs = append(errs, unix.Close(b.dir))
	}
	r.bound = nil
	return errors.Join(errs...)
}
