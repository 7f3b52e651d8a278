package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/agent/port"
	"migrate/agent/workload"
)

// checkAddress refuses an address that a workload which starts here cannot have: of this host, or of a network that its
// bridge is not in. The cluster has checked what it knows, which is how the host was when it registered.
func (a *Agent) checkAddress(addr string) error {
	if a.host.ports == nil || a.host.bridge == "" {
		return nil // making the port will say so
	}
	list, err := parsePrefixes(strings.Split(addr, ","))
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	for _, p := range list {
		if ownAddress(p.Addr()) {
			return status.Errorf(codes.FailedPrecondition, "address %v belongs to this host; give another --addr", p.Addr())
		}
		bridge, err := bridgeNetworks(a.host.bridge)
		if err != nil {
			return status.Error(codes.FailedPrecondition, err.Error())
		}
		if in := slices.ContainsFunc(bridge, func(b netip.Prefix) bool { return p.Contains(b.Addr()) }); !in && (len(bridge) > 0 || !a.onLink(p)) {
			return status.Errorf(codes.FailedPrecondition, "the bridge %s has no address in the network %v, so nobody would reach the workload at %v", a.host.bridge, p.Masked(), p.Addr())
		}
	}
	return nil
}

// bridgeNetworks lists a bridge's addresses that are seen beyond its link; a bridge may have none, and its host's be
// elsewhere.
func bridgeNetworks(name string) ([]netip.Prefix, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("bridge %s (of the agent's configuration): %w", name, err)
	}
	list, err := dev.Addrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of the bridge %s: %w", name, err)
	}
	var out []netip.Prefix
	for _, x := range list {
		if p, err := netip.ParsePrefix(x.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p)
		}
	}
	return out, nil
}

// linkMTU is the size in bytes of the largest packet on the link that carries a tree's addresses here: a workload's own port,
// or the device of this host that has those of a bare process. 0 without an address.
func (a *Agent) linkMTU(env *workload.Env, addresses []string) (uint32, error) {
	if len(addresses) == 0 || a.host.ports == nil {
		return 0, nil
	}
	if env != nil && !env.Spec().GetBare() {
		return a.host.ports.MTU(env.Name())
	}
	p, err := netip.ParsePrefix(addresses[0])
	if err != nil {
		return 0, fmt.Errorf("address %q: %w", addresses[0], err)
	}
	return a.deviceMTU(p, true)
}

// linkMACs are the hardware addresses that answer to a tree's addresses on the link here.
func (a *Agent) linkMACs(env *workload.Env, addresses []string) ([][]byte, error) {
	if len(addresses) == 0 || a.host.ports == nil {
		return nil, nil
	}
	var out [][]byte
	for _, s := range addresses {
		if env != nil && !env.Spec().GetBare() {
			mac, err := a.host.ports.WorkloadMAC(env.Name(), env.Init().PID)
			if err != nil {
				return nil, err
			}
			out = append(out, mac)
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", s, err)
		}
		dev, err := a.deviceOf(p, true)
		if err != nil {
			return nil, err
		}
		out = append(out, dev.HardwareAddr)
	}
	return out, nil
}

// deviceMTU is that of the device which carries, or would carry, an address on this host.
func (a *Agent) deviceMTU(p netip.Prefix, bare bool) (uint32, error) {
	dev, err := a.deviceOf(p, bare)
	if err != nil {
		return 0, err
	}
	return uint32(dev.MTU), nil
}

// deviceOf is the device that carries, or would carry, an address on this host.
func (a *Agent) deviceOf(p netip.Prefix, bare bool) (*net.Interface, error) {
	name := a.host.bridge
	if bare {
		var err error
		if name, err = deviceFor(p); err != nil {
			return nil, err
		}
	}
	if name == "" {
		return nil, errors.New("the host has no bridge (bridge in the agent's configuration)")
	}
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	return dev, nil
}

// planLinks asks on this host's link who has the addresses that come along: it must be who has them at the source. Else the link is
// another one, on which the clients are not.
func (a *Agent) planLinks(ctx context.Context, needs *agentapi.Requirements, bare bool, block blocker) error {
	type answer struct {
		mac net.HardwareAddr
		err error
	}
	addresses, macs := needs.GetAddresses(), needs.GetMacs()
	answers := make([]answer, min(len(addresses), len(macs)))
	var asking sync.WaitGroup
	for i := range answers {
		p, err := netip.ParsePrefix(addresses[i])
		if err != nil || ownAddress(p.Addr()) || !a.onLink(p) {
			continue // planAddresses has said so
		}
		dev, err := a.deviceOf(p, bare)
		if err != nil {
			continue // likewise
		}
		asking.Go(func() { answers[i].mac, answers[i].err = a.host.ports.Ask(ctx, dev.Name, p.Addr(), macs[i]) })
	}
	asking.Wait()
	for i, x := range answers {
		switch {
		case errors.Is(x.err, port.ErrNobody):
			block("address", addresses[i], "connect both hosts to the same network segment", "nobody answers to it on the link of this host: it is another segment than that of the source")
		case x.err != nil:
			return x.err
		case x.mac != nil && !bytes.Equal(x.mac, macs[i]):
			block("address", addresses[i], "take it away from there", "the address is in use on the link of this host, by %v; at the source %v has it", x.mac, net.HardwareAddr(macs[i]))
		}
	}
	return nil
}

// planAddresses checks that the addresses that come along fit this host's network.
func (a *Agent) planAddresses(needs *agentapi.Requirements, bare bool, block blocker) {
	for _, s := range needs.GetAddresses() {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			block("address", s, "", "%v", err)
		case a.host.ports == nil:
			block("address", s, "", "the host's network cannot be changed by its agent")
		case ownAddress(p.Addr()):
			block("address", s, "take it off this host's device", "the address is in use there: it is one of the host's own")
		case !a.onLink(p):
			block("address", s, "", "the host has no address in the network %v, so its link does not reach the workload's clients", p.Masked())
		default:
			switch mtu, err := a.deviceMTU(p, bare); {
			case err != nil:
				block("address", s, "", "%v", err)
			case mtu < needs.GetMtu():
				block("address", s, "give this host's device the same MTU", "the link takes packets of %d bytes, that of the source %d: larger ones of the connections that move would get lost", mtu, needs.GetMtu())
			}
		}
	}
}

// ownAddress says that a device of this host has the address.
func ownAddress(a netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false // building the port will say so
	}
	return slices.ContainsFunc(list, func(x net.Addr) bool {
		p, err := netip.ParsePrefix(x.String())
		return err == nil && p.Addr().Unmap() == a.Unmap()
	})
}

// onLink says that the host has an address in the same network.
func (a *Agent) onLink(p netip.Prefix) bool {
	return slices.ContainsFunc(a.node.GetAddresses(), func(s string) bool {
		own, err := netip.ParsePrefix(s)
		return err == nil && p.Contains(own.Addr())
	})
}
