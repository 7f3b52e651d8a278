//go:build linux

package files

import (
	"context"
	"fmt"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
)

// A UDP socket's datagrams have come from anywhere, so they cannot be put into a queue again: it must be empty.
var kindUDP = &Kind{
	Name: "UDP socket", Type: fdinfo.FdTypes_INETSK, Carried: true,
	Note: "bound and connected; not while datagrams wait to be read, nor unconnected ones where somebody has joined a multicast group",
	match: func(d *description) bool {
		s := d.socket()
		return s != nil && (s.domain == unix.AF_INET || s.domain == unix.AF_INET6) && s.typ == unix.SOCK_DGRAM && s.proto == unix.IPPROTO_UDP
	},
	check: checkUDP, dump: dumpUDP,
	mine: func(e *fdinfo.FileEntry) bool { return e.Isk.GetProto() == unix.IPPROTO_UDP },
	open: openUDP,
}

func checkUDP(_ context.Context, dm *Dumper, d *description) []problem {
	if p := dm.foreign(d); p != nil {
		return p
	}
	u, err := sock.SaveUDP(d.fd)
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	if p := checkOptions(d); p != nil {
		return p
	}
	if u.Local.Port() == 0 || u.Remote.Port() != 0 {
		return nil
	}
	groups, err := sock.MulticastGroups(d.holders[0].proc.PID)
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	if len(groups) > 0 {
		return []problem{{reason: fmt.Sprintf("the UDP socket %v may have joined a multicast group, as somebody in its network namespace has (%s)", u.Local, strings.Join(groups, ", ")),
			remedy: "run the program in a network namespace of its own (migrate run)"}}
	}
	return nil
}

func udpBlob(id uint32) string { return fmt.Sprintf("udp-%d", id) }

func dumpUDP(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	u, err := sock.SaveUDP(d.fd)
	if err != nil {
		return nil, err
	}
	if polled(d.fd, unix.POLLIN|unix.POLLERR) {
		return nil, fmt.Errorf("datagrams or errors wait at the UDP socket %v: %w", u.Local, ErrBusy)
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
	if u.Remote.Port() != 0 {
		state = unixConnected
	}
	r.blob(udpBlob(d.id), sock.EncodeUDP(u))
	return &fdinfo.FileEntry{Isk: &sk_inet.InetSkEntry{Id: proto.Uint32(d.id), Ino: proto.Uint32(uint32(d.stat.Ino)), Family: proto.Uint32(uint32(d.sock.domain)),
		Type: proto.Uint32(unix.SOCK_DGRAM), Proto: proto.Uint32(unix.IPPROTO_UDP), State: proto.Uint32(state), Flags: proto.Uint32(uint32(d.flags)),
		Backlog: proto.Uint32(0), Fown: owner, Opts: opts, SrcAddr: words(u.Local.Addr()), SrcPort: proto.Uint32(uint32(u.Local.Port())),
		DstAddr: words(u.Remote.Addr()), DstPort: proto.Uint32(uint32(u.Remote.Port()))}}, nil
}

func openUDP(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	u, err := sock.DecodeUDP(r.cp.Blobs[udpBlob(e.GetId())])
	if err != nil {
		return fmt.Errorf("blob %s: %w", udpBlob(e.GetId()), err)
	}
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	if err := r.earlyOptions(e.GetId(), fd, e.Isk.GetOpts()); err != nil {
		return err
	}
	if err := sock.RestoreUDP(fd, u); err != nil {
		return err
	}
	return r.lateOptions(e.GetId(), fd, e.Isk.GetOpts())
}
