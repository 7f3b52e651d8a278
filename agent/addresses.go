package agent

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
