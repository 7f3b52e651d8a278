//go:build linux

package ns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

const aboutNet = "lo, dummy, ifb, bridge, vlan, macvlan, vxlan and veth devices that lead nowhere outside of the tree, with their addresses, flags, masters, aliases and other names; " +
	"routes, next hops, rules, neighbours (those that were found are asked again), proxies, forwarding entries that somebody has set, address labels, all sysctls, " +
	"and the tables of nftables with counters; the queueing disciplines pfifo, bfifo, pfifo_fast, tbf, htb, ingress and clsact, without filters; not with VLAN filtering bridges, XDP programs " +
	"or IPsec, nor devices that lead to a namespace which is not the tree's; tracked connections (conntrack) with state, time left, mark and labels, not their counters; those with translated addresses (NAT) and expectations are lost"

// Sizes of the fixed parts of messages (rtnetlink(7)).
const (
	sizeLink  = unix.SizeofIfInfomsg
	sizeAddr  = unix.SizeofIfAddrmsg
	sizeRoute = unix.SizeofRtMsg
	sizeRule  = 12 // struct fib_rule_hdr
	sizeNeigh = unix.SizeofNdMsg
)

func dumpNet(d *dumper) error {
	return d.inside(unix.CLONE_NEWNET, func() error {
		n := &imagespb.NetNamespace{}
		d.header.Net = n
		for _, read := range []func(*imagespb.NetNamespace) error{d.netIDs, d.links, d.routes, d.objects, d.queues, d.tracked, d.firewall, d.sysctls} {
			if err := read(n); err != nil {
				return err
			}
		}
		return nil
	})
}

// routes reads the routes of all tables, the rules that choose among them and the neighbours.
func (d *dumper) routes(n *imagespb.NetNamespace) (err error) {
	if n.Routes, err = listRoutes(); err != nil {
		return err
	}
	if n.Rules, err = dumpNetlink(unix.RTM_GETRULE, unix.RTM_NEWRULE, make([]byte, sizeRule)); err != nil {
		return err
	}
	return d.neighbours(n)
}

// listRoutes reads the routes in the form in which they can be made again.
func listRoutes() ([][]byte, error) {
	all, err := dumpNetlink(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, make([]byte, sizeRoute))
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, m := range all {
		if len(m) < sizeRoute || word(m[8:])&unix.RTM_F_CLONED != 0 {
			continue
		}
		// Ages, and flags that tell the state of the device.
		kept, err := keepRoute(m)
		if err != nil {
			return nil, err
		}
		binary.NativeEndian.PutUint32(kept[8:], word(kept[8:])&unix.RTNH_F_ONLINK)
		if err := stillHops(kept); err != nil {
			return nil, err
		}
		out = append(out, kept)
	}
	return out, nil
}

// keepRoute leaves out ages, and what a route has from its next hop, if it names one.
func keepRoute(m []byte) ([]byte, error) {
	list, err := attrs(m, sizeRoute)
	if err != nil {
		return nil, err
	}
	named := find(list, rtaNextHop) != nil
	return keep(m, sizeRoute, func(k uint16) bool {
		switch k {
		case unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH, unix.RTA_ENCAP, unix.RTA_ENCAP_TYPE:
			return !named
		}
		return k != unix.RTA_CACHEINFO
	})
}

// stillHops clears the flags of a route's hops that tell the state of their devices, with which no route can be made (fib_get_nhs in
// net/ipv4/fib_semantics.c).
func stillHops(m []byte) error {
	list, err := attrs(m, sizeRoute)
	if err != nil {
		return err
	}
	hops := find(list, unix.RTA_MULTIPATH) // of struct rtnexthop (rtnetlink(7)): length, flags, hops, device; attributes follow
	for len(hops) > 0 {
		if len(hops) < unix.SizeofRtNexthop {
			return errShort
		}
		n := int(binary.NativeEndian.Uint16(hops))
		if n < unix.SizeofRtNexthop || n > len(hops) {
			return errShort
		}
		hops[2] &= unix.RTNH_F_ONLINK
		hops = hops[min((n+3)&^3, len(hops)):]
	}
	return nil
}

// liveNet is a network namespace that is being filled.
type liveNet struct {
	*imagespb.NetNamespace
	id   uint32
	file *os.File
	made map[uint32]bool // its devices, by index
}

func (n *liveNet) inside(fn func(*liveNet) error) error {
	return InsideOf(n.file, unix.CLONE_NEWNET, func() error { return fn(n) })
}

// restoreNets fills the network namespaces of a tree, step by step in all of them: devices may lead from one to another.
func restoreNets(nets []*liveNet) error {
	each := func(fn func(*liveNet) error) error {
		for _, n := range nets {
			if err := n.inside(fn); err != nil {
				return err
			}
		}
		return nil
	}
	if err := each(func(n *liveNet) error { return n.restoreIDs(nets) }); err != nil {
		return err
	}
	if err := makeAllLinks(nets); err != nil {
		return err
	}
	if err := each((*liveNet).setLinks); err != nil {
		return err
	}
	return each((*liveNet).rest)
}

// rest restores what comes after the devices.
func (n *liveNet) rest() error {
	if err := restoreRules(n.GetRules()); err != nil {
		return err
	}
	if err := n.restoreNextHops(); err != nil {
		return err
	}
	if err := restoreRoutes(n.GetRoutes()); err != nil {
		return err
	}
	for _, m := range n.GetNeighbours() {
		if len(m) < sizeNeigh {
			return fmt.Errorf("a neighbour of %d bytes", len(m))
		}
		if err := sendNetlink(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m); err != nil {
			return fmt.Errorf("a neighbour of device %d: %w", word(m[4:]), err)
		}
	}
	if err := restoreSysctls(n.GetSysctls()); err != nil {
		return err
	}
	// Some settings have made the kernel add addresses by itself.
	for _, d := range n.GetDevices() {
		if err := setAddresses(d); err != nil {
			return fmt.Errorf("device %s: %w", d.GetName(), err)
		}
	}
	if err := restoreRoutes(n.GetRoutes()); err != nil {
		return err
	}
	for _, step := range []func() error{n.restoreObjects, n.restoreQueues, n.restoreTracked} {
		if err := step(); err != nil {
			return err
		}
	}
	return restoreFirewall(n.GetFirewall())
}

// restoreRoutes makes the routes those of the record: addresses and devices have brought some along. A route by a gateway
// needs the one that leads there, so those that fail are tried again as long as others succeed.
func restoreRoutes(want [][]byte) error {
	have, err := listRoutes()
	if err != nil {
		return err
	}
	in := func(list [][]byte, m []byte) bool {
		return slices.ContainsFunc(list, func(o []byte) bool { return bytes.Equal(o, m) })
	}
	for _, m := range have {
		if in(want, m) {
			continue
		}
		if err := sendNetlink(unix.RTM_DELROUTE, 0, m); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing a route that the tree did not have: %w", err)
		}
	}
	left := slices.DeleteFunc(slices.Clone(want), func(m []byte) bool { return len(m) < sizeRoute || in(have, m) })
	for len(left) > 0 {
		var failed [][]byte
		var last error
		for _, m := range left {
			err := sendNetlink(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, m)
			if err != nil && !errors.Is(err, unix.EEXIST) {
				failed, last = append(failed, m), err
			}
		}
		if len(failed) == len(left) {
			return fmt.Errorf("%d routes, such as one in table %d with protocol %d: %w", len(failed), failed[0][4], failed[0][5], last)
		}
		left = failed
	}
	return nil
}

// restoreRules makes the routing rules those of the record.
func restoreRules(want [][]byte) error {
	have, err := dumpNetlink(unix.RTM_GETRULE, unix.RTM_NEWRULE, make([]byte, sizeRule))
	if err != nil {
		return err
	}
	in := func(list [][]byte, m []byte) bool {
		return slices.ContainsFunc(list, func(o []byte) bool { return bytes.Equal(o, m) })
	}
	for _, m := range want {
		if in(have, m) {
			continue
		}
		if err := sendNetlink(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("a routing rule of family %d: %w", m[0], err)
		}
	}
	for _, m := range have {
		if in(want, m) {
			continue
		}
		if err := sendNetlink(unix.RTM_DELRULE, 0, m); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing a routing rule that the tree did not have: %w", err)
		}
	}
	return nil
}
