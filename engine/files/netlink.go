//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
)

var kindNetlink = &Kind{
	Name: "netlink socket", Type: fdinfo.FdTypes_NETLINKSK, Carried: true,
	Note: "of all protocols, with port, groups by their numbers, peer, filters and options; not while messages wait to be read or an answer is not complete",
	match: func(d *description) bool {
		s := d.socket()
		return s != nil && s.domain == unix.AF_NETLINK
	},
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		if p := dm.foreign(d); p != nil {
			return p
		}
		return checkOptions(d)
	},
	dump: dumpNetlink, open: openNetlink, settle: func(r *Restorer, e *fdinfo.FileEntry) error {
		fd, err := r.descriptor(e.GetId())
		if err != nil {
			return err
		}
		return r.lateOptions(e.GetId(), fd, e.Nlsk.GetOpts())
	},
}

// netlinkBlob holds the type of the socket, SOCK_RAW or SOCK_DGRAM (4 bytes, little-endian).
func netlinkBlob(id uint32) string { return fmt.Sprintf("netlink-%d", id) }

func dumpNetlink(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	table, err := r.procNet(d, "netlink")
	if err != nil {
		return nil, err
	}
	if sock.NetlinkBusy(table, d.stat.Ino) || polled(d.fd, unix.POLLIN|unix.POLLERR) {
		return nil, fmt.Errorf("messages wait to be read, or an answer is not complete: %w", ErrBusy)
	}
	n, err := sock.SaveNetlink(d.fd)
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
	r.blob(netlinkBlob(d.id), binary.LittleEndian.AppendUint32(nil, uint32(d.sock.typ)))
	return &fdinfo.FileEntry{Nlsk: &sk_netlink.NetlinkSkEntry{Id: proto.Uint32(d.id), Ino: proto.Uint32(uint32(d.stat.Ino)), Protocol: proto.Uint32(uint32(d.sock.proto)),
		State: proto.Uint32(0), Flags: proto.Uint32(uint32(d.flags)), Portid: proto.Uint32(n.PortID), Groups: n.Groups, DstPortid: proto.Uint32(n.DstPortID),
		DstGroup: proto.Uint32(n.DstGroups), Fown: owner, Opts: opts}}, nil
}

func openNetlink(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	typ := uint32(unix.SOCK_RAW)
	if b := r.cp.Blobs[netlinkBlob(e.GetId())]; len(b) == 4 {
		typ = binary.LittleEndian.Uint32(b)
	}
	if typ != unix.SOCK_RAW && typ != unix.SOCK_DGRAM {
		return fmt.Errorf("netlink socket of type %d", typ)
	}
	s := e.Nlsk
	fd, err := r.newSocket(e, unix.AF_NETLINK, int(typ), int(s.GetProtocol()))
	if err != nil {
		return err
	}
	if err := r.earlyOptions(e.GetId(), fd, s.GetOpts()); err != nil {
		return err
	}
	return sock.RestoreNetlink(fd, &sock.Netlink{PortID: s.GetPortid(), DstPortID: s.GetDstPortid(), DstGroups: s.GetDstGroup(), Groups: s.GetGroups()})
}

// newSocket makes a socket for a record in the network namespace of the tree.
func (r *Restorer) newSocket(e *fdinfo.FileEntry, domain, typ, protocol int) (fd int, err error) {
	err = sock.In(sock.Place{NetNS: r.netNS(e.GetId())}, func() (err error) {
		fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("socket of family %d, type %d, protocol %d: %w", domain, typ, protocol, err)
	}
	r.put(e.GetId(), fd)
	return fd, nil
}
