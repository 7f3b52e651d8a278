package mem

import (
	"context"
	"errors"
)

// ErrReplaced means that the program that was tracked is no longer there, because the process made an exec. Tracking
// starts anew, and all memory is sent again.
var ErrReplaced = errors.New("the process runs another program now")

// An Area is private memory whose pages are to be sent.
type Area struct {
	Range
	// File says that pages which were never written are those of a file, and not sent.
	File bool
	// Whole says that every page is to be reported, written or not: the destination has none of them.
	Whole bool
	// Huge says that it is of huge pages, which are not tracked: it is Whole each time.
	Huge bool
}

// State says what a Tracker knows of some pages.
type State uint8

const (
	// Written pages were written since they were last reported, or were not reported before.
	Written State = iota + 1
	// Absent pages are as in a fresh mapping: zeros, or those of the file.
	Absent
	// Suspect pages may have been written; only comparing them with what was sent tells.
	Suspect
)

// An Extent is a range of pages in the same state.
type Extent struct {
	Range
	State State
}

// A Tracker finds the pages of one process that were written.
type Tracker interface {
	// Name is what an operator reads: "userfaultfd", "soft-dirty", "hashes".
	Name() string
	// Start begins tracking. It can be called again after ErrReplaced.
	Start(ctx context.Context) error
	// Collect reports the pages of the areas, which are sorted, that were written since the Collect before it, and
	// watches them again. A write is reported by this Collect or by the next one, whenever it happens. Extents are sorted and
	// do not overlap. Populated pages of an area that was not tracked before are all reported, as are those of a Whole one,
	// whose other pages are reported as Absent.
	Collect(ctx context.Context, areas []Area, sent *Digest) ([]Extent, error)
	// Close ends tracking and leaves the program as it was.
	Close() error
}

// rangeSet is a set of addresses: sorted ranges that neither overlap nor touch.
type rangeSet []Range

// covers tells whether all of r is in the set.
func (s rangeSet) covers(r Range) bool {
	i := s.from(r.Start)
	return i < len(s) && s[i].Start <= r.Start && r.End <= s[i].End
}

// from is the index of the first range that ends beyond addr.
func (s rangeSet) from(addr uint64) int {
	lo, hi := 0, len(s)
	for lo < hi {
		if mid := (lo + hi) / 2; s[mid].End <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// append adds a range that begins at or after the end of the last one.
func (s *rangeSet) append(r Range) {
	if n := len(*s); n > 0 && (*s)[n-1].End >= r.Start {
		(*s)[n-1].End = max((*s)[n-1].End, r.End)
		return
	}
	*s = append(*s, r)
}

// cut returns the parts of r that are in the set.
func (s rangeSet) cut(r Range) []Range {
	var out []Range
	for i := s.from(r.Start); i < len(s) && s[i].Start < r.End; i++ {
		out = append(out, Range{max(s[i].Start, r.Start), min(s[i].End, r.End)})
	}
	return out
}
