package port

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Making devices and addresses work is partly left to workers of the kernel, which may come late on a busy machine. Nothing that
// could be awaited tells of their end cheaper than looking again, so that is what happens here, in growing steps.
func lookUntil(ctx context.Context, what string, look func() (done bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		done, err := look()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// awaitCarrier waits until a device sends what it is given. A device whose other end came up after it starts to do so when the
// kernel's link watcher has run; until then it drops everything without a word.
func awaitCarrier(ctx context.Context, nl *netlink.Handle, device string) error {
	return lookUntil(ctx, "device "+device+" to be operational", func() (bool, error) {
		l, err := nl.LinkByName(device)
		if err != nil {
			return false, fmt.Errorf("device %s: %w", device, err)
		}
		return l.Attrs().OperState == netlink.OperUp, nil
	})
}

// awaitListening waits until a device listens to the multicast groups in which its IPv6 addresses are asked for. Until then
// neighbours get no answer, and ask again a second later.
func awaitListening(ctx context.Context, ns *os.File, device string, addrs []netip.Prefix) error {
	for _, p := range addrs {
		if !p.Addr().Is6() {
			continue
		}
		ip := p.Addr().As16()
		group := "ff0200000000000000000001ff" + hex.EncodeToString(ip[13:]) // RFC 4291, section 2.7.1
		err := lookUntil(ctx, "the neighbours' group of "+p.Addr().String(), func() (joined bool, err error) {
			err = inside(ns, func() error {
				b, err := os.ReadFile("/proc/thread-self/net/igmp6")
				for line := range strings.Lines(string(b)) {
					f := strings.Fields(line)
					joined = joined || len(f) > 2 && f[1] == device && f[2] == group
				}
				return err
			})
			return joined, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
