//go:build linux

package ns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// Messages and attributes of connection tracking (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	ctNew = unix.NFNL_SUBSYS_CTNETLINK << 8
	ctGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1

	ctaOriginal, ctaReply   = 1, 2
	ctaStatus, ctaProtoInfo = 3, 4
	ctaHelp, ctaTimeout     = 5, 7
	ctaMark, ctaMaster      = 8, 14
	ctaZone, ctaLabels      = 18, 22
	ctaProtoInfoTCP         = 1
	ctaTCPFlagsOriginal     = 4
	ctaTCPFlagsReply        = 5

	ipsExpected, ipsNAT = 1 << 0, 1<<4 | 1<<5 // include/uapi/linux/netfilter/nf_conntrack_common.h
)

// ctAttrs are those with which an entry can be made.
var ctAttrs = []uint16{ctaOriginal, ctaReply, ctaStatus, ctaProtoInfo, ctaHelp, ctaTimeout, ctaMark, ctaMaster, ctaZone, ctaLabels}

// tracked reads the connections that the kernel tracks. Those whose addresses are translated (NAT) are left out.
func (d *dumper) tracked(n *imagespb.NetNamespace) error {
	all, err := dumpOf(unix.NETLINK_NETFILTER, ctGet, ctNew, make([]byte, sizeNFGen))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a kernel without it
	}
	if err != nil {
		return fmt.Errorf("tracked connections: %w", err)
	}
	for _, m := range all {
		out, err := trackedMessage(m)
		if err != nil {
			return fmt.Errorf("tracked connections: %w", err)
		}
		if out != nil {
			addObject(n, ctNew, out)
		}
	}
	return nil
}

// trackedMessage is the message that makes an entry; nil for one that cannot be made.
func trackedMessage(m []byte) ([]byte, error) {
	list, err := attrs(m, sizeNFGen)
	if err != nil {
		return nil, err
	}
	out := []byte{m[0], 0, 0, 0}
	for _, a := range list {
		if !slices.Contains(ctAttrs, a.kind) {
			continue
		}
		switch a.kind {
		case ctaStatus:
			if len(a.data) != 4 {
				return nil, errShort
			}
			status := binary.BigEndian.Uint32(a.data)
			if status&ipsNAT != 0 {
				return nil, nil
			}
			a.data = binary.BigEndian.AppendUint32(nil, status&^ipsExpected) // which its master makes it
		case ctaProtoInfo:
			if a.data, err = trackedState(a.data); err != nil {
				return nil, err
			}
		}
		out = appendAttr(out, a.kind|a.nested, a.data)
	}
	if find(list, ctaTimeout) == nil {
		return nil, nil // it is ending
	}
	return out, nil
}

// trackedState makes the state of a protocol one that can be written: of the flags of TCP all are to be set, which the kernel reads
// from a mask that it does not tell (struct nf_ct_tcp_flags).
func trackedState(b []byte) ([]byte, error) {
	list, err := attrs(b, 0)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, a := range list {
		if a.kind == ctaProtoInfoTCP {
			inner, err := attrs(a.data, 0)
			if err != nil {
				return nil, err
			}
			a.data = nil
			for _, i := range inner {
				if (i.kind == ctaTCPFlagsOriginal || i.kind == ctaTCPFlagsReply) && len(i.data) == 2 {
					i.data = []byte{i.data[0], 0xFF}
				}
				a.data = appendAttr(a.data, i.kind, i.data)
			}
		}
		out = appendAttr(out, a.kind|a.nested, a.data)
	}
	return out, nil
}

// restoreTracked makes the entries, masters first, before there are rules by which the kernel would make some itself.
func (n *liveNet) restoreTracked() error {
	for _, expected := range []bool{false, true} {
		for _, o := range n.GetObjects() {
			if o.GetType() != ctNew {
				continue
			}
			list, err := attrs(o.GetMessage(), sizeNFGen)
			if err != nil {
				return fmt.Errorf("a tracked connection: %w", err)
			}
			if (find(list, ctaMaster) != nil) != expected {
				continue
			}
			if err := sendTo(unix.NETLINK_NETFILTER, ctNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, o.GetMessage()); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("a tracked connection of family %d: %w", o.GetMessage()[0], err)
			}
		}
	}
	return nil
}
