package mem

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// A rewriter is a Tracker that can tell, between two Collects, which pages have been written again. It may be asked by several goroutines, each
// with a scanner of its own, while no Collect runs.
type rewriter interface {
	// rewritten returns the pages of the ranges, which are sorted, that the next Collect will report in any case; not all of them, and none of what is
	// not tracked.
	rewritten(s *scanner, ranges []Range) ([]Range, error)
}

// patience is how long after the scan a round begins to look for pages that were rewritten since. A shorter one has little to skip, and is perhaps
// the last one before a switch, whose length counts.
const patience = 10 * time.Millisecond

// skipper leaves out of a round what was written again since its scan: the next round sends it anyway, and what would be sent now is of no use.
// Each worker has its own.
type skipper struct {
	tracker rewriter // nil: nothing is skipped
	since   time.Time
	scan    scanner
	skipped []Range
	count   uint64 // of pages that were skipped
}

// skipper returns one for a round that began at start. The last round skips nothing, for the program stands still and nothing follows.
func (s *Source) skipper(start time.Time, final bool) skipper {
	k := skipper{since: start}
	if t, ok := s.tracker.(rewriter); ok && !final {
		k.tracker, k.scan.pagemap = t, s.view.pagemap
	}
	return k
}

// left is what of a batch is still worth sending.
func (k *skipper) left(batch []Range) ([]Range, error) {
	if k.tracker == nil || time.Since(k.since) < patience {
		return batch, nil
	}
	again, err := k.tracker.rewritten(&k.scan, batch)
	if err != nil || len(again) == 0 {
		return batch, err
	}
	k.skipped = append(k.skipped, again...)
	for _, r := range again {
		k.count += r.Pages()
	}
	return without(batch, again), nil
}

// rewritten asks for what is not protected any more. A mapping that is not registered fails the query, for all of its pages would count.
func (u *userfault) rewritten(s *scanner, ranges []Range) ([]Range, error) {
	var out rangeSet
	for i := 0; i < len(ranges); {
		j := i + 1 // one call for what is close together
		for j < len(ranges) && ranges[j].Start-ranges[j-1].End <= closeBy {
			j++
		}
		whole := Range{ranges[i].Start, ranges[j-1].End}
		found, err := s.walk(scan{Range: whole, flags: scanCheckWPAsync, mask: pageWritten, wants: pageWritten}, nil, func(uint64) (State, bool) { return Written, true })
		switch {
		case errors.Is(err, unix.EPERM):
		case err != nil:
			return nil, err
		default:
			asked := rangeSet(ranges[i:j])
			for _, e := range found {
				for _, r := range asked.cut(e.Range) {
					out.append(r)
				}
			}
		}
		i = j
	}
	return out, nil
}

// closeBy is the distance in bytes up to which two ranges are asked for together. Walking over a page costs a hundredth of a call.
const closeBy = 64 * PageSize

// coldFirst splits what a round reads: first what was not written in the round before, then what was, which has the most chance to be written
// again before its turn comes, and is skipped then.
func (s *Source) coldFirst(read []Range) (cold, hot []Range) {
	last := rangeSet(s.written)
	for _, r := range read {
		hot = append(hot, last.cut(r)...)
	}
	return without(read, hot), hot
}

// remember notes what this round has found to be written, beside what the destination had no page of.
func (s *Source) remember(read, whole []Range) { s.written = without(read, whole) }
