package restore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"migrate/engine/remote"
)

// ErrNoRoom means that an address space has no gap that is large enough for the scratch memory of a restore.
var ErrNoRoom = errors.New("the address space has no free range that is large enough")

// extent is a range of addresses, end excluded.
type extent struct{ start, end uint64 }

// The part of an address space in which holes are searched. Below, vm.mmap_min_addr may forbid mappings; above is the
// kernel's (Documentation/arch/x86/x86_64/mm.rst, Documentation/arch/arm64/memory.rst).
const (
	lowestHole  = 1 << 20
	highestHole = 1<<47 - 1<<30
	// holeMargin is kept free beside a hole, so that a stack or a heap next to it can still grow.
	holeMargin = 1 << 20
)

// findHole returns the start of a range of size bytes that touches none of the ranges taken. It takes the middle of
// the largest gap, which is where a program is the least likely to map something between two rounds.
func findHole(size uint64, taken ...[]extent) (remote.Addr, error) {
	all := slices.Concat(taken...)
	slices.SortFunc(all, func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	var best extent
	free := uint64(lowestHole)
	for _, s := range append(all, extent{highestHole, highestHole}) {
		if s.start > free && s.start-free > best.end-best.start && s.start <= highestHole {
			best = extent{free, s.start}
		}
		free = max(free, s.end)
	}
	if best.end-best.start < size+2*holeMargin {
		return 0, fmt.Errorf("%d bytes between mappings: %w", size, ErrNoRoom)
	}
	middle := best.start + (best.end-best.start-size)/2
	return remote.Addr(middle &^ (pageSize - 1)), nil
}

const pageSize = 4096
