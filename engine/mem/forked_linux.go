package mem

import (
	"encoding/binary"
	"fmt"
)

// process_vm_readv(2) pins the pages that it reads, and the kernel gives a process a copy of its own of a page to be pinned
// that it shares since a fork (gup_must_unshare in mm/gup.c, since Linux 5.19). To read a tree that way would make its memory
// as large as that of all its processes together. Reading /proc/PID/mem pins nothing, but copies twice; so it is for such
// pages only.

// pmExclusive is the bit of an entry of /proc/PID/pagemap that says that the page is mapped once.
const pmExclusive = 1 << 56

// forked are ranges whose pages are all shared with other processes since a fork, or none.
type forked struct {
	ranges []Range
	shared bool
}

// split takes the ranges of a batch apart, in their order.
func (v view) split(batch []Range) ([]forked, error) {
	var out []forked
	add := func(r Range, shared bool) {
		n := len(out)
		if n == 0 || out[n-1].shared != shared {
			out = append(out, forked{[]Range{r}, shared})
			return
		}
		last := &out[n-1]
		if k := len(last.ranges); last.ranges[k-1].End == r.Start {
			last.ranges[k-1].End = r.End
			return
		}
		last.ranges = append(last.ranges, r)
	}
	var buf [8 * batchPages]byte
	for _, r := range batch {
		entries := buf[:8*r.Pages()]
		n, err := v.pagemap.ReadAt(entries, int64(r.Start/PageSize*8))
		if n < len(entries) && v.gone() != nil {
			return nil, v.gone()
		}
		if n%8 != 0 {
			return nil, fmt.Errorf("reading %s at 0x%x: %w", v.pagemap.Name(), r.Start, err)
		}
		clear(entries[n:]) // after an exec there is no answer
		for i := range r.Pages() {
			e := binary.LittleEndian.Uint64(entries[8*i:])
			at := r.Start + i*PageSize
			add(Range{at, at + PageSize}, e&pmPresent != 0 && e&(pmFile|pmExclusive) == 0)
		}
	}
	return out, nil
}
