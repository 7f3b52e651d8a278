//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tun"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/sock"
)

// Flags of a tun or tap device that x/sys has, which TUNGETIFF tells: those that TUNSETIFF takes, and others.
const tunSettable = unix.IFF_TUN | unix.IFF_TAP | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE

// A descriptor of /dev/net/tun is a queue of a device, or nothing yet. A device that ends with its last queue is made anew, with its
// addresses; one that stays without any (TUNSETPERSIST) is attached to if it is there. Packets that wait in a queue are
// lost, as packets are.
var kindTun = &Kind{
	Name: "tun/tap", Type: fdinfo.FdTypes_TUNF, Carried: true,
	Note: "the device with its flags, owner, group, MTU and addresses, in a network namespace that is not the tree's own; packets that wait are lost, " +
		"and so are offloads, filters and routes by way of it",
	match: func(d *description) bool { return isDevice(d, unix.S_IFCHR, 10) && d.stat.Rdev == unix.Mkdev(10, 200) },
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		q, err := tunQueueOf(d.fd)
		if err == nil && q.name != "" {
			_, err = dm.tunDevice(d, q.name)
		}
		if err != nil {
			return []problem{{reason: err.Error()}}
		}
		return nil
	},
	dump: dumpTun, open: openTun,
}

// A tunQueue is one descriptor. Its blob is flags, send buffer and header size, 4 bytes each, little-endian; the name is in
// the record.
type tunQueue struct {
	name             string
	flags, send, hdr uint32
}

func tunBlob(id uint32) string { return fmt.Sprintf("tun-%d", id) }

// A device's blob is its owner, its group and its IFF_NO_PI, 4 bytes each, little-endian, and then a NetDevice.
const tunDeviceHead = 12

func tunDeviceBlob(name string) string { return "tun-device-" + name }

func tunQueueOf(fd int) (tunQueue, error) {
	r, err := unix.NewIfreq("")
	if err != nil {
		return tunQueue{}, err
	}
	err = unix.IoctlIfreq(fd, unix.TUNGETIFF, r)
	if errors.Is(err, unix.EBADFD) {
		return tunQueue{}, nil
	}
	if err != nil {
		return tunQueue{}, fmt.Errorf("TUNGETIFF: %w", err)
	}
	q := tunQueue{name: r.Name(), flags: uint32(r.Uint16())}
	send, err := unix.IoctlGetInt(fd, unix.TUNGETSNDBUF)
	if err != nil {
		return q, fmt.Errorf("TUNGETSNDBUF: %w", err)
	}
	hdr, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return q, fmt.Errorf("TUNGETVNETHDRSZ: %w", err)
	}
	q.send, q.hdr = uint32(int32(send)), uint32(int32(hdr))
	return q, nil
}

// tunDevice reads a device in the network namespace of the descriptor's holder.
func (d *Dumper) tunDevice(desc *description, name string) (blob []byte, err error) {
	err = inNetNS(desc.holders[0].proc.PID, func() error {
		t, err := ns.SaveTun(name)
		if err != nil {
			return err
		}
		b, err := proto.Marshal(t.Device)
		var noPI uint32
		if t.NoPI {
			noPI = unix.IFF_NO_PI
		}
		for _, v := range []uint32{t.Owner, t.Group, noPI} {
			blob = binary.LittleEndian.AppendUint32(blob, v)
		}
		blob = append(blob, b...)
		return err
	})
	return blob, err
}

func dumpTun(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	e, err := r.regEntry(d, d.path())
	if err != nil {
		return nil, err
	}
	q, err := tunQueueOf(d.fd)
	if err != nil {
		return nil, err
	}
	e.Tunf = &tun.TunfileEntry{Id: proto.Uint32(d.id)}
	if q.name == "" {
		return e, nil
	}
	e.Tunf.Netdev, e.Tunf.Detached = proto.String(q.name), proto.Bool(q.flags&unix.IFF_DETACH_QUEUE != 0)
	var blob []byte
	for _, v := range []uint32{q.flags, q.send, q.hdr} {
		blob = binary.LittleEndian.AppendUint32(blob, v)
	}
	r.blob(tunBlob(d.id), blob)
	if r.cp.Blobs[tunDeviceBlob(q.name)] == nil {
		blob, err := r.tunDevice(d, q.name)
		if err != nil {
			return nil, err
		}
		r.blob(tunDeviceBlob(q.name), blob)
	}
	return e, nil
}

// openTun opens a queue; the first one of a device that is not there makes it.
func openTun(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	return sock.In(sock.Place{NetNS: r.env.NetNS}, func() error {
		fd, err := unix.Open("/dev/net/tun", int(e.Reg.GetFlags()&unix.O_ACCMODE)|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		r.put(e.GetId(), fd)
		if e.Tunf.Netdev == nil {
			return nil
		}
		blob := r.cp.Blobs[tunBlob(e.GetId())]
		if len(blob) != 12 {
			return fmt.Errorf("blob %s has %d bytes", tunBlob(e.GetId()), len(blob))
		}
		word := func(i int) uint32 { return binary.LittleEndian.Uint32(blob[4*i:]) }
		return r.attachTun(fd, tunQueue{e.Tunf.GetNetdev(), word(0), word(1), word(2)})
	})
}

func (r *Restorer) attachTun(fd int, q tunQueue) error {
	req, err := unix.NewIfreq(q.name)
	if err != nil {
		return fmt.Errorf("device %.16q: %w", q.name, err)
	}
	made, err := noDevice(q.name)
	if err != nil {
		return err
	}
	device := r.cp.Blobs[tunDeviceBlob(q.name)]
	if len(device) < tunDeviceHead {
		return fmt.Errorf("blob %s has %d bytes", tunDeviceBlob(q.name), len(device))
	}
	req.SetUint16(uint16(q.flags&tunSettable | binary.LittleEndian.Uint32(device[8:])&unix.IFF_NO_PI))
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF of %s (is it in use here?): %w", q.name, err)
	}
	for _, s := range []struct {
		name  string
		nr    uint
		value uint32
	}{{"TUNSETSNDBUF", unix.TUNSETSNDBUF, q.send}, {"TUNSETVNETHDRSZ", unix.TUNSETVNETHDRSZ, q.hdr}} {
		if err := unix.IoctlSetPointerInt(fd, s.nr, int(s.value)); err != nil {
			return fmt.Errorf("%s of %s to %d: %w", s.name, q.name, s.value, err)
		}
	}
	if made {
		if err := setUpTun(fd, q, device); err != nil {
			return err
		}
	}
	if q.flags&unix.IFF_DETACH_QUEUE != 0 {
		req.SetUint16(unix.IFF_DETACH_QUEUE)
		if err := unix.IoctlIfreq(fd, unix.TUNSETQUEUE, req); err != nil {
			return fmt.Errorf("TUNSETQUEUE of %s: %w", q.name, err)
		}
	}
	return nil
}

// noDevice tells whether there is no device of a name in the network namespace of this thread.
func noDevice(name string) (missing bool, err error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("unix socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(s)) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return false, err
	}
	err = unix.IoctlIfreq(s, unix.SIOCGIFINDEX, req)
	if errors.Is(err, unix.ENODEV) {
		return true, nil
	}
	return false, err
}

// setUpTun gives a new device what belongs to it and not to a queue.
func setUpTun(fd int, q tunQueue, blob []byte) error {
	var dev imagespb.NetDevice
	if err := proto.Unmarshal(blob[tunDeviceHead:], &dev); err != nil {
		return fmt.Errorf("blob %s: %w", tunDeviceBlob(q.name), err)
	}
	if dev.GetName() != q.name {
		return fmt.Errorf("blob %s is of device %.16q", tunDeviceBlob(q.name), dev.GetName())
	}
	for i, nr := range []uint{unix.TUNSETOWNER, unix.TUNSETGROUP} {
		if id := binary.LittleEndian.Uint32(blob[4*i:]); id != ns.Nobody {
			if err := unix.IoctlSetInt(fd, nr, int(id)); err != nil {
				return fmt.Errorf("owner or group %d of %s: %w", id, q.name, err)
			}
		}
	}
	if q.flags&unix.IFF_PERSIST != 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			return fmt.Errorf("TUNSETPERSIST of %s: %w", q.name, err)
		}
	}
	return ns.RestoreTun(&dev)
}

// inNetNS runs fn in the network namespace of a process.
func inNetNS(pid int, fn func() error) error {
	f, err := os.Open(procfs.Host.Path(pid, "ns", "net"))
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer func() { _ = f.Close() }() // a namespace's handle: nothing is lost
	return sock.In(sock.Place{NetNS: f}, fn)
}
