package fsm

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"migrate/coordinator/fsm/logpb"
)

// addressFree refuses addresses that a workload which is about to start cannot have: of another workload, whose clients
// would be cut off, of a host, or of a network that its host is not in. A bare process has its addresses already.
func (s *State) addressFree(c *logpb.CreateWorkload) error {
	if c.GetSpec().GetBare() {
		return nil
	}
	for _, p := range prefixes(c.GetSpec().GetAddr()) {
		for _, name := range slices.Sorted(maps.Keys(s.Workloads)) {
			w := s.Workloads[name]
			if name != c.GetSpec().GetName() && (alive(w.State) || w.Migration != "") && hasAddress(p.Addr(), prefixes(w.GetSpec().GetAddr())...) {
				return conflict(Exists, "address %v belongs to workload %q on %s; give another --addr", p.Addr(), name, w.Host)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
			if hasAddress(p.Addr(), prefixes(s.Nodes[name].GetInfo().GetAddresses()...)...) {
				return conflict(Exists, "address %v belongs to host %s; give another --addr", p.Addr(), name)
			}
		}
		own := prefixes(s.Nodes[c.GetHost()].GetInfo().GetAddresses()...)
		if !slices.ContainsFunc(own, func(h netip.Prefix) bool { return p.Contains(h.Addr()) }) {
			return conflict(Refused, "%s has no address in the network %v, so nobody would reach the workload at %v; it is in %v", c.GetHost(), p.Masked(), p.Addr(), networks(own))
		}
	}
	return nil
}

// prefixes reads addresses, each one CIDR or several with commas between. What is no CIDR has been refused elsewhere.
func prefixes(lists ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, list := range lists {
		for s := range strings.SplitSeq(list, ",") {
			if p, err := netip.ParsePrefix(s); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
}

func hasAddress(a netip.Addr, list ...netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Unmap() == a.Unmap() })
}

// networks is in words which networks a host is in.
func networks(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.Masked().String())
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(slices.Compact(out), ", ")
}
