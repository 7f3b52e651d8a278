//go:build linux

package ns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// bridge is the kind of a device most of whose settings depend on how its driver was built, so that only what differs is set.
const bridge = "bridge"

// setBridge gives a bridge its settings.
func setBridge(d *imagespb.NetDevice) error {
	if d.GetKind() != bridge {
		return nil
	}
	now, err := linkNow(d)
	if err != nil {
		return err
	}
	have, err := linkData(now)
	if err != nil {
		return err
	}
	want, err := linkData(d.GetLink())
	if err != nil {
		return err
	}
	for _, a := range want {
		if !slices.Contains(linkKinds[bridge], a.kind) || string(find(have, a.kind)) == string(a.data) {
			continue
		}
		info := appendAttr(nil, nl.IFLA_INFO_KIND, []byte(bridge))
		info = appendAttr(info, nl.IFLA_INFO_DATA|unix.NLA_F_NESTED, appendAttr(nil, a.kind, a.data))
		if err := sendNetlink(unix.RTM_NEWLINK, 0, appendAttr(linkOf(d), unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)); err != nil {
			return fmt.Errorf("attribute %d of a bridge: %w", a.kind, err)
		}
	}
	return nil
}

// portSettings are the attributes of a bridge's port that are set where they differ (include/uapi/linux/if_link.h, IFLA_BRPORT_*).
var portSettings = []uint16{nl.IFLA_BRPORT_PRIORITY, nl.IFLA_BRPORT_COST, nl.IFLA_BRPORT_MODE, nl.IFLA_BRPORT_GUARD, nl.IFLA_BRPORT_PROTECT, nl.IFLA_BRPORT_FAST_LEAVE,
	nl.IFLA_BRPORT_LEARNING, nl.IFLA_BRPORT_UNICAST_FLOOD, nl.IFLA_BRPORT_PROXYARP, nl.IFLA_BRPORT_PROXYARP_WIFI, portMulticastRouter, portMulticastFlood,
	portMulticastToUnicast, portBroadcastFlood, portGroupForward, portNeighSuppress, portIsolated, portLocked}

const (
	portMulticastRouter    = 25
	portMulticastFlood     = 27
	portMulticastToUnicast = 28
	portBroadcastFlood     = 30
	portGroupForward       = 31
	portNeighSuppress      = 32
	portIsolated           = 33
	portLocked             = 39

	infoSlaveKind = 4 // IFLA_INFO_SLAVE_KIND
	infoSlaveData = 5 // IFLA_INFO_SLAVE_DATA

	propertyList  = 52  // IFLA_PROP_LIST, of IFLA_ALT_IFNAME
	rtmNewLinkTag = 108 // RTM_NEWLINKPROP
	linkXDP       = 43  // IFLA_XDP, with IFLA_XDP_ATTACHED
	xdpAttached   = 2
)

// checkParts refuses what a device has and what cannot be made again.
func (d *dumper) checkParts(where string, dev *imagespb.NetDevice, list []attr) {
	if xdp, err := attrs(find(list, linkXDP), 0); err == nil && slices.ContainsFunc(find(xdp, xdpAttached), func(b byte) bool { return b != 0 }) {
		d.refuse(where, "it has an XDP program", "remove it (ip link set DEVICE xdp off)")
	}
	if data, err := linkData(dev.GetLink()); err == nil && dev.GetKind() == bridge &&
		slices.ContainsFunc(find(data, nl.IFLA_BR_VLAN_FILTERING), func(b byte) bool { return b != 0 }) {
		d.refuse(where, "a bridge that filters VLANs", "")
	}
}

// setNames gives a device its other names (ip-link(8), altname).
func setNames(d *imagespb.NetDevice) error {
	list, err := attrs(d.GetLink(), sizeLink)
	if err != nil {
		return err
	}
	names := find(list, propertyList)
	if names == nil {
		return nil
	}
	m := append(linkOf(d), appendAttr(nil, propertyList|unix.NLA_F_NESTED, names)...)
	err = sendNetlink(rtmNewLinkTag, unix.NLM_F_CREATE|unix.NLM_F_APPEND|unix.NLM_F_EXCL, m)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("its other names: %w", err)
	}
	return nil
}

// setPort gives a port of a bridge its settings.
func setPort(d *imagespb.NetDevice) error {
	want, err := portData(d.GetLink())
	if err != nil || want == nil {
		return err
	}
	now, err := linkNow(d)
	if err != nil {
		return err
	}
	have, err := portData(now)
	if err != nil {
		return err
	}
	var data []byte
	for _, a := range want {
		if slices.Contains(portSettings, a.kind) && string(find(have, a.kind)) != string(a.data) {
			data = appendAttr(data, a.kind, a.data)
		}
	}
	if data == nil {
		return nil
	}
	info := appendAttr(nil, infoSlaveKind, []byte(bridge))
	info = appendAttr(info, infoSlaveData|unix.NLA_F_NESTED, data)
	if err := sendNetlink(unix.RTM_NEWLINK, 0, appendAttr(linkOf(d), unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)); err != nil {
		return fmt.Errorf("settings of a bridge's port: %w", err)
	}
	return nil
}

// portData are the attributes that a device has as a port of a bridge; nil if it is none.
func portData(link []byte) ([]attr, error) {
	list, err := attrs(link, sizeLink)
	if err != nil {
		return nil, err
	}
	info, err := attrs(find(list, unix.IFLA_LINKINFO), 0)
	if err != nil || text(find(info, infoSlaveKind)) != bridge {
		return nil, err
	}
	return attrs(find(info, infoSlaveData), 0)
}

// linkOf is the fixed part of a message about a device.
func linkOf(d *imagespb.NetDevice) []byte {
	m := make([]byte, sizeLink)
	binary.NativeEndian.PutUint32(m[4:], d.GetIndex())
	return m
}

// linkNow is what the kernel says of a device.
func linkNow(d *imagespb.NetDevice) ([]byte, error) {
	all, err := dumpNetlink(unix.RTM_GETLINK, unix.RTM_NEWLINK, make([]byte, sizeLink))
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(m []byte) bool { return len(m) >= sizeLink && word(m[4:]) == d.GetIndex() })
	if i < 0 {
		return nil, errors.New("it is gone")
	}
	return all[i], nil
}
