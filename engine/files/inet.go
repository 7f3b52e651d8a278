//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
)

// Sockets of the internet protocols that have no connections.
var (
	kindUDP = inetKind("UDP socket", "UDP and UDP-Lite, bound and connected, with the datagrams that wait, multicast groups and options; not with errors "+
		"that wait, nor with part of a datagram (UDP_CORK, MSG_MORE; the latter alone is lost where the kernel cannot be read, BPF with BTF); IP_MULTICAST_IF by its address", unix.SOCK_DGRAM, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE)
	kindPing = inetKind("ping socket", "ICMP echo sockets (icmp(7)), with their identifier; not while answers wait to be read", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6)
	kindRaw  = inetKind("raw socket", "with protocol, addresses, groups, filters and options; not while packets wait to be read", unix.SOCK_RAW)
)

// inetKind is a row for sockets of a type and of the protocols listed, or of any.
func inetKind(name, note string, typ int, protocols ...int) *Kind {
	mine := func(t, p int) bool {
		for _, x := range protocols {
			if t == typ && p == x {
				return true
			}
		}
		return t == typ && len(protocols) == 0
	}
	return &Kind{
		Name: name, Type: fdinfo.FdTypes_INETSK, Carried: true, Note: note,
		match: func(d *description) bool {
			s := d.socket()
			return s != nil && (s.domain == unix.AF_INET || s.domain == unix.AF_INET6) && mine(s.typ, s.proto)
		},
		check: checkInet, dump: dumpInet,
		mine: func(e *fdinfo.FileEntry) bool { return mine(int(e.Isk.GetType()), int(e.Isk.GetProto())) },
		open: openInet, connect: connectInet, settle: settleInet,
	}
}

func isUDP(d *description) bool {
	return d.sock.typ == unix.SOCK_DGRAM && (d.sock.proto == unix.IPPROTO_UDP || d.sock.proto == unix.IPPROTO_UDPLITE)
}

func checkInet(_ context.Context, dm *Dumper, d *description) []problem {
	if p := dm.foreign(d); p != nil {
		return p
	}
	if p := checkOptions(d); p != nil {
		return p
	}
	if _, err := dm.saveInet(d); err != nil {
		return []problem{{reason: err.Error()}}
	}
	if err := dm.partial(d); err != nil {
		return []problem{{passing: errors.Is(err, ErrBusy), reason: err.Error()}}
	}
	return nil
}

// procNet reads a table of the network namespace of the tree; empty if this kernel has none.
func (d *Dumper) procNet(desc *description, name string) ([]byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", desc.holders[0].proc.PID, name))
	if os.IsNotExist(err) {
		return nil, nil
	}
	return b, err
}

// saveInet reads all of a socket but its queue.
func (d *Dumper) saveInet(desc *description) (*sock.Inet, error) {
	v4, err := d.procNet(desc, "igmp")
	if err != nil {
		return nil, err
	}
	v6, err := d.procNet(desc, "igmp6")
	if err != nil {
		return nil, err
	}
	u, err := sock.SaveInet(desc.fd, sock.Candidates(v4, v6))
	if err != nil {
		return nil, err
	}
	if u.Remote.Port() == 0 && !isUDP(desc) {
		table := "icmp"
		if u.Raw {
			table = "raw"
		}
		if u.V6 {
			table += "6"
		}
		text, err := d.procNet(desc, table)
		if err != nil {
			return nil, err
		}
		if peer, ok := sock.PeerIn(text, desc.stat.Ino); ok {
			u.Remote = netip.AddrPortFrom(peer, 0)
		}
	}
	if polled(desc.fd, unix.POLLRDHUP) {
		u.Shutdown = 1
	}
	if polled(desc.fd, unix.POLLHUP) {
		u.Shutdown = 3
	}
	if isUDP(desc) && u.Local.Port() != 0 {
		all, err := d.diag.Datagrams(desc.sock.proto)
		if err != nil {
			return nil, err
		}
		if i, ok := all[uint32(desc.stat.Ino)]; ok {
			u.Shutdown = i.Shutdown
		}
	}
	return u, nil
}

// partial refuses a socket that holds part of a datagram (UDP_CORK in udp(7), MSG_MORE in send(2)), which nobody can read. Bytes that are not
// sent are part of one, or on their way in a device: the kernel's memory tells (struct udp_sock); without, a socket without UDP_CORK may have sent them.
func (d *Dumper) partial(desc *description) error {
	if !isUDP(desc) {
		return nil
	}
	n, err := unix.IoctlGetInt(desc.fd, unix.TIOCOUTQ)
	if err != nil {
		return fmt.Errorf("SIOCOUTQ: %w", err)
	}
	if n == 0 {
		return nil
	}
	pending, err := d.pendingDatagram(desc)
	if err != nil { // this kernel has no types for programs
		cork, err := unix.GetsockoptInt(desc.fd, unix.IPPROTO_UDP, unix.UDP_CORK)
		if err != nil {
			return fmt.Errorf("UDP_CORK: %w", err)
		}
		pending = cork != 0
	}
	if pending {
		return fmt.Errorf("a datagram that is not complete waits to be sent (UDP_CORK, MSG_MORE): %w", ErrBusy)
	}
	return nil
}

func (d *Dumper) pendingDatagram(desc *description) (bool, error) {
	k, err := d.kernelMemory()
	if err != nil {
		return false, err
	}
	file, err := k.File(desc.fd)
	if err != nil {
		return false, err
	}
	socket, err := k.Follow(file, "private_data", "socket")
	if err != nil {
		return false, err
	}
	s, err := k.Follow(socket, "sk", "udp_sock") // begins with its struct sock
	if err != nil {
		return false, err
	}
	family, err := s.Uint32("pending")
	return family != 0, err
}

func inetBlob(id uint32) string { return fmt.Sprintf("inet-%d", id) }

func dumpInet(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	u, err := r.saveInet(d)
	if err != nil {
		return nil, err
	}
	if polled(d.fd, unix.POLLERR) {
		return nil, fmt.Errorf("errors wait at the socket %v: %w", u.Local, ErrBusy)
	}
	if err := r.partial(d); err != nil {
		return nil, fmt.Errorf("the socket %v: %w", u.Local, err)
	}
	if isUDP(d) && u.Local.Port() != 0 {
		if u.Queue, err = sock.PeekDatagrams(d.fd, u); err != nil {
			return nil, fmt.Errorf("its queue: %w", err)
		}
	} else if u.Shutdown&1 == 0 && polled(d.fd, unix.POLLIN) { // not TIOCINQ, which ping sockets do not have (net/ipv4/ping.c)
		return nil, fmt.Errorf("packets wait at the socket %v: %w", u.Local, ErrBusy)
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	opts, err := r.sockOptions(d)
	if err != nil {
		return nil, err
	}
	state := uint32(unixClosed)
	if u.Remote.Port() != 0 || !u.Remote.Addr().IsUnspecified() {
		state = unixConnected
	}
	r.blob(inetBlob(d.id), sock.EncodeInet(u))
	return &fdinfo.FileEntry{Isk: &sk_inet.InetSkEntry{Id: proto.Uint32(d.id), Ino: proto.Uint32(uint32(d.stat.Ino)), Family: proto.Uint32(uint32(d.sock.domain)),
		Type: proto.Uint32(uint32(d.sock.typ)), Proto: proto.Uint32(uint32(d.sock.proto)), State: proto.Uint32(state), Flags: proto.Uint32(uint32(d.flags)),
		Backlog: proto.Uint32(0), Fown: owner, Opts: opts, SrcAddr: words(u.Local.Addr()), SrcPort: proto.Uint32(uint32(u.Local.Port())),
		DstAddr: words(u.Remote.Addr()), DstPort: proto.Uint32(uint32(u.Remote.Port()))}}, nil
}

func (r *Restorer) inet(e *fdinfo.FileEntry) (*sock.Inet, int, error) {
	u, err := sock.DecodeInet(r.cp.Blobs[inetBlob(e.GetId())])
	if err != nil {
		return nil, -1, fmt.Errorf("blob %s: %w", inetBlob(e.GetId()), err)
	}
	fd, err := r.descriptor(e.GetId())
	return u, fd, err
}

func openInet(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	u, fd, err := r.inet(e)
	if err != nil {
		return err
	}
	if err := r.earlyOptions(e.GetId(), fd, e.Isk.GetOpts()); err != nil {
		return err
	}
	return sock.BindInet(fd, u)
}

func connectInet(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	u, fd, err := r.inet(e)
	if err != nil {
		return err
	}
	return sock.ConnectInet(fd, u)
}

func settleInet(r *Restorer, e *fdinfo.FileEntry) error {
	u, fd, err := r.inet(e)
	if err != nil {
		return err
	}
	if len(u.Queue) > 0 {
		err := sock.In(sock.Place{NetNS: r.netNS(e.GetId())}, func() error { return sock.Inject(fd, u, int(e.Isk.GetProto())) })
		if err != nil {
			return err
		}
	}
	if err := sock.Shut(fd, u); err != nil {
		return err
	}
	return r.lateOptions(e.GetId(), fd, e.Isk.GetOpts())
}
