//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
	"migrate/tcprepair"
)

var kindTCP = &Kind{
	Name: "TCP socket", Type: fdinfo.FdTypes_INETSK, Carried: true,
	Note: "in every state, IPv4 and IPv6, with queues, urgent data, options and MD5 keys, and listeners with the connections that wait there to be " +
		"accepted (Linux 6.9; else, and with MPTCP, those must pass first); a socket that is connecting sends its SYN again; what no option shows " +
		"(a stored SYN, MD5 keys of a socket that never listened or connected) is lost",
	match: func(d *description) bool {
		s := d.socket()
		return s != nil && (s.domain == unix.AF_INET || s.domain == unix.AF_INET6) && s.typ == unix.SOCK_STREAM &&
			(s.proto == unix.IPPROTO_TCP || s.proto == unix.IPPROTO_MPTCP)
	},
	parallel: true,
	mine: func(e *fdinfo.FileEntry) bool {
		return e.Isk.GetType() == unix.SOCK_STREAM && (e.Isk.GetProto() == unix.IPPROTO_TCP || e.Isk.GetProto() == unix.IPPROTO_MPTCP)
	},
	check: checkTCP, dump: dumpTCP, open: openTCP, connect: connectTCP, settle: settleTCP,
}

func tcpState(d *description) (tcprepair.ConnState, error) {
	i, err := unix.GetsockoptTCPInfo(d.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, fmt.Errorf("TCP_INFO: %w", err)
	}
	return tcprepair.ConnState(i.State), nil
}

// foreign refuses sockets of another network namespace than the tree's.
func (d *Dumper) foreign(desc *description) []problem {
	if _, err := sock.NetNSCookie(desc.fd); err != nil {
		return []problem{{reason: err.Error()}}
	}
	if d.diag.of(desc) == nil {
		return []problem{{reason: "it is a socket of another network namespace than that of the first process"}}
	}
	return nil
}

func checkTCP(_ context.Context, dm *Dumper, d *description) []problem {
	if p := dm.foreign(d); p != nil {
		return p
	}
	if dm.frozen {
		return nil // Dump finds all else itself
	}
	state, err := tcpState(d)
	switch {
	case err != nil:
		return []problem{{reason: err.Error()}}
	case state == tcprepair.Listen:
		_, err = tcprepair.SaveListener(d.osFile())
		var waits *tcprepair.WaitingError
		if errors.As(err, &waits) {
			err = nil // by the time of the freeze it will be another number
		}
	case state == tcprepair.Closed:
		_, err = tcprepair.SaveIdle(d.osFile(), netip.AddrPort{}, dm.endOf(d))
	case state == tcprepair.SynSent || state == tcprepair.SynRecv:
		// These pass by themselves; if not, Dump says so.
	case d.sock.proto == unix.IPPROTO_MPTCP:
		return []problem{{reason: "it is a connection of Multipath TCP", remedy: "make the program use plain TCP for it"}}
	default:
		if n, e := unix.GetsockoptString(d.fd, unix.IPPROTO_TCP, unix.TCP_ULP); e == nil && n != "" {
			return []problem{{reason: "the connection has the upper layer protocol " + n + " in the kernel"}}
		}
	}
	var refused *tcprepair.NotCarriedError
	if errors.As(err, &refused) {
		return []problem{{reason: refused.Socket + ": " + refused.What, remedy: refused.Remedy}}
	}
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	return nil
}

func tcpBlob(id uint32) string    { return fmt.Sprintf("tcp-%d", id) }
func listenBlob(id uint32) string { return fmt.Sprintf("listen-%d", id) }
func idleBlob(id uint32) string   { return fmt.Sprintf("tcpidle-%d", id) }

func dumpTCP(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	state, err := tcpState(d)
	if err != nil {
		return nil, err
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	e := &sk_inet.InetSkEntry{Id: proto.Uint32(d.id), Ino: proto.Uint32(uint32(d.stat.Ino)), Family: proto.Uint32(uint32(d.sock.domain)),
		Type: proto.Uint32(unix.SOCK_STREAM), Proto: proto.Uint32(uint32(d.sock.proto)), State: proto.Uint32(uint32(state)),
		SrcPort: proto.Uint32(0), DstPort: proto.Uint32(0), Flags: proto.Uint32(uint32(d.flags)), Backlog: proto.Uint32(0), Fown: owner}
	switch state {
	case tcprepair.Closed, tcprepair.SynSent:
		err = r.dumpIdle(d, e)
	case tcprepair.SynRecv:
		return nil, fmt.Errorf("the socket is connecting (%v): %w", state, ErrBusy)
	case tcprepair.Listen:
		err = r.dumpListener(d, e)
	default:
		err = r.dumpConnection(d, e)
	}
	if err != nil {
		return nil, err
	}
	return &fdinfo.FileEntry{Isk: e}, nil
}

func (r *dump) dumpListener(d *description, e *sk_inet.InetSkEntry) error {
	l, err := tcprepair.SaveListener(d.osFile())
	var waits *tcprepair.WaitingError
	if errors.As(err, &waits) && r.requests != nil && !l.MPTCP {
		err = r.dumpQueue(d, l.Local, waits)
	}
	if errors.As(err, &waits) {
		return fmt.Errorf("%w: %w", err, ErrBusy)
	}
	if err != nil {
		return notCarried(err)
	}
	half, err := tcprepair.HalfOpen(d.osFile())
	if err != nil {
		return err
	}
	if half > 0 && !r.opts.LockConnections { // behind a lock their peers begin anew
		return fmt.Errorf("%d connections to %v are being opened: %w", half, l.Local, ErrBusy)
	}
	e.SrcAddr, *e.SrcPort = words(l.Local.Addr()), uint32(l.Local.Port())
	*e.Backlog = uint32(l.Backlog)
	e.Opts = bareOptions(l.Buffers, l.ReuseAddr)
	setKeys(&l.Settings, r.tcpInfo[uint32(d.stat.Ino)])
	r.blob(listenBlob(d.id), sock.EncodeListener(l))
	return nil
}

func (r *dump) dumpIdle(d *description, e *sk_inet.InetSkEntry) error {
	s, err := tcprepair.SaveIdle(d.osFile(), r.tcpInfo[uint32(d.stat.Ino)].Remote, r.endOf(d))
	if err != nil {
		return notCarried(err)
	}
	e.SrcAddr, *e.SrcPort = words(s.Local.Addr()), uint32(s.Local.Port())
	e.DstAddr, *e.DstPort = words(s.Remote.Addr()), uint32(s.Remote.Port())
	e.Opts = bareOptions(s.Buffers, s.ReuseAddr)
	r.blob(idleBlob(d.id), sock.EncodeIdle(s))
	return nil
}

func (r *dump) dumpConnection(d *description, e *sk_inet.InetSkEntry) error {
	p, err := tcprepair.Pause(d.osFile())
	if err != nil {
		return notCarried(err)
	}
	saved := &pausedConn{ino: uint32(d.stat.Ino), conn: p}
	r.mu.Lock()
	r.paused = append(r.paused, saved)
	r.mu.Unlock()
	s, err := p.Save()
	if err != nil {
		return notCarried(err)
	}
	setKeys(&s.Settings, r.tcpInfo[uint32(d.stat.Ino)])
	saved.state = s
	e.SrcAddr, *e.SrcPort = words(s.Local.Addr()), uint32(s.Local.Port())
	e.DstAddr, *e.DstPort = words(s.Remote.Addr()), uint32(s.Remote.Port())
	e.Opts = bareOptions(s.Buffers, s.ReuseAddr)
	r.blob(tcpBlob(d.id), sock.EncodeTCP(s))
	return nil
}

// setKeys adds what the socket itself does not tell.
func setKeys(s *tcprepair.Settings, i sock.TCPInfo) {
	if len(i.Keys) > 0 {
		s.Values[tcprepair.KeysMD5] = i.Keys
	}
}

// notCarried marks the refusals of package tcprepair as such.
func notCarried(err error) error {
	var refused *tcprepair.NotCarriedError
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", err, ErrNotCarried)
	}
	return err
}

// words are the bytes of an address as the image has them: words in network byte order.
func words(a netip.Addr) []uint32 {
	b := a.AsSlice()
	out := make([]uint32, 0, 4)
	for ; len(b) >= 4; b = b[4:] {
		out = append(out, binary.LittleEndian.Uint32(b))
	}
	return out
}

// bareOptions fill what the record requires; the blob has all.
func bareOptions(b tcprepair.Buffers, reuse bool) *sk_opts.SkOptsEntry {
	zero := func() *uint64 { return proto.Uint64(0) }
	return &sk_opts.SkOptsEntry{SoSndbuf: proto.Uint32(b.Send), SoRcvbuf: proto.Uint32(b.Recv), SoSndTmoSec: zero(), SoSndTmoUsec: zero(),
		SoRcvTmoSec: zero(), SoRcvTmoUsec: zero(), Reuseaddr: proto.Bool(reuse)}
}

// freshSockets makes all internet sockets of the checkpoint in one visit to each network namespace.
func (r *Restorer) freshSockets() error {
	if err := r.freshIn(r.env.NetNS); err != nil {
		return err
	}
	seen := map[*os.File]bool{}
	for _, net := range r.nets {
		if !seen[net] {
			seen[net] = true
			if err := r.freshIn(net); err != nil {
				return err
			}
		}
	}
	return nil
}

// freshIn makes those of one network namespace.
func (r *Restorer) freshIn(net *os.File) error {
	return sock.In(sock.Place{NetNS: net}, func() error {
		for _, e := range r.entries() {
			s := e.Isk
			if e.GetType() != fdinfo.FdTypes_INETSK || r.netNS(e.GetId()) != net {
				continue
			}
			fd, err := unix.Socket(int(s.GetFamily()), int(s.GetType())|unix.SOCK_CLOEXEC, int(s.GetProto()))
			if err != nil {
				return r.blame(e, fmt.Errorf("socket of family %d, protocol %d: %w", s.GetFamily(), s.GetProto(), err))
			}
			r.fresh[e.GetId()] = r.put(e.GetId(), fd)
		}
		return nil
	})
}

// openTCP restores listeners, which come before connections on the same port.
func openTCP(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	if tcprepair.ConnState(e.Isk.GetState()) != tcprepair.Listen {
		return nil
	}
	l, err := sock.DecodeListener(r.cp.Blobs[listenBlob(e.GetId())])
	if err != nil {
		return fmt.Errorf("blob %s: %w", listenBlob(e.GetId()), err)
	}
	return tcprepair.RestoreListener(r.fresh[e.GetId()], l)
}

func connectTCP(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	switch tcprepair.ConnState(e.Isk.GetState()) {
	case tcprepair.Listen:
		return nil
	case tcprepair.Closed, tcprepair.SynSent:
		return r.restoreIdle(e)
	}
	s, err := sock.DecodeTCP(r.cp.Blobs[tcpBlob(e.GetId())])
	if err != nil {
		return fmt.Errorf("blob %s: %w", tcpBlob(e.GetId()), err)
	}
	h, err := tcprepair.Restore(r.fresh[e.GetId()], s)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = append(r.held, heldConn{conn: h, state: s})
	return nil
}

func (r *Restorer) restoreIdle(e *fdinfo.FileEntry) error {
	s, err := sock.DecodeIdle(r.cp.Blobs[idleBlob(e.GetId())])
	if err != nil {
		return fmt.Errorf("blob %s: %w", idleBlob(e.GetId()), err)
	}
	if err := tcprepair.RestoreIdle(r.fresh[e.GetId()], s); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connecting(r.fresh[e.GetId()], s)
	return nil
}

// connecting leaves a socket that was connecting to Release.
func (r *Restorer) connecting(f *os.File, s *tcprepair.Idle) {
	if s.TCP == tcprepair.SynSent {
		r.connects = append(r.connects, func() error { return tcprepair.Connect(f, s) })
	}
}
