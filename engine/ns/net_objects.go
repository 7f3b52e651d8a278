//go:build linux

package ns

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// What a network namespace has beside devices, addresses, routes and rules: next hops, proxies and forwarding entries of neighbours,
// address labels. Each is kept as the message that makes it.

// Of include/uapi/linux: neighbour.h, nexthop.h, if_addrlabel.h.
const (
	ndaPort, ndaVNI, ndaIfindex = 6, 7, 8
	ndaSrcVNI, ndaProtocol      = 11, 12
	ndaNextHop, ndaFlagsExt     = 13, 15
	ndaVLAN                     = 5

	rtaNextHop                   = 30
	rtmNewNextHop, rtmGetNextHop = 104, 106
	sizeNextHop                  = 8
	nhaGroup                     = 2

	sizeLabel = 12
)

// nextHopAttrs are those with which one is made: NHA_ID, GROUP, GROUP_TYPE, BLACKHOLE, OIF, GATEWAY, ENCAP_TYPE, ENCAP, FDB, RES_GROUP.
var nextHopAttrs = []uint16{1, nhaGroup, 3, 4, 5, 6, 7, 8, 11, 12}

var errShort = errors.New("it is too short")

// Of struct ndmsg: state and flags.
func neighState(m []byte) uint16 { return binary.NativeEndian.Uint16(m[8:]) }
func neighFlags(m []byte) byte   { return m[10] }

// neighbours reads the neighbours that somebody has set and those that were found. The latter are asked again before the kernel
// trusts them.
func (d *dumper) neighbours(n *imagespb.NetNamespace) error {
	all, err := dumpNetlink(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, make([]byte, sizeNeigh))
	if err != nil {
		return err
	}
	const found = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	for _, m := range all {
		if len(m) < sizeNeigh || neighState(m)&(found|unix.NUD_PERMANENT) == 0 || neighState(m)&unix.NUD_NOARP != 0 {
			continue
		}
		kept, err := keep(m, sizeNeigh, func(k uint16) bool {
			return k == unix.NDA_DST || k == unix.NDA_LLADDR || k == ndaProtocol || k == ndaFlagsExt
		})
		if err != nil {
			return err
		}
		if neighState(m)&found != 0 {
			binary.NativeEndian.PutUint16(kept[8:], unix.NUD_STALE)
		}
		n.Neighbours = append(n.Neighbours, kept)
	}
	return nil
}

// objects reads the others.
func (d *dumper) objects(n *imagespb.NetNamespace) error {
	for _, read := range []func(*imagespb.NetNamespace) error{d.nextHops, d.proxies, d.forwarding, d.labels} {
		if err := read(n); err != nil {
			return err
		}
	}
	return nil
}

func addObject(n *imagespb.NetNamespace, typ uint32, message []byte) {
	n.Objects = append(n.Objects, &imagespb.NetObject{Type: typ, Message: message})
}

// nextHops reads the next hops that routes name, groups after their members.
func (d *dumper) nextHops(n *imagespb.NetNamespace) error {
	all, err := dumpNetlink(rtmGetNextHop, rtmNewNextHop, make([]byte, sizeNextHop))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // before Linux 5.3
	}
	if err != nil {
		return err
	}
	var out [][]byte
	groups := map[*byte]bool{}
	for _, m := range all {
		list, err := attrs(m, sizeNextHop)
		if err != nil {
			return err
		}
		// struct nhmsg: family, scope, protocol, pad, flags. The scope is found anew, and flags that tell the state of the device.
		m, err := keep(m, sizeNextHop, func(k uint16) bool { return slices.Contains(nextHopAttrs, k) })
		if err != nil {
			return err
		}
		m[1] = 0
		binary.NativeEndian.PutUint32(m[4:], word(m[4:])&unix.RTNH_F_ONLINK)
		out = append(out, m)
		groups[&m[0]] = find(list, nhaGroup) != nil
	}
	slices.SortStableFunc(out, func(a, b []byte) int {
		rank := map[bool]int{true: 1}
		return cmp.Compare(rank[groups[&a[0]]], rank[groups[&b[0]]])
	})
	for _, m := range out {
		addObject(n, rtmNewNextHop, m)
	}
	return nil
}

// proxies reads the addresses for which the namespace answers.
func (d *dumper) proxies(n *imagespb.NetNamespace) error {
	ask := make([]byte, sizeNeigh)
	ask[10] = unix.NTF_PROXY
	all, err := dumpNetlink(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, ask)
	if err != nil {
		return err
	}
	for _, m := range all {
		if len(m) < sizeNeigh || neighFlags(m)&unix.NTF_PROXY == 0 {
			continue
		}
		kept, err := keep(m, sizeNeigh, func(k uint16) bool { return k == unix.NDA_DST || k == ndaProtocol })
		if err != nil {
			return err
		}
		addObject(n, unix.RTM_NEWNEIGH, kept)
	}
	return nil
}

// forwarding reads what somebody has entered into the forwarding tables of bridges and vxlan devices. What they have learned they
// learn again.
func (d *dumper) forwarding(n *imagespb.NetNamespace) error {
	ask := make([]byte, sizeNeigh)
	ask[0] = unix.AF_BRIDGE
	all, err := dumpNetlink(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, ask)
	if err != nil {
		return err
	}
	own := map[string]bool{} // addresses of devices, which their bridges have by themselves
	kinds := map[uint32]string{}
	for _, dev := range n.GetDevices() {
		list, err := attrs(dev.GetLink(), sizeLink)
		if err != nil {
			return err
		}
		own[string(find(list, unix.IFLA_ADDRESS))] = true
		kinds[dev.GetIndex()] = dev.GetKind()
	}
	for _, m := range all {
		if len(m) < sizeNeigh || m[0] != unix.AF_BRIDGE || neighState(m)&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 {
			continue
		}
		list, err := attrs(m, sizeNeigh)
		if err != nil {
			return err
		}
		vxlan := kinds[word(m[4:])] == "vxlan" && neighFlags(m)&unix.NTF_SELF != 0
		if !vxlan && (find(list, unix.NDA_MASTER) == nil || own[string(find(list, unix.NDA_LLADDR))]) {
			continue // of the device itself
		}
		kept, err := keep(m, sizeNeigh, func(k uint16) bool {
			return slices.Contains([]uint16{unix.NDA_DST, unix.NDA_LLADDR, ndaVLAN, ndaPort, ndaVNI, ndaIfindex, ndaSrcVNI, ndaNextHop, ndaFlagsExt}, k)
		})
		if err != nil {
			return err
		}
		if !vxlan {
			kept[10] |= unix.NTF_MASTER
		}
		addObject(n, unix.RTM_NEWNEIGH, kept)
	}
	return nil
}

// labels reads the table by which source addresses are chosen (RFC 6724).
func (d *dumper) labels(n *imagespb.NetNamespace) error {
	all, err := listLabels()
	for _, m := range all {
		addObject(n, unix.RTM_NEWADDRLABEL, m)
	}
	return err
}

func listLabels() ([][]byte, error) {
	ask := make([]byte, sizeLabel)
	ask[0] = unix.AF_INET6
	all, err := dumpNetlink(unix.RTM_GETADDRLABEL, unix.RTM_NEWADDRLABEL, ask)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without IPv6
	}
	for _, m := range all {
		if len(m) >= sizeLabel { // struct ifaddrlblmsg: its last word counts the changes of the table
			binary.NativeEndian.PutUint32(m[8:], 0)
		}
	}
	return all, err
}

// restoreNextHops makes the next hops, before the routes that name them.
func (n *liveNet) restoreNextHops() error {
	for _, o := range n.GetObjects() {
		if o.GetType() != rtmNewNextHop {
			continue
		}
		if len(o.GetMessage()) < sizeNextHop {
			return fmt.Errorf("a next hop: %w", errShort)
		}
		if err := sendNetlink(rtmNewNextHop, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, o.GetMessage()); err != nil {
			return fmt.Errorf("a next hop of family %d: %w", o.GetMessage()[0], err)
		}
	}
	return nil
}

// restoreObjects makes what may come when all devices, addresses and routes are there.
func (n *liveNet) restoreObjects() error {
	var labels [][]byte
	for _, o := range n.GetObjects() {
		switch m := o.GetMessage(); o.GetType() {
		case unix.RTM_NEWADDRLABEL:
			labels = append(labels, m)
		case unix.RTM_NEWNEIGH:
			if len(m) < sizeNeigh {
				return fmt.Errorf("a proxy or forwarding entry: %w", errShort)
			}
			flags := unix.NLM_F_CREATE | unix.NLM_F_REPLACE
			if m[0] == unix.AF_BRIDGE && neighFlags(m)&unix.NTF_SELF != 0 {
				flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND // a vxlan device sends to several others
			}
			if err := sendNetlink(unix.RTM_NEWNEIGH, flags, m); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("a proxy or forwarding entry of device %d, family %d: %w", word(m[4:]), m[0], err)
			}
		}
	}
	return restoreLabels(labels)
}

// restoreLabels makes the address labels those of the record, if that has any.
func restoreLabels(want [][]byte) error {
	if len(want) == 0 {
		return nil
	}
	have, err := listLabels()
	if err != nil {
		return err
	}
	in := func(list [][]byte, m []byte) bool {
		return slices.ContainsFunc(list, func(o []byte) bool { return bytes.Equal(o, m) })
	}
	for _, m := range have {
		if !in(want, m) {
			if err := sendNetlink(unix.RTM_DELADDRLABEL, 0, m); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("removing an address label that the tree did not have: %w", err)
			}
		}
	}
	for _, m := range want {
		if len(m) < sizeLabel {
			return fmt.Errorf("an address label: %w", errShort)
		}
		if in(have, m) {
			continue
		}
		if err := sendNetlink(unix.RTM_NEWADDRLABEL, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m); err != nil {
			return fmt.Errorf("an address label: %w", err)
		}
	}
	return nil
}
