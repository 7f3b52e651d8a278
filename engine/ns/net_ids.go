//go:build linux

package ns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// Attributes of RTM_NEWNSID (include/uapi/linux/net_namespace.h), and the fixed part, struct rtgenmsg with its padding.
const (
	netnsaNSID = 1
	netnsaFD   = 3
	sizeNSID   = 4
)

// netHandle is an open network namespace of the tree.
type netHandle struct {
	id   uint32 // 1: of the root
	file *os.File
	ours bool // it was opened by openNets
}

// openNets opens the network namespaces of the tree, if there are several.
func (d *dumper) openNets(list []*nested) error {
	add := func(id uint32, pid int) error {
		f, err := d.fs.Open(pid, "ns", "net")
		if err == nil {
			d.nets = append(d.nets, netHandle{id, f, true})
		}
		return err
	}
	for _, n := range list {
		if n.kind.flag != unix.CLONE_NEWNET {
			continue
		}
		if len(d.nets) == 0 {
			if err := add(1, d.root.PID); err != nil {
				return err
			}
		}
		if n.file != nil {
			d.nets = append(d.nets, netHandle{n.id, n.file, false})
		} else if err := add(n.id, n.proc.PID); err != nil {
			return err
		}
	}
	return nil
}

func (d *dumper) closeNets() error {
	var errs []error
	for _, n := range d.nets {
		if n.ours {
			errs = append(errs, n.file.Close())
		}
	}
	d.nets = nil
	return errors.Join(errs...)
}

// nsid makes the message that names a network namespace by a descriptor.
func nsid(f *os.File) []byte {
	return appendAttr(make([]byte, sizeNSID), netnsaFD, binary.NativeEndian.AppendUint32(nil, uint32(f.Fd())))
}

// netIDs reads by which numbers a network namespace knows the others of the tree.
func (d *dumper) netIDs(n *imagespb.NetNamespace) error {
	for _, o := range d.nets {
		answer, err := askNetlink(unix.RTM_GETNSID, unix.RTM_NEWNSID, nsid(o.file))
		if err != nil {
			return fmt.Errorf("number of a network namespace (RTM_GETNSID): %w", err)
		}
		for _, m := range answer {
			list, err := attrs(m, sizeNSID)
			if err != nil {
				return err
			}
			if id := int32(word(find(list, netnsaNSID))); id >= 0 {
				n.Ids = append(n.Ids, &imagespb.NetID{Nsid: uint32(id), Namespace: o.id})
			}
		}
	}
	return nil
}

// namespaceOf is the namespace of the tree that another one knows by a number; 0 if it is none.
func namespaceOf(n *imagespb.NetNamespace, nsid []byte) uint32 {
	i := slices.IndexFunc(n.GetIds(), func(x *imagespb.NetID) bool { return len(nsid) >= 4 && x.GetNsid() == word(nsid) })
	if i < 0 {
		return 0
	}
	return n.GetIds()[i].GetNamespace()
}

// restoreIDs gives the namespaces of a tree the numbers by which one knew them. The tree's own are those that are given.
func (n *liveNet) restoreIDs(nets []*liveNet) error {
	for _, x := range n.GetIds() {
		i := slices.IndexFunc(nets, func(o *liveNet) bool { return o.id == x.GetNamespace() })
		if i < 0 {
			continue
		}
		m := appendAttr(nsid(nets[i].file), netnsaNSID, binary.NativeEndian.AppendUint32(nil, x.GetNsid()))
		if err := sendNetlink(unix.RTM_NEWNSID, 0, m); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("number %d of a network namespace (RTM_NEWNSID): %w", x.GetNsid(), err)
		}
	}
	return nil
}
