package port

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Prefixes of the devices' names, before eight digits that stand for the port's name.
const (
	portPrefix    = "mgp" // the host's end of a workload's veth pair
	capturePrefix = "mgc" // where shut-out frames are copied to
	sinkPrefix    = "mgx" // its other end
	tablePrefix   = "migrate-"
	aliasPrefix   = "migrate port "
)

// Host is a network namespace with a bridge: the agent's own.
type Host struct {
	ns  *os.File
	nl  *netlink.Handle
	nft ruleset
}

// Open opens the host of the network namespace ns, or of the calling thread if nil. The caller closes ns; Host keeps a
// reference of its own.
func Open(ns *os.File) (_ *Host, err error) {
	own, err := ownNetns()
	if err != nil {
		return nil, err
	}
	h := &Host{ns: own}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if ns != nil {
		if err := h.enter(ns); err != nil {
			return nil, err
		}
	}
	fd := int(h.ns.Fd()) // of a namespace: blocking or not does not matter
	if h.nl, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	h.nft.ns = h.ns
	return h, nil
}

// enter makes ns the host's namespace, by a descriptor of its own.
func (h *Host) enter(ns *os.File) error {
	var f *os.File
	err := inside(ns, func() (err error) {
		f, err = ownNetns()
		return err
	})
	if err != nil {
		return err
	}
	old := h.ns
	h.ns = f
	return old.Close()
}

// dupNS opens the host's namespace once more.
func (h *Host) dupNS() (f *os.File, err error) {
	err = inside(h.ns, func() (err error) {
		f, err = ownNetns()
		return err
	})
	return f, err
}

// Close lets go of the host; its ports stay.
func (h *Host) Close() error {
	var errs []error
	if h.nl != nil {
		h.nl.Close()
	}
	return errors.Join(append(errs, h.nft.close(), h.ns.Close())...)
}

// id is what stands for a port's name in names of devices, which have room for 15 bytes.
func id(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:4])
}

// DeriveMAC is the hardware address of a port that is given none: locally administered, the same on every host.
func DeriveMAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("hardware address of " + name))
	return net.HardwareAddr(append([]byte{0x02}, sum[:5]...))
}

// Info is a port that was found on the host.
type Info struct {
	Name   string
	Device string // the host's end
	Index  int
}

// List lists the ports of this host, also those of an agent that died.
func (h *Host) List(ctx context.Context) ([]Info, error) {
	links, err := h.links(ctx)
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, l := range links {
		a := l.Attrs()
		name, ok := strings.CutPrefix(a.Alias, aliasPrefix)
		if ok && a.Name == portPrefix+id(name) {
			out = append(out, Info{Name: name, Device: a.Name, Index: a.Index})
		}
	}
	return out, nil
}

// MTU is that of a port, in bytes.
func (h *Host) MTU(name string) (uint32, error) {
	l, err := h.nl.LinkByName(portPrefix + id(name))
	if err != nil {
		return 0, fmt.Errorf("port %q: %w", name, err)
	}
	return uint32(l.Attrs().MTU), nil
}

// WorkloadMAC is the hardware address of a port, as the workload with the process pid has it.
func (h *Host) WorkloadMAC(name string, pid int) (mac net.HardwareAddr, err error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err == nil {
		mac, err = deviceMAC(ns, "eth0")
		err = errors.Join(err, ns.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", name, err)
	}
	return mac, nil
}

// links lists all devices; a dump that changes under way is asked for again.
func (h *Host) links(ctx context.Context) ([]netlink.Link, error) {
	for {
		links, err := h.nl.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			if err != nil {
				return nil, fmt.Errorf("list devices: %w", err)
			}
			return links, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// addrList lists the addresses of a device; a dump that changes under way, as the kernel tests addresses, is asked for again.
func addrList(nl *netlink.Handle, l netlink.Link) (list []netlink.Addr, err error) {
	const tries = 1000
	for range tries {
		if list, err = nl.AddrList(l, unix.AF_UNSPEC); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// Remove takes away all that belongs to a port of this name: devices (and with the host's end the workload's own), gate and
// capture. It succeeds when there is nothing.
func (h *Host) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var errs []error
	for _, prefix := range []string{portPrefix, capturePrefix} {
		errs = append(errs, h.removeLink(prefix+id(name)))
	}
	if err := h.removeTable(id(name)); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove port %q: %w", name, err)
	}
	return nil
}

func (h *Host) removeLink(device string) error {
	l, err := h.nl.LinkByName(device)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	// It goes by itself when the namespace of its other end does.
	if err := h.nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", device, err)
	}
	return nil
}
