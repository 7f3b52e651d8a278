// Package schedule decides where workloads go. It is pure: the same hosts and workloads, in whatever order, give the same answer.
package schedule

import (
	"cmp"
	"slices"
)

// Host is one that may be given workloads.
type Host struct {
	Name string
	// Free is the memory in bytes that nothing uses and nothing that is on its way there will use.
	Free uint64
	// Workloads is how many are there or on their way.
	Workloads int
}

// Workload is one that needs a host.
type Workload struct {
	Name string
	// Size is the memory in bytes that it uses.
	Size uint64
	// Not are the hosts that it cannot go to.
	Not []string
}

// Placement gives a workload a host.
type Placement struct{ Workload, Host string }

// reserve is the part of a host's free memory, one of so many, that placement leaves alone: what runs there grows, too.
const reserve = 20

// room is how much of a host placement may use, in bytes.
func (h Host) room() uint64 { return h.Free - h.Free/reserve }

// Spread gives each workload the host that has the most memory left with it, the largest workload first, and of equal hosts the
// one with the fewest workloads. A part of each host's free memory is left alone. Those for which none has room, or that may go to
// none, are left.
func Spread(workloads []Workload, hosts []Host) (placed []Placement, left []string) {
	hosts = slices.Clone(hosts)
	used := map[string]uint64{}
	workloads = slices.SortedFunc(slices.Values(workloads), func(a, b Workload) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Name, b.Name))
	})
	for _, w := range workloads {
		slices.SortFunc(hosts, func(a, b Host) int {
			return cmp.Or(cmp.Compare(b.room()-used[b.Name], a.room()-used[a.Name]), cmp.Compare(a.Workloads, b.Workloads), cmp.Compare(a.Name, b.Name))
		})
		i := slices.IndexFunc(hosts, func(h Host) bool {
			return h.room()-used[h.Name] >= w.Size && !slices.Contains(w.Not, h.Name)
		})
		if i < 0 {
			left = append(left, w.Name)
			continue
		}
		placed = append(placed, Placement{w.Name, hosts[i].Name})
		used[hosts[i].Name] += w.Size
		hosts[i].Workloads++
	}
	return placed, left
}
