//go:build linux

package ns

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// The link-layer addresses of groups to which devices listen. Protocols and packet sockets ask for theirs again; what an operator has
// asked for (ip maddr add, SIOCADDMULTI of netdevice(7)) is of the device, and the kernel keeps it once however often it is asked for.

// readMulticast reads /proc/net/dev_mcast (net/core/dev_addr_lists.c's dev_mc_seq_show): number and name of the device, users, whether one of them is an
// operator, and the address. A thread sees there the devices of its own network namespace.
func readMulticast(devices map[uint32]*imagespb.NetDevice) error {
	b, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
	if err != nil {
		return fmt.Errorf("link-layer multicast addresses: %w", err)
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) != 5 {
			return fmt.Errorf("link-layer multicast addresses: %q is not understood", line)
		}
		index, err := strconv.ParseUint(string(f[0]), 10, 32)
		if err != nil {
			return fmt.Errorf("link-layer multicast addresses: %w", err)
		}
		addr, err := hex.DecodeString(string(f[4]))
		if err != nil {
			return fmt.Errorf("link-layer multicast address of device %s: %w", f[1], err)
		}
		if dev := devices[uint32(index)]; dev != nil && string(f[3]) != "0" {
			dev.Multicast = append(dev.Multicast, addr)
		}
	}
	return nil
}

func setMulticast(d *imagespb.NetDevice) error {
	for _, addr := range d.GetMulticast() {
		if err := addMulticast(d.GetName(), addr); err != nil {
			return fmt.Errorf("link-layer multicast address %x: %w", addr, err)
		}
	}
	return nil
}

// ifreqSize is the size of struct ifreq, hardwareAt where its address begins and maxHardware what that holds (netdevice(7)).
const (
	ifreqSize   = 40
	hardwareAt  = unix.IFNAMSIZ + 2
	maxHardware = 14
)

func addMulticast(device string, addr []byte) error {
	if len(device) >= unix.IFNAMSIZ || len(addr) > maxHardware {
		return fmt.Errorf("%d bytes, of device %q", len(addr), device)
	}
	var req [ifreqSize]byte
	copy(req[:], device)
	copy(req[hardwareAt:], addr)
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }() // nothing is written to it
	return ioctlIfreq(s, unix.SIOCADDMULTI, &req)
}
