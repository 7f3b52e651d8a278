//go:build linux

package ns

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// Of include/uapi/linux/pkt_sched.h and rtnetlink.h.
const (
	sizeTC          = 20 // struct tcmsg: family, pads, ifindex, handle, parent, info
	tcaIngressBlock = 13
	tcaEgressBlock  = 14
	tcaHTBInit      = 2 // struct tc_htb_glob, which begins with the version
	tcRoot          = 0xFFFFFFFF
	clsactIngress   = 0xFFFFFFF2
	clsactEgress    = 0xFFFFFFF3
)

// queueings are the queueing disciplines whose settings can be written as they are read (tc(8)). Those with classes have true.
var queueings = map[string]bool{
	"pfifo_fast": false, "pfifo": false, "bfifo": false, "pfifo_head_drop": false, "noqueue": false, "tbf": false, "htb": true,
	"ingress": false, "clsact": false,
}

// queues reads the queueing disciplines that somebody has set, with their classes, and refuses those that are not carried.
func (d *dumper) queues(n *imagespb.NetNamespace) error {
	all, err := dumpNetlink(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, make([]byte, sizeTC))
	if err != nil {
		return err
	}
	classful := map[uint32]bool{}
	for _, m := range all {
		list, err := attrs(m, sizeTC)
		if err != nil {
			return err
		}
		handle := word(m[8:])
		if handle == 0 {
			continue // the device's own
		}
		kind := text(find(list, unix.TCA_KIND))
		where := fmt.Sprintf("%s with handle %x: of device %d", kind, handle>>16, word(m[4:]))
		if _, ok := queueings[kind]; !ok || find(list, tcaIngressBlock) != nil || find(list, tcaEgressBlock) != nil {
			d.refuse("queueing discipline", where, "")
			continue
		}
		parents := []uint32{handle}
		if kind == "clsact" {
			parents = []uint32{clsactIngress, clsactEgress}
		}
		if err := d.filters(where, word(m[4:]), parents...); err != nil {
			return err
		}
		classful[word(m[4:])] = classful[word(m[4:])] || queueings[kind]
		if err := addQueue(n, unix.RTM_NEWQDISC, m); err != nil {
			return err
		}
	}
	for dev, has := range classful {
		if !has {
			continue
		}
		ask := make([]byte, sizeTC)
		binary.NativeEndian.PutUint32(ask[4:], dev)
		classes, err := dumpNetlink(unix.RTM_GETTCLASS, unix.RTM_NEWTCLASS, ask)
		if err != nil {
			return err
		}
		for _, m := range classes {
			if len(m) < sizeTC {
				return errShort
			}
			if err := d.filters(fmt.Sprintf("class %x of device %d", word(m[8:]), dev), dev, word(m[8:])); err != nil {
				return err
			}
			if err := addQueue(n, unix.RTM_NEWTCLASS, m); err != nil {
				return err
			}
		}
	}
	return nil
}

func addQueue(n *imagespb.NetNamespace, typ uint32, m []byte) error {
	kept, err := keep(m, sizeTC, func(k uint16) bool { return k == unix.TCA_KIND || k == unix.TCA_OPTIONS })
	if err == nil {
		binary.NativeEndian.PutUint32(kept[16:], 0) // how many use it, or a leaf that the class gets by its own record
		addObject(n, typ, kept)
	}
	return err
}

// filters refuses what sorts packets.
func (d *dumper) filters(where string, dev uint32, parents ...uint32) error {
	for _, parent := range parents {
		ask := make([]byte, sizeTC)
		binary.NativeEndian.PutUint32(ask[4:], dev)
		binary.NativeEndian.PutUint32(ask[12:], parent)
		all, err := dumpNetlink(unix.RTM_GETTFILTER, unix.RTM_NEWTFILTER, ask)
		if err != nil {
			return err
		}
		if len(all) > 0 {
			list, err := attrs(all[0], sizeTC)
			if err != nil {
				return err
			}
			d.refuse("traffic filter", fmt.Sprintf("%s at %s", text(find(list, unix.TCA_KIND)), where), "remove it (tc filter del)")
		}
	}
	return nil
}

// restoreQueues makes the queueing disciplines and classes: what one belongs to is there before it.
func (n *liveNet) restoreQueues() error {
	var left []*imagespb.NetObject
	for _, o := range n.GetObjects() {
		if o.GetType() == unix.RTM_NEWQDISC || o.GetType() == unix.RTM_NEWTCLASS {
			if len(o.GetMessage()) < sizeTC {
				return fmt.Errorf("a queueing discipline: %w", errShort)
			}
			left = append(left, o)
		}
	}
	for made := map[[2]uint32]bool{}; len(left) > 0; {
		i := slices.IndexFunc(left, func(o *imagespb.NetObject) bool {
			dev, parent := word(o.GetMessage()[4:]), word(o.GetMessage()[12:])
			if parent == tcRoot && o.GetType() == unix.RTM_NEWTCLASS { // directly below the discipline
				parent = word(o.GetMessage()[8:]) &^ 0xFFFF
			}
			return parent == tcRoot || parent>>16 == 0xFFFF || made[[2]uint32{dev, parent}]
		})
		if i < 0 {
			m := left[0].GetMessage()
			return fmt.Errorf("queueing discipline %x of device %d: its parent %x is not among the others", word(m[8:]), word(m[4:]), word(m[12:]))
		}
		m := left[i].GetMessage()
		made[[2]uint32{word(m[4:]), word(m[8:])}] = true
		if err := makeQueue(left[i].GetType(), m); err != nil {
			return fmt.Errorf("queueing discipline %x of device %d: %w", word(m[8:]), word(m[4:]), err)
		}
		left = slices.Delete(left, i, i+1)
	}
	return nil
}

func makeQueue(typ uint32, m []byte) error {
	list, err := attrs(m, sizeTC)
	if err != nil {
		return err
	}
	if typ == unix.RTM_NEWQDISC && text(find(list, unix.TCA_KIND)) == "htb" {
		options, err := attrs(find(list, unix.TCA_OPTIONS), 0)
		if err != nil {
			return err
		}
		// It tells its whole version, and takes the upper half of it (net/sched/sch_htb.c).
		if init := find(options, tcaHTBInit); word(init) > 0xFFFF {
			binary.NativeEndian.PutUint32(init, word(init)>>16)
		}
	}
	return sendNetlink(uint16(typ), unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m)
}
