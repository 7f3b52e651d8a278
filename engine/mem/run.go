package mem

import (
	"context"
	"fmt"
	"time"
)

// A Range is [Start, End), in bytes, multiples of the page size.
type Range struct{ Start, End uint64 }

// Size is its length in bytes.
func (r Range) Size() uint64 { return r.End - r.Start }

// Pages is its length in pages.
func (r Range) Pages() uint64 { return (r.End - r.Start) / PageSize }

func (r Range) String() string { return fmt.Sprintf("0x%x-0x%x", r.Start, r.End) }

// A Run is a sequence of adjacent pages.
type Run struct {
	Addr  uint64
	Pages uint32
	// Zero says that the pages read as zero and hold no data of the batch.
	Zero bool
}

// A Sink is where the pages of a round go: the wire or a file. Its methods may be called by several goroutines.
type Sink interface {
	// Buffer returns an empty slice with a capacity of BatchBytes.
	Buffer() []byte
	// Send takes the pages of some runs of one space; data holds those of the non-zero runs, in order. It takes
	// ownership of data, which came from Buffer, or is nil when all runs are zero.
	Send(ctx context.Context, space uint32, runs []Run, data []byte) error
}

// An Expecter is a Sink that is told, before the pages of a round come, which may: their ranges in ascending order. They
// then come in any order.
type Expecter interface {
	Expect(space uint32, pages []Range) error
}

// objectSpaces is the first space that is no process: ids of processes are below 2^22 (PID_MAX_LIMIT).
const objectSpaces = 1 << 31

// ObjectSpace is the space of an object of shared memory. The addresses of its pages are offsets into it.
func ObjectSpace(shmid uint32) uint32 { return objectSpaces | shmid }

// IsObject tells the spaces of ObjectSpace from those of processes, and returns the object's shmid.
func IsObject(space uint32) (shmid uint32, ok bool) {
	return space &^ objectSpaces, space&objectSpaces != 0
}

// RoundStats tells what a round did. Those of several processes add up.
type RoundStats struct {
	Pages     uint64 // sent with their content
	ZeroPages uint64 // sent as zero
	Unchanged uint64 // reported by the tracker, but with the content that was sent before
	Retry     uint64 // could not be read; left for the next round
	Skipped   uint64 // were written again since the scan; left for the next round
	Bytes     uint64 // of content
	Ranges    uint64 // what the tracker reported
	Duration  time.Duration
	// ScanDuration is the part of Duration in which the tracker was asked.
	ScanDuration time.Duration
}

// Add adds the counts of o, and its durations as if it had run after s.
func (s *RoundStats) Add(o RoundStats) {
	s.Pages += o.Pages
	s.ZeroPages += o.ZeroPages
	s.Unchanged += o.Unchanged
	s.Retry += o.Retry
	s.Skipped += o.Skipped
	s.Bytes += o.Bytes
	s.Ranges += o.Ranges
	s.Duration += o.Duration
	s.ScanDuration += o.ScanDuration
}
