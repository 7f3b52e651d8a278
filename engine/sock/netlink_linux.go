package sock

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Netlink is a netlink socket (netlink(7)), without what waits in its queue.
type Netlink struct {
	PortID, DstPortID, DstGroups uint32
	Groups                       []uint32 // joined, as a bitmap: bit 0 of the first word is group 1
}

// SaveNetlink reads a socket and changes nothing.
func SaveNetlink(fd int) (*Netlink, error) {
	n := &Netlink{}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	if a, ok := sa.(*unix.SockaddrNetlink); ok {
		n.PortID = a.Pid
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		if a, ok := sa.(*unix.SockaddrNetlink); ok {
			n.DstPortID, n.DstGroups = a.Pid, a.Groups
		}
	}
	buf := make([]byte, 4096) // of groups, in bits
	if size, err := getsockopt(fd, levelNetlink, unix.NETLINK_LIST_MEMBERSHIPS, buf); err == nil {
		for b := buf[:min(size, len(buf))&^3]; len(b) > 0; b = b[4:] {
			n.Groups = append(n.Groups, binary.NativeEndian.Uint32(b))
		}
	} else if !quiet(err) {
		return nil, fmt.Errorf("NETLINK_LIST_MEMBERSHIPS: %w", err)
	}
	return n, nil
}

// RestoreNetlink gives a fresh socket its port, its groups and its peer.
func RestoreNetlink(fd int, n *Netlink) error {
	if n.PortID != 0 {
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: n.PortID}); err != nil {
			return fmt.Errorf("bind netlink socket to port %d (is it free?): %w", n.PortID, err)
		}
	}
	for i, word := range n.Groups {
		for bit := range 32 {
			if word>>bit&1 == 0 {
				continue
			}
			if err := unix.SetsockoptInt(fd, levelNetlink, unix.NETLINK_ADD_MEMBERSHIP, 32*i+bit+1); err != nil {
				return fmt.Errorf("join netlink group %d: %w", 32*i+bit+1, err)
			}
		}
	}
	if n.DstPortID != 0 || n.DstGroups != 0 {
		if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: n.DstPortID, Groups: n.DstGroups}); err != nil {
			return fmt.Errorf("connect netlink socket to port %d, groups %#x: %w", n.DstPortID, n.DstGroups, err)
		}
	}
	return nil
}

// NetlinkBusy tells from /proc/PID/net/netlink whether a socket has messages that wait or an answer that is not complete yet.
func NetlinkBusy(table []byte, ino uint64) bool {
	for line := range bytes.Lines(table) {
		f := bytes.Fields(line) // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if len(f) >= 10 && string(f[9]) == strconv.FormatUint(ino, 10) {
			return string(f[4]) != "0" || string(f[6]) != "0"
		}
	}
	return false
}
