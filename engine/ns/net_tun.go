//go:build linux

package ns

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
)

// Attributes of a tun or tap device (include/uapi/linux/if_link.h); one that has no owner or group lacks them.
const (
	iflaTunOwner = 1
	iflaTunGroup = 2
	iflaTunPI    = 4
)

// Nobody is the owner or group of a tun or tap device that has none.
const Nobody = ^uint32(0)

// A Tun is a tun or tap device with its addresses.
type Tun struct {
	Device       *imagespb.NetDevice
	Owner, Group uint32
	// NoPI is IFF_NO_PI, which TUNGETIFF does not tell: its bit is also that of IFF_NOFILTER.
	NoPI bool
}

// SaveTun reads a device of the network namespace of the calling thread.
func SaveTun(name string) (*Tun, error) {
	var n imagespb.NetNamespace
	if err := readLinks(&n, func(*imagespb.NetDevice, []attr) {}); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(n.GetDevices(), func(d *imagespb.NetDevice) bool { return d.GetName() == name })
	if i < 0 {
		return nil, fmt.Errorf("device %s is not in the network namespace of the tree", name)
	}
	dev := n.GetDevices()[i]
	list, err := attrs(dev.GetLink(), sizeLink)
	if err != nil {
		return nil, err
	}
	info, err := attrs(find(list, unix.IFLA_LINKINFO), 0)
	if err != nil {
		return nil, err
	}
	data, err := attrs(find(info, nl.IFLA_INFO_DATA), 0)
	if err != nil {
		return nil, err
	}
	t := &Tun{Device: dev, Owner: Nobody, Group: Nobody}
	if b := find(data, iflaTunOwner); b != nil {
		t.Owner = word(b)
	}
	if b := find(data, iflaTunGroup); b != nil {
		t.Group = word(b)
	}
	pi := find(data, iflaTunPI)
	t.NoPI = len(pi) == 1 && pi[0] == 0
	return t, nil
}

// RestoreTun gives a new device of the same name, in the network namespace of the calling thread, what SaveTun has read.
func RestoreTun(saved *imagespb.NetDevice) error {
	if len(saved.GetLink()) < sizeLink {
		return fmt.Errorf("device %.16q: its record is too short", saved.GetName())
	}
	all, err := dumpNetlink(unix.RTM_GETLINK, unix.RTM_NEWLINK, make([]byte, sizeLink))
	if err != nil {
		return err
	}
	dev := proto.CloneOf(saved)
	dev.Index = 0
	for _, m := range all {
		if list, err := attrs(m, sizeLink); err == nil && text(find(list, unix.IFLA_IFNAME)) == saved.GetName() {
			dev.Index = word(m[4:])
		}
	}
	if dev.Index == 0 {
		return fmt.Errorf("device %.16q has not been made", saved.GetName())
	}
	binary.NativeEndian.PutUint32(dev.Link[4:], dev.Index)
	for _, m := range dev.Addresses {
		if len(m) < sizeAddr {
			return fmt.Errorf("device %s: an address of %d bytes", dev.Name, len(m))
		}
		binary.NativeEndian.PutUint32(m[4:], dev.Index)
	}
	for _, step := range []func(*imagespb.NetDevice) error{setHardware, setLink, setUp, setAddresses} {
		if err := step(dev); err != nil {
			return fmt.Errorf("device %s: %w", dev.Name, err)
		}
	}
	return nil
}

// setHardware gives an Ethernet device its address, while it is down.
func setHardware(d *imagespb.NetDevice) error {
	list, err := attrs(d.GetLink(), sizeLink)
	if err != nil {
		return err
	}
	const ethernet = 6 // bytes
	addr := find(list, unix.IFLA_ADDRESS)
	if len(addr) != ethernet {
		return nil
	}
	m := make([]byte, sizeLink)
	binary.NativeEndian.PutUint32(m[4:], d.GetIndex())
	return sendNetlink(unix.RTM_NEWLINK, 0, appendAttr(m, unix.IFLA_ADDRESS, addr))
}
