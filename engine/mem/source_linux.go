package mem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine/images"
	"migrate/engine/procfs"
	"migrate/engine/span"
)

// ErrUnreadable means that pages of a stopped program could not be read.
var ErrUnreadable = errors.New("pages cannot be read")

// A Source reads the private memory of one process, round by round, while it runs and when it is stopped.
type Source struct {
	view    view
	space   uint32
	tracker Tracker
	sent    *Digest
	workers int

	vmas  []*vma.VmaEntry // what the destination has mapped
	whole rangeSet        // of which the destination has no page
	retry []Range         // reported by the tracker, but not read
	left  []Range         // skipped in the last round, for they had been written again
	// written is what the last round found to be written, beside what was sent because it had not been before.
	written []Range
	guards  []Range // where guard pages were met; some may be gone again

	related bool // to other processes of the tree, with which it may share memory since a fork

	direct bool // devices write to the memory; see lookAgain
	looks  []look
}

// NewSource opens the memory of a process, whose pages will go to space. Its tracker starts with Start.
func NewSource(pid int, space uint32, tracker Tracker) (*Source, error) {
	v, err := openView(pid)
	if err != nil {
		return nil, err
	}
	if v.pagemap, err = procfs.Host.Open(pid, "pagemap"); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return &Source{view: v, space: space, tracker: tracker, sent: NewDigest(space), workers: runtime.GOMAXPROCS(0)}, nil
}

// Start begins tracking.
func (s *Source) Start(ctx context.Context) error { return s.tracker.Start(ctx) }

// Relate says whether there are processes with which this one may share memory since a fork. It must not run at the same time as
// a round.
func (s *Source) Relate(related bool) { s.related = related }

// Close ends tracking. It may be called again.
func (s *Source) Close() error { return errors.Join(s.tracker.Close(), s.view.close()) }

// Replaced tells that the memory is no longer that of the process, which has executed another program (execve(2)) or ended.
func (s *Source) Replaced() (bool, error) {
	var entry [8]byte
	n, err := s.view.pagemap.ReadAt(entry[:], 0) // at its end if nobody uses the memory any more (fs/proc/task_mmu.c, pagemap_read)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err == nil && n == 0, err
}

// Sum is the hash over all pages that were sent.
func (s *Source) Sum() Sum { return s.sent.Sum() }

// Space is what the pages are sent as.
func (s *Source) Space() uint32 { return s.space }

// Follow tells which mappings the destination makes before the next round: the very entries that are sent to it.
func (s *Source) Follow(vmas []*vma.VmaEntry) {
	var whole []Range
	for _, c := range Diff(s.vmas, vmas) {
		if c.Forgets() {
			s.sent.Remove(c.Range)
		}
		if c.Kind == Map {
			whole = append(whole, c.Range)
		}
	}
	s.addWhole(whole)
	s.vmas = vmas
}

func (s *Source) addWhole(more []Range) {
	all := slices.Concat(s.whole, more)
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	s.whole = nil
	for _, r := range all {
		s.whole.append(r)
	}
}

// Restart makes the next round send everything: the destination lost what it had, or a round failed half-way.
func (s *Source) Restart() {
	s.sent.distrust()
	all := make([]Range, 0, len(s.vmas))
	for _, v := range s.vmas {
		all = append(all, rangeOf(v))
	}
	s.addWhole(all)
}

// Final is a Round of a stopped program: nothing may be left over.
func (s *Source) Final(ctx context.Context, sink Sink) (RoundStats, error) {
	stats, err := s.round(ctx, sink, true)
	if err == nil && len(s.retry) > 0 {
		err = fmt.Errorf("pid %d: %d pages at %v and elsewhere: %w", s.view.pid, stats.Retry, s.retry[0], ErrUnreadable)
	}
	return stats, err
}

// Round sends what was written since the last round, or everything that there is. All of it has been handed to the sink when
// it returns. When the process made an exec since, tracking starts anew, which needs the caller of the tracker.
func (s *Source) Round(ctx context.Context, sink Sink) (RoundStats, error) {
	return s.round(ctx, sink, false)
}

func (s *Source) round(ctx context.Context, sink Sink, final bool) (stats RoundStats, err error) {
	start := time.Now()
	defer func() {
		stats.Duration = time.Since(start)
		if err != nil {
			s.Restart()
		}
	}()
	if !final && !s.direct {
		if s.direct, err = opensDirectly(s.view.pid); err != nil {
			return stats, fmt.Errorf("descriptors of pid %d: %w", s.view.pid, err)
		}
	}
	areas := s.areas()
	in, end := span.Begin(ctx, "scan")
	extents, err := s.tracker.Collect(in, areas, s.sent)
	end()
	if errors.Is(err, ErrReplaced) {
		s.Restart()
		if err = s.tracker.Start(ctx); err == nil {
			areas = s.areas()
			extents, err = s.tracker.Collect(ctx, areas, s.sent)
		}
	}
	if err != nil {
		return stats, err
	}
	stats.ScanDuration, stats.Ranges = time.Since(start), uint64(len(extents))
	_, end = span.Begin(ctx, "sort out")
	zero, read := s.sortOut(areas, extents)
	if s.direct {
		read = s.lookAgain(start, areas, read)
	}
	end()
	read = without(read, zero) // a page travels once in a round
	if e, ok := sink.(Expecter); ok {
		if err := e.Expect(s.space, merge(slices.Clone(zero), read)); err != nil {
			return stats, err
		}
	}
	cold, hot := read, []Range(nil)
	if !final {
		cold, hot = s.coldFirst(read)
	}
	s.remember(read, s.whole)
	s.whole, s.retry, s.left = nil, nil, nil
	if err := s.sendZeros(ctx, sink, zero, &stats); err != nil {
		return stats, err
	}
	in, end = span.Begin(ctx, "send")
	for _, part := range [][]Range{cold, hot} {
		if err = s.sendPages(in, sink, part, s.skipper(start, final), &stats); err != nil {
			break
		}
	}
	end()
	if err != nil {
		return stats, err
	}
	return stats, span.Do(ctx, "guards", func(context.Context) error { return s.takeGuards(&stats) })
}

// maxArea bounds the areas that are joined: after a scan that failed, all of an area is sent again.
const maxArea = 64 << 20

// areas lists the memory to be tracked.
func (s *Source) areas() []Area {
	var out []Area
	add := func(a Area) {
		if n := len(out); n > 0 && out[n-1].End == a.Start && out[n-1].File == a.File && out[n-1].Whole == a.Whole && out[n-1].Huge == a.Huge && a.End-out[n-1].Start <= maxArea {
			out[n-1].End = a.End
			return
		}
		out = append(out, a)
	}
	for _, v := range s.vmas {
		if !Carried(v) {
			continue
		}
		file := v.GetStatus()&images.VMAFilePrivate != 0
		if isHuge(v) {
			add(Area{rangeOf(v), file, true, true})
			continue
		}
		at := v.GetStart()
		for _, w := range s.whole.cut(Range{at, v.GetEnd()}) {
			if at < w.Start {
				add(Area{Range{at, w.Start}, file, false, false})
			}
			add(Area{w, file, true, false})
			at = w.End
		}
		if at < v.GetEnd() {
			add(Area{Range{at, v.GetEnd()}, file, false, false})
		}
	}
	return out
}

// Carried tells whether the pages of a mapping travel as pages of its process: those of private memory.
func Carried(v *vma.VmaEntry) bool {
	return v.GetStatus()&(images.VMAAnonPrivate|images.VMAFilePrivate) != 0 && !kernelOwned(v)
}

// isFile tells whether a page is of a private mapping of a file.
func (s *Source) isFile(addr uint64) bool {
	i, ok := slices.BinarySearchFunc(s.vmas, addr, func(v *vma.VmaEntry, addr uint64) int {
		switch {
		case v.GetEnd() <= addr:
			return -1
		case v.GetStart() > addr:
			return 1
		}
		return 0
	})
	return ok && s.vmas[i].GetStatus()&images.VMAFilePrivate != 0
}

// sortOut splits what a tracker reported into what became zero and what has to be read.
func (s *Source) sortOut(areas []Area, extents []Extent) (zero, read []Range) {
	i := 0
	for _, e := range extents {
		for i < len(areas)-1 && areas[i].End <= e.Start {
			i++
		}
		switch {
		case e.State != Absent:
			read = append(read, e.Range)
		case areas[i].File: // it is again what the file has there
			read = append(read, s.sent.known(e.Range)...)
		default:
			zero = append(zero, s.sent.known(e.Range)...)
		}
	}
	return zero, merge(read, s.stillMapped(areas, slices.Concat(s.retry, s.left)))
}

// without returns what is in a and not in b, both sorted and without overlaps.
func without(a, b []Range) []Range {
	var out []Range
	for _, r := range a {
		for len(b) > 0 && b[0].End <= r.Start {
			b = b[1:]
		}
		for _, x := range b {
			if x.Start >= r.End {
				break
			}
			if r.Start < x.Start {
				out = append(out, Range{r.Start, x.Start})
			}
			r.Start = min(x.End, r.End)
		}
		if r.Start < r.End {
			out = append(out, r)
		}
	}
	return out
}

// stillMapped returns what was not read in the last round and is still part of an area.
func (s *Source) stillMapped(areas []Area, ranges []Range) []Range {
	var have rangeSet
	for _, a := range areas {
		have.append(a.Range)
	}
	var out []Range
	for _, r := range ranges {
		out = append(out, have.cut(r)...)
	}
	return out
}

// merge joins two lists of ranges, of which the first is sorted, into one that is sorted and without overlaps.
func merge(a, b []Range) []Range {
	if len(b) == 0 {
		return a
	}
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	out := rangeSet{}
	for _, r := range all {
		out.append(r)
	}
	return out
}

// sendZeros sends pages that were sent with content before and are zero now.
func (s *Source) sendZeros(ctx context.Context, sink Sink, zero []Range, stats *RoundStats) error {
	const maxRuns = 1024
	for part := range slices.Chunk(zero, maxRuns) {
		runs := make([]Run, 0, len(part))
		for _, r := range part {
			s.sent.Remove(r)
			stats.ZeroPages += r.Pages()
			runs = append(runs, Run{r.Start, uint32(r.Pages()), true})
		}
		if err := sink.Send(ctx, s.space, runs, nil); err != nil {
			return err
		}
	}
	return nil
}

// batchPages is how many pages are read at once.
const batchPages = BatchBytes / PageSize

// sendPages reads and sends pages, with several workers when there is much to do.
func (s *Source) sendPages(ctx context.Context, sink Sink, read []Range, skip skipper, stats *RoundStats) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := batches{left: read}
	var mu sync.Mutex // guards next, stats, s.retry and s.left
	work := func() {
		r := reader{source: s, sink: sink, skipper: skip, chooser: chooser{sent: s.sent}}
		for ctx.Err() == nil {
			mu.Lock()
			batch := next.take()
			mu.Unlock()
			if len(batch) == 0 {
				break
			}
			if err := r.send(ctx, batch); err != nil {
				cancel(err)
			}
		}
		mu.Lock()
		stats.Add(r.stats)
		stats.Skipped += r.count
		s.retry = merge(s.retry, r.failed)
		s.left = merge(s.left, r.skipped)
		mu.Unlock()
	}
	var wg sync.WaitGroup
	for range min(s.workers-1, next.count()-1) {
		wg.Go(work)
	}
	work()
	wg.Wait()
	return context.Cause(ctx)
}

// batches hands out ranges of batchPages pages together.
type batches struct {
	left []Range
}

// count is how many batches there are, up to a number beyond which it does not matter.
func (b *batches) count() int {
	pages := uint64(0)
	for i := 0; i < len(b.left) && pages < 1024*batchPages; i++ {
		pages += b.left[i].Pages()
	}
	return int((pages + batchPages - 1) / batchPages)
}

func (b *batches) take() []Range {
	var out []Range
	for room := uint64(BatchBytes); room > 0 && len(b.left) > 0; {
		r := &b.left[0]
		n := min(room, r.Size())
		out = append(out, Range{r.Start, r.Start + n})
		room -= n
		if r.Start += n; r.Start == r.End {
			b.left = b.left[1:]
		}
	}
	return out
}
