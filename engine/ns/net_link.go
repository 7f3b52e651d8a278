//go:build linux

package ns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// linkKinds are the kinds of devices that can be made, and the attributes of IFLA_INFO_DATA that are set then (include/uapi/linux/if_link.h);
// the others are read only.
var linkKinds = map[string][]uint16{
	"dummy": {},
	"ifb":   {},
	vxlan: {nl.IFLA_VXLAN_ID, nl.IFLA_VXLAN_GROUP, nl.IFLA_VXLAN_GROUP6, nl.IFLA_VXLAN_LINK, nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6, nl.IFLA_VXLAN_TTL,
		nl.IFLA_VXLAN_TOS, nl.IFLA_VXLAN_LEARNING, nl.IFLA_VXLAN_AGEING, nl.IFLA_VXLAN_LIMIT, nl.IFLA_VXLAN_PORT_RANGE, nl.IFLA_VXLAN_PROXY, nl.IFLA_VXLAN_RSC,
		nl.IFLA_VXLAN_L2MISS, nl.IFLA_VXLAN_L3MISS, nl.IFLA_VXLAN_PORT, nl.IFLA_VXLAN_UDP_CSUM, nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX,
		nl.IFLA_VXLAN_GBP, nl.IFLA_VXLAN_FLOWBASED, vxlanLabel, vxlanTTLInherit, vxlanDF, vxlanLocalBypass},
	"veth":    {},
	"vlan":    {nl.IFLA_VLAN_ID, nl.IFLA_VLAN_FLAGS, nl.IFLA_VLAN_EGRESS_QOS, nl.IFLA_VLAN_INGRESS_QOS, nl.IFLA_VLAN_PROTOCOL},
	"macvlan": {nl.IFLA_MACVLAN_MODE, nl.IFLA_MACVLAN_FLAGS},
	bridge: {nl.IFLA_BR_FORWARD_DELAY, nl.IFLA_BR_HELLO_TIME, nl.IFLA_BR_MAX_AGE, nl.IFLA_BR_AGEING_TIME, nl.IFLA_BR_STP_STATE,
		nl.IFLA_BR_PRIORITY, nl.IFLA_BR_VLAN_FILTERING, nl.IFLA_BR_VLAN_PROTOCOL, nl.IFLA_BR_GROUP_FWD_MASK, nl.IFLA_BR_MCAST_SNOOPING, nl.IFLA_BR_MCAST_QUERIER,
		nl.IFLA_BR_VLAN_DEFAULT_PVID},
}

// vxlan is the kind of a device whose attributes nl does not have all.
const (
	vxlan            = "vxlan"
	vxlanLabel       = 26
	vxlanTTLInherit  = 28
	vxlanDF          = 29
	vxlanLocalBypass = 31
)

// linkAttrs are the attributes of a device that are set when it is made.
var linkAttrs = []uint16{unix.IFLA_IFNAME, unix.IFLA_ADDRESS, unix.IFLA_BROADCAST, unix.IFLA_MTU, unix.IFLA_TXQLEN, unix.IFLA_LINK, unix.IFLA_LINK_NETNSID, unix.IFLA_NUM_TX_QUEUES,
	unix.IFLA_NUM_RX_QUEUES, unix.IFLA_GROUP, unix.IFLA_IFALIAS, unix.IFLA_LINKMODE}

// linkFlags are those of a device that can be set (netdevice(7)).
const linkFlags = unix.IFF_UP | unix.IFF_NOARP | unix.IFF_PROMISC | unix.IFF_ALLMULTI | unix.IFF_MULTICAST | unix.IFF_DYNAMIC | unix.IFF_DEBUG

// fallbacks are devices that some kernels put into every new network namespace.
var fallbacks = []string{"lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}

// links reads the devices and their addresses, and refuses what cannot be made again.
func (d *dumper) links(n *imagespb.NetNamespace) error {
	return readLinks(n, func(dev *imagespb.NetDevice, list []attr) { d.checkLink(n, dev, list) })
}

// readLinks reads the devices and their addresses. It shows each device to check.
func readLinks(n *imagespb.NetNamespace, check func(*imagespb.NetDevice, []attr)) error {
	all, err := dumpNetlink(unix.RTM_GETLINK, unix.RTM_NEWLINK, make([]byte, sizeLink))
	if err != nil {
		return err
	}
	byIndex := map[uint32]*imagespb.NetDevice{}
	for _, m := range all {
		list, err := attrs(m, sizeLink)
		if err != nil {
			return err
		}
		dev := &imagespb.NetDevice{Index: word(m[4:]), Name: text(find(list, unix.IFLA_IFNAME)), Link: m}
		if info, err := attrs(find(list, unix.IFLA_LINKINFO), 0); err != nil {
			return err
		} else if k := find(info, nl.IFLA_INFO_KIND); k != nil {
			dev.Kind = text(k)
		}
		check(dev, list)
		n.Devices = append(n.Devices, dev)
		byIndex[dev.Index] = dev
	}
	if err := readMulticast(byIndex); err != nil {
		return err
	}
	addrs, err := dumpNetlink(unix.RTM_GETADDR, unix.RTM_NEWADDR, make([]byte, sizeAddr))
	if err != nil {
		return err
	}
	for _, m := range addrs {
		if len(m) >= sizeAddr && byIndex[word(m[4:])] != nil {
			byIndex[word(m[4:])].Addresses = append(byIndex[word(m[4:])].Addresses, m)
		}
	}
	return nil
}

// checkLink refuses devices that cannot be made again.
func (d *dumper) checkLink(n *imagespb.NetNamespace, dev *imagespb.NetDevice, list []attr) {
	where := "device " + dev.Name
	if slices.Contains(fallbacks, dev.Name) {
		return
	}
	d.checkParts(where, dev, list)
	if _, ok := linkKinds[dev.Kind]; !ok {
		d.refuse(where, fmt.Sprintf("a device of kind %q", dev.Kind), "remove it")
		return
	}
	other := find(list, unix.IFLA_LINK_NETNSID)
	if to := namespaceOf(n, other); other != nil && (to == 0 || to == 1 && !d.ownNet) {
		d.refuse(where, fmt.Sprintf("a %s whose other end is in another network namespace", dev.Kind), "remove it, or let migrate run the program, which then has an address of its own")
	}
}

// setLinks completes the devices of a namespace, when they are there: first what refers to others, then their addresses, and they go up.
func (n *liveNet) setLinks() error {
	for _, step := range []func(*imagespb.NetDevice) error{setLink, setNames, setBridge, quiet, setMulticast, setUp, settle, setPort, setAddresses} {
		for _, d := range n.GetDevices() {
			if err := step(d); err != nil {
				return fmt.Errorf("device %s: %w", d.GetName(), err)
			}
		}
	}
	return nil
}

// findMade notes the devices that a new namespace has.
func (n *liveNet) findMade() error {
	have, err := dumpNetlink(unix.RTM_GETLINK, unix.RTM_NEWLINK, make([]byte, sizeLink))
	if err != nil {
		return err
	}
	n.made = map[uint32]bool{}
	for _, m := range have {
		list, err := attrs(m, sizeLink)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(n.GetDevices(), func(d *imagespb.NetDevice) bool { return d.GetName() == text(find(list, unix.IFLA_IFNAME)) })
		if i >= 0 && n.GetDevices()[i].GetIndex() == word(m[4:]) {
			n.made[word(m[4:])] = true
		}
	}
	return nil
}

// makeAllLinks makes the devices of all namespaces, those on which others stand first.
func makeAllLinks(nets []*liveNet) error {
	for _, n := range nets {
		if err := n.inside((*liveNet).findMade); err != nil {
			return err
		}
	}
	for {
		progress, left := false, ""
		for _, n := range nets {
			err := n.inside(func(n *liveNet) error {
				more, waits, err := n.makeLinks(nets)
				progress = progress || more
				if waits != "" {
					left = waits
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		if left == "" {
			return nil
		}
		if !progress {
			return fmt.Errorf("device %s: the one on which it stands is not among the devices", left)
		}
	}
}

// makeLinks makes the devices for which all is there. It tells whether it made any, and one that waits for another.
func (n *liveNet) makeLinks(nets []*liveNet) (progress bool, left string, err error) {
	for _, d := range n.GetDevices() {
		if n.made[d.GetIndex()] {
			continue
		}
		list, err := attrs(d.GetLink(), sizeLink)
		if err != nil {
			return false, "", fmt.Errorf("device %.16q: %w", d.GetName(), err)
		}
		lower, at := word(find(list, unix.IFLA_LINK)), n
		if d.GetKind() == vxlan {
			data, err := linkData(d.GetLink())
			if err != nil {
				return false, "", fmt.Errorf("device %.16q: %w", d.GetName(), err)
			}
			lower = word(find(data, nl.IFLA_VXLAN_LINK))
		}
		if id := find(list, unix.IFLA_LINK_NETNSID); id != nil {
			i := slices.IndexFunc(nets, func(o *liveNet) bool { return o.id == namespaceOf(n.NetNamespace, id) })
			if i < 0 {
				return false, "", fmt.Errorf("device %.16q: leads to a network namespace that is not the tree's: %w", d.GetName(), ErrNotCarried)
			}
			at = nets[i]
		}
		if d.GetKind() != "veth" && lower != 0 && !at.made[lower] {
			left = d.GetName()
			continue
		}
		if err := n.makeLink(at, d, list); err != nil {
			return false, "", fmt.Errorf("device %s of kind %s: %w", d.GetName(), d.GetKind(), err)
		}
		n.made[d.GetIndex()], progress = true, true
		if d.GetKind() == "veth" {
			at.made[lower] = true
		}
	}
	return progress, left, nil
}

// linkMessage is the message that makes a device, without its kind.
func linkMessage(d *imagespb.NetDevice, list []attr) []byte {
	m := make([]byte, sizeLink)
	binary.NativeEndian.PutUint32(m[4:], d.GetIndex())
	for _, a := range list {
		if slices.Contains(linkAttrs, a.kind) && (a.kind != unix.IFLA_LINK && a.kind != unix.IFLA_LINK_NETNSID || d.GetKind() != "veth") {
			m = appendAttr(m, a.kind, a.data)
		}
	}
	return m
}

// makeLink makes a device; that to which it leads is in the namespace at.
func (n *liveNet) makeLink(at *liveNet, d *imagespb.NetDevice, list []attr) error {
	settable, ok := linkKinds[d.GetKind()]
	if !ok {
		return ErrNotCarried
	}
	given, err := linkData(d.GetLink())
	if err != nil {
		return err
	}
	var data []byte
	for _, a := range given {
		if d.GetKind() == vxlan && a.kind == vxlanTTLInherit { // it is read as a number, and written as a flag
			if !slices.Contains(a.data, 1) {
				continue
			}
			a.data = nil
		}
		if d.GetKind() != bridge && slices.Contains(settable, a.kind) {
			data = appendAttr(data, a.kind, a.data)
		}
	}
	if d.GetKind() == "veth" {
		if data, err = n.peerMessage(at, word(find(list, unix.IFLA_LINK))); err != nil {
			return err
		}
	}
	kind := appendAttr(nil, nl.IFLA_INFO_KIND, []byte(d.GetKind()))
	if data != nil {
		kind = appendAttr(kind, nl.IFLA_INFO_DATA|unix.NLA_F_NESTED, data)
	}
	m := appendAttr(linkMessage(d, list), unix.IFLA_LINKINFO|unix.NLA_F_NESTED, kind)
	return sendNetlink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m)
}

// peerMessage is the other end of a veth, as an attribute of the first (VETH_INFO_PEER).
func (n *liveNet) peerMessage(at *liveNet, index uint32) ([]byte, error) {
	i := slices.IndexFunc(at.GetDevices(), func(d *imagespb.NetDevice) bool { return d.GetIndex() == index })
	if i < 0 {
		return nil, fmt.Errorf("its other end, device %d, is not among the devices: %w", index, ErrNotCarried)
	}
	peer := at.GetDevices()[i]
	list, err := attrs(peer.GetLink(), sizeLink)
	if err != nil {
		return nil, err
	}
	m := linkMessage(peer, list)
	if at != n {
		m = appendAttr(m, unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(at.file.Fd())))
	}
	return appendAttr(nil, nl.VETH_INFO_PEER|unix.NLA_F_NESTED, m), nil
}

// offloads are the bounds of a device's segmentation and aggregation, in bytes and in segments, with what they are when nobody has set them
// (GSO_LEGACY_MAX_SIZE and its like in include/linux/netdevice.h).
var offloads = map[uint16]uint32{
	unix.IFLA_GSO_MAX_SIZE: 1 << 16, unix.IFLA_GRO_MAX_SIZE: 1 << 16, unix.IFLA_GSO_IPV4_MAX_SIZE: 1 << 16, unix.IFLA_GRO_IPV4_MAX_SIZE: 1 << 16,
	unix.IFLA_GSO_MAX_SEGS: 1<<16 - 1,
}

// setLink gives a device what refers to others, and what a device that was there already did not get when it was made.
func setLink(d *imagespb.NetDevice) error {
	list, err := attrs(d.GetLink(), sizeLink)
	if err != nil {
		return err
	}
	m := linkOf(d)
	for _, kind := range []uint16{unix.IFLA_MTU, unix.IFLA_TXQLEN, unix.IFLA_MASTER, unix.IFLA_IFALIAS} {
		if v := find(list, kind); v != nil {
			m = appendAttr(m, kind, v)
		}
	}
	for kind, usual := range offloads {
		if v := find(list, kind); len(v) == 4 && word(v) != usual {
			m = appendAttr(m, kind, v)
		}
	}
	return sendNetlink(unix.RTM_NEWLINK, 0, m)
}

// linkData are the attributes of a device that belong to its kind.
func linkData(link []byte) ([]attr, error) {
	list, err := attrs(link, sizeLink)
	if err != nil {
		return nil, err
	}
	info, err := attrs(find(list, unix.IFLA_LINKINFO), 0)
	if err != nil {
		return nil, err
	}
	return attrs(find(info, nl.IFLA_INFO_DATA), 0)
}

// quiet keeps the kernel from giving a device IPv6 addresses by itself and from testing those that are set. The settings
// are those of the record again when all sysctls have been written.
func quiet(d *imagespb.NetDevice) error {
	for name, value := range map[string]string{"addr_gen_mode": "1", "accept_dad": "0", "dad_transmits": "0"} {
		err := writeFile(netSysctls+"/ipv6/conf/"+d.GetName()+"/"+name, value)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func setUp(d *imagespb.NetDevice) error {
	if len(d.GetLink()) < sizeLink {
		return errors.New("its record is too short")
	}
	// struct ifinfomsg: family, pad, type, index, flags, change
	m := linkOf(d)
	binary.NativeEndian.PutUint32(m[8:], word(d.GetLink()[8:])&linkFlags)
	binary.NativeEndian.PutUint32(m[12:], linkFlags)
	return sendNetlink(unix.RTM_NEWLINK, 0, m)
}

// settle lets the kernel take note at once that a device has got a carrier, on which the state of those above it depends, and
// not when its queue of such events is next looked at, which takes up to a second (net/core/link_watch.c): it does so for one
// that is asked about.
func settle(d *imagespb.NetDevice) error {
	_, err := askNetlink(unix.RTM_GETLINK, unix.RTM_NEWLINK, linkOf(d))
	return err
}

// setAddresses makes the addresses of a device those of the record.
func setAddresses(d *imagespb.NetDevice) error {
	var wanted [][]byte
	for _, m := range d.GetAddresses() {
		kept, err := keep(m, sizeAddr, func(uint16) bool { return true })
		if err != nil {
			return err
		}
		wanted = append(wanted, kept)
		for _, m := range [][]byte{untested(kept), kept} {
			if m == nil {
				continue
			}
			if err := sendNetlink(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m); err != nil {
				return fmt.Errorf("an address of family %d: %w", kept[0], err)
			}
		}
	}
	have, err := dumpNetlink(unix.RTM_GETADDR, unix.RTM_NEWADDR, make([]byte, sizeAddr))
	if err != nil {
		return err
	}
	for _, m := range have {
		if len(m) < sizeAddr || word(m[4:]) != d.GetIndex() || slices.ContainsFunc(wanted, func(w []byte) bool { return sameAddress(w, m) }) {
			continue
		}
		if err := sendNetlink(unix.RTM_DELADDR, 0, m); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing an address that the tree did not have: %w", err)
		}
	}
	return nil
}

// untested is the message of an IPv6 address that was valid, so that it is valid at once: any other is tentative until a worker of the
// kernel has looked at it, whatever accept_dad says (net/ipv6/addrconf.c, addrconf_dad_start), and no socket can be bound to it. The
// flag stays, and goes again when the address is set as it was. It is nil for all others.
func untested(m []byte) []byte {
	list, err := attrs(m, sizeAddr)
	if flags := find(list, unix.IFA_FLAGS); err != nil || m[0] != unix.AF_INET6 || len(flags) != 4 || word(flags)&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
		return nil
	}
	out := append([]byte(nil), m[:sizeAddr]...)
	for _, a := range list {
		if a.kind == unix.IFA_FLAGS {
			a.data = binary.NativeEndian.AppendUint32(nil, word(a.data)|unix.IFA_F_NODAD)
		}
		out = appendAttr(out, a.kind, a.data)
	}
	return out
}

// sameAddress compares family, prefix and address.
func sameAddress(a, b []byte) bool {
	x, err1 := attrs(a, sizeAddr)
	y, err2 := attrs(b, sizeAddr)
	return err1 == nil && err2 == nil && a[0] == b[0] && a[1] == b[1] &&
		string(find(x, unix.IFA_ADDRESS)) == string(find(y, unix.IFA_ADDRESS)) && string(find(x, unix.IFA_LOCAL)) == string(find(y, unix.IFA_LOCAL))
}
