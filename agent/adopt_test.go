//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	agentapi "migrate/agent/api"
	"migrate/agent/move"
	"migrate/agent/port"
	"migrate/agent/workload"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ns"
	"migrate/engine/thread"
)

// A bare process that an agent has left behind is found with its gate, and what surrounds it goes when it stays or leaves.
func TestABareProcessIsAdoptedWithItsGate(t *testing.T) {
	kerneltest.Root(t)
	for _, stays := range []bool{true, false} {
		t.Run(fmt.Sprintf("stays=%v", stays), func(t *testing.T) {
			if err := thread.ThrowAway(func() error { return adoptsBare(t, stays) }); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// bareDevice makes a network of its own for the calling thread, with a floating address.
func bareDevice(floating string) (netlink.Link, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link)); err != nil {
		return nil, err
	}
	for _, cidr := range []string{"10.77.0.11/24", floating} {
		a, err := netlink.ParseAddr(cidr)
		if err == nil {
			err = netlink.AddrAdd(link, a)
		}
		if err != nil {
			return nil, err
		}
	}
	return link, nil
}

// agentHost is what an agent has of a host after its start.
func agentHost() (*host, error) {
	ports, err := port.Open(nil)
	return &host{log: slog.New(slog.DiscardHandler), set: &workload.Set{}, ports: ports, open: map[string]*gate{}}, err
}

func adoptsBare(t *testing.T, stays bool) error {
	const floating = "10.77.0.60/24"
	ctx := context.Background()
	link, err := bareDevice(floating)
	if err != nil {
		return err
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	before, err := ns.OpenCgroup(cmd.Process.Pid)
	if err != nil {
		return err
	}
	around := fmt.Sprintf("migrate-adopt-%d/bare-1", os.Getpid())
	cg, err := ns.MakeCgroup(filepath.Join(around, "tree"))
	if err != nil {
		return err
	}
	defer func() { _ = removeCgroup(filepath.Dir(around)) }() // the test has failed if something is in it
	if err := cg.Add(cmd.Process.Pid); err != nil {
		return err
	}
	if err := cg.Freeze(ctx); err != nil {
		return err
	}
	first, err := agentHost()
	if err != nil {
		return err
	}
	p, err := first.floatingPort(ctx, "bare", []netip.Prefix{netip.MustParsePrefix(floating)}, false)
	if err == nil {
		err = p.ShutEgress()
	}
	if err = errors.Join(err, first.ports.Close()); err != nil {
		return err
	}

	h, err := agentHost()
	if err != nil {
		return err
	}
	defer func() { _ = h.ports.Close() }()
	spec, err := protojson.Marshal(&agentapi.WorkloadSpec{Name: "bare"})
	if err != nil {
		return err
	}
	held, p, frozen, whole, err := h.Adopt(ctx, move.Handle{Instance: 1, PID: cmd.Process.Pid, Cgroup: around, Bare: true, Addrs: []string{floating},
		Before: belowMount(before), Spec: spec})
	if err != nil {
		return err
	}
	if p == nil || !frozen || !whole {
		return fmt.Errorf("port %v, frozen %v, whole %v", p, frozen, whole)
	}
	if !stays {
		if err := held.Destroy(ctx); err != nil {
			return err
		}
		return bareIsGone(t, h, link, 1)
	}
	if err := errors.Join(held.Thaw(ctx), p.OpenEgress(), p.OpenIngress(), held.(move.Adopted).Leave(ctx)); err != nil {
		return err
	}
	if now, err := ns.OpenCgroup(cmd.Process.Pid); err != nil || now.Path() != before.Path() {
		t.Errorf("the process is in cgroup %v (%v), and was in %s", now, err, before.Path())
	}
	return bareIsGone(t, h, link, 2)
}

// bareIsGone checks that nothing is left of a gate but the addresses that belong here.
func bareIsGone(t *testing.T, h *host, link netlink.Link, addrs int) error {
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		list, err = netlink.AddrList(link, netlink.FAMILY_V4)
	}
	if err != nil {
		return err
	}
	if len(list) != addrs || len(h.open) != 0 {
		t.Errorf("the device has the addresses %v, want %d; gates %v", list, addrs, h.open)
	}
	return nil
}
