//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/packet-sock"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
)

var kindPacket = &Kind{
	Name: "packet socket", Type: fdinfo.FdTypes_PACKETSK, Carried: true,
	Note: "of all types, with interface by name, memberships, filters, rings, mapped or not, and options; packets that wait to be read are lost, as when its buffer " +
		"overflows, its statistics start anew, and the kernel begins again with the first frame of each ring: not one mapped whose next frame to be sent is another",
	match: func(d *description) bool {
		s := d.socket()
		return s != nil && s.domain == unix.AF_PACKET
	},
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		if p := dm.foreign(d); p != nil {
			return p
		}
		return checkOptions(d)
	},
	dump: dumpPacket, open: openPacket, connect: connectPacket, settle: func(r *Restorer, e *fdinfo.FileEntry) error {
		fd, err := r.descriptor(e.GetId())
		if err != nil {
			return err
		}
		return r.lateOptions(e.GetId(), fd, e.Psk.GetOpts())
	},
}

// packetBlob holds the names of interfaces: that which the socket is bound to and those of its memberships, in their order. Each
// has its length (4 bytes, little-endian) before it.
func packetBlob(id uint32) string { return fmt.Sprintf("packet-%d", id) }

func dumpPacket(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	p, err := r.diag.Packet(uint32(d.stat.Ino))
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
	e := &packet_sock.PacketSockEntry{Id: proto.Uint32(d.id), Type: proto.Uint32(uint32(d.sock.typ)), Protocol: proto.Uint32(uint32(p.Protocol)),
		Flags: proto.Uint32(uint32(d.flags)), Ifindex: proto.Uint32(p.Index), Fown: owner, Opts: opts, Version: proto.Uint32(0), Reserve: proto.Uint32(0),
		AuxData: proto.Bool(false), OrigDev: proto.Bool(false), VnetHdr: proto.Bool(false), Loss: proto.Bool(false), Timestamp: proto.Uint32(0),
		CopyThresh: proto.Uint32(p.CopyThresh), RxRing: ringEntry(p.RX), TxRing: ringEntry(p.TX)}
	if p.Fanout != nil {
		e.Fanout = proto.Uint32(*p.Fanout)
	}
	var names []byte
	add := func(index uint32) error {
		name, err := sock.DeviceName(d.fd, int(int32(index)))
		names = append(binary.LittleEndian.AppendUint32(names, uint32(len(name))), name...)
		return err
	}
	err = add(p.Index)
	for _, g := range p.Groups {
		e.Mclist = append(e.Mclist, &packet_sock.PacketMclist{Index: proto.Uint32(g.Index), Type: proto.Uint32(uint32(g.Type) | g.Count<<16), Addr: g.Addr})
		err = errors.Join(err, add(g.Index))
	}
	if err != nil {
		return nil, err
	}
	if err := r.packetRing(d, p); err != nil {
		return nil, err
	}
	r.blob(packetBlob(d.id), names)
	return &fdinfo.FileEntry{Psk: e}, nil
}

func ringEntry(r *sock.PacketRing) *packet_sock.PacketRing {
	if r == nil {
		return nil
	}
	return &packet_sock.PacketRing{BlockSize: proto.Uint32(r.BlockSize), BlockNr: proto.Uint32(r.BlockCount), FrameSize: proto.Uint32(r.FrameSize), FrameNr: proto.Uint32(r.FrameCount),
		RetireTmo: proto.Uint32(r.Timeout), SizeofPriv: proto.Uint32(r.PrivSize), Features: proto.Uint32(r.Features)}
}

func ringOf(e *packet_sock.PacketRing) *sock.PacketRing {
	if e == nil {
		return nil
	}
	return &sock.PacketRing{BlockSize: e.GetBlockSize(), BlockCount: e.GetBlockNr(), FrameSize: e.GetFrameSize(), FrameCount: e.GetFrameNr(),
		Timeout: e.GetRetireTmo(), PrivSize: e.GetSizeofPriv(), Features: e.GetFeatures()}
}

// packetInfo reads a record; its interfaces are those of the names here.
func (r *Restorer) packetInfo(e *fdinfo.FileEntry, fd int) (*sock.PacketInfo, string, error) {
	s, b := e.Psk, r.cp.Blobs[packetBlob(e.GetId())]
	next := func() (string, error) {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
			return "", fmt.Errorf("blob %s is too short", packetBlob(e.GetId()))
		}
		n := binary.LittleEndian.Uint32(b)
		name := string(b[4 : 4+n])
		b = b[4+n:]
		return name, nil
	}
	p := &sock.PacketInfo{Protocol: uint16(s.GetProtocol()), CopyThresh: s.GetCopyThresh(), RX: ringOf(s.GetRxRing()), TX: ringOf(s.GetTxRing()), Fanout: s.Fanout}
	device, err := next()
	if err != nil {
		return nil, "", err
	}
	for _, g := range s.GetMclist() {
		name, err := next()
		if err != nil {
			return nil, "", err
		}
		index, err := sock.DeviceIndex(fd, name)
		if err != nil {
			return nil, "", err
		}
		if len(g.GetAddr()) > 32 {
			return nil, "", fmt.Errorf("a membership with an address of %d bytes", len(g.GetAddr()))
		}
		p.Groups = append(p.Groups, sock.PacketGroup{Index: uint32(index), Type: uint16(g.GetType()), Count: max(1, g.GetType()>>16), Addr: g.GetAddr()})
	}
	return p, device, nil
}

// openPacket makes a socket that receives nothing yet: its protocol is given by binding it, or else by its filter.
func openPacket(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	fd, err := r.newSocket(e, unix.AF_PACKET, int(e.Psk.GetType()), r.packetProtocol(e))
	if err != nil {
		return err
	}
	if err := r.earlyOptions(e.GetId(), fd, e.Psk.GetOpts()); err != nil {
		return err
	}
	p, _, err := r.packetInfo(e, fd)
	if err != nil {
		return err
	}
	return p.SetRings(fd)
}

// packetProtocol is what a legacy socket is made with, in network byte order: it is bound to an interface alone.
func (r *Restorer) packetProtocol(e *fdinfo.FileEntry) int {
	if e.Psk.GetType() != unix.SOCK_PACKET {
		return 0
	}
	p := uint16(e.Psk.GetProtocol())
	return int(p<<8 | p>>8)
}

func connectPacket(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	p, device, err := r.packetInfo(e, fd)
	if err != nil {
		return err
	}
	if err := sock.BindPacket(fd, p.Protocol, device, e.Psk.GetType() == unix.SOCK_PACKET); err != nil {
		return err
	}
	return p.FinishPacket(fd)
}
