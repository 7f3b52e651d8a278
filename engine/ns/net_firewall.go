//go:build linux

package ns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/sock"
)

// sizeNFGen is struct nfgenmsg: family, version, resource id.
const sizeNFGen = 4

// Attributes of nf_tables.h. A table's name is the first one of everything; the name of a set is the second of sets and of their elements.
const (
	nftaTable      = 1
	nftaTableFlags = 2
	nftaSetName    = 2
	nftaSetID      = 10
	nftTableOwner  = 2 // NFT_TABLE_F_OWNER
)

// firewallKind is a kind of object of nftables, and the attributes with which it can be made; the others, such as handles and
// numbers of users, are the kernel's.
type firewallKind struct {
	name     string
	get, new uint16
	attrs    []uint16
	perSet   bool
}

// firewallKinds in the order in which they can be made.
var firewallKinds = []firewallKind{
	{"table", unix.NFT_MSG_GETTABLE, unix.NFT_MSG_NEWTABLE, []uint16{nftaTable, nftaTableFlags, 6}, false},
	{"chain", unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, []uint16{nftaTable, 3, 4, 5, 7, 8, 10, 12}, false},
	{"object", unix.NFT_MSG_GETOBJ, unix.NFT_MSG_NEWOBJ, []uint16{nftaTable, 2, 3, 4, 8}, false},
	{"flow table", unix.NFT_MSG_GETFLOWTABLE, unix.NFT_MSG_NEWFLOWTABLE, []uint16{nftaTable, 2, 3, 7}, false},
	{"set", unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET, []uint16{nftaTable, nftaSetName, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18}, false},
	{"set element", unix.NFT_MSG_GETSETELEM, unix.NFT_MSG_NEWSETELEM, []uint16{nftaTable, nftaSetName, 3}, true},
	{"rule", unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, []uint16{nftaTable, 2, 4, 7}, false},
}

// firewall reads the tables of nftables and all that is in them.
func (d *dumper) firewall(n *imagespb.NetNamespace) error {
	var sets [][]byte
	for _, k := range firewallKinds {
		asks := [][]byte{make([]byte, sizeNFGen)}
		if k.perSet {
			asks = sets
		}
		for _, ask := range asks {
			list, err := dumpFirewall(k, ask)
			if err != nil {
				return err
			}
			for _, m := range list {
				if err := d.firewallObject(n, k, m); err != nil {
					return err
				}
				if k.new == unix.NFT_MSG_NEWSET {
					set, err := keep(m, sizeNFGen, func(kind uint16) bool { return kind == nftaTable || kind == nftaSetName })
					if err != nil {
						return err
					}
					sets = append(sets, set)
				}
			}
		}
	}
	return nil
}

func (d *dumper) firewallObject(n *imagespb.NetNamespace, k firewallKind, m []byte) error {
	list, err := attrs(m, sizeNFGen)
	if err != nil {
		return fmt.Errorf("%s of nftables: %w", k.name, err)
	}
	table := text(find(list, nftaTable))
	if strings.HasPrefix(table, sock.LockPrefix) {
		return nil // of a dump, which goes with its restore
	}
	if flags := find(list, nftaTableFlags); k.new == unix.NFT_MSG_NEWTABLE && len(flags) == 4 && binary.BigEndian.Uint32(flags)&nftTableOwner != 0 {
		d.refuse("firewall", fmt.Sprintf("table %q of nftables belongs to a netlink socket", table), "remove it")
		return nil
	}
	out := []byte{m[0], 0, 0, 0}
	for _, a := range list {
		if slices.Contains(k.attrs, a.kind) {
			out = appendAttr(out, a.kind|a.nested, a.data)
		}
	}
	if k.new == unix.NFT_MSG_NEWSET { // which it needs to have, unique in one batch
		out = appendAttr(out, nftaSetID, binary.BigEndian.AppendUint32(nil, uint32(len(n.GetFirewall())+1)))
	}
	n.Firewall = append(n.Firewall, &imagespb.FirewallObject{Type: uint32(k.new), Message: out})
	return nil
}

// dumpFirewall asks for all objects of a kind, or for the elements of one set.
func dumpFirewall(k firewallKind, ask []byte) ([][]byte, error) {
	list, err := dumpOf(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|int(k.get), unix.NFNL_SUBSYS_NFTABLES<<8|k.new, ask)
	if errors.Is(err, unix.EINVAL) && k.new != unix.NFT_MSG_NEWTABLE { // a kernel without this kind
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: asking for each %s: %w", k.name, err)
	}
	return list, nil
}

// restoreFirewall makes the objects in one transaction, of which all or nothing comes into being.
func restoreFirewall(list []*imagespb.FirewallObject) (err error) {
	if len(list) == 0 {
		return nil
	}
	batch := nfMessage(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, 0, nfBatch)
	for i, o := range list {
		if !slices.ContainsFunc(firewallKinds, func(k firewallKind) bool { return uint32(k.new) == o.GetType() }) || len(o.GetMessage()) < sizeNFGen {
			return fmt.Errorf("object %d of nftables: of type %d with %d bytes", i, o.GetType(), len(o.GetMessage()))
		}
		flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_APPEND)
		if i == len(list)-1 {
			flags |= unix.NLM_F_ACK
		}
		batch = nfMessage(batch, unix.NFNL_SUBSYS_NFTABLES<<8|uint16(o.GetType()), flags, uint32(i+1), o.GetMessage())
	}
	batch = nfMessage(batch, unix.NFNL_MSG_BATCH_END, 0, uint32(len(list)+1), nfBatch)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(batch)+4096); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("nftables: sending %d objects: %w", len(list), err)
	}
	return answered(fd, list)
}

// nfBatch is the struct nfgenmsg of the bounds of a transaction of nftables.
var nfBatch = []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}

// answered reads what the kernel says to a transaction: an error, or that the last object was taken.
func answered(fd int, list []*imagespb.FirewallObject) error {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN+4; {
			size := int(word(b))
			if size < unix.NLMSG_HDRLEN+4 || size > len(b) {
				return fmt.Errorf("nftables: an answer of %d bytes", size)
			}
			seq, code := word(b[8:]), -int32(word(b[unix.NLMSG_HDRLEN:]))
			switch {
			case binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR:
			case code != 0 && seq > 0 && int(seq) <= len(list):
				return fmt.Errorf("nftables: object %d of %d, of type %d: %w", seq, len(list), list[seq-1].GetType(), unix.Errno(code))
			case code != 0:
				return fmt.Errorf("nftables: %w", unix.Errno(code))
			case int(seq) == len(list):
				return nil
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// nfMessage appends a netlink message.
func nfMessage(b []byte, typ, flags uint16, seq uint32, body []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	return append(b, make([]byte, (4-len(body)%4)%4)...)
}
