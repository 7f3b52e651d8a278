// Package policy decides when a move stops copying. It is given what each round measured and predicts how long the
// program would stand still if it were frozen now. It is pure: no I/O, no clock, no goroutines; durations arrive in
// the rounds.
//
// The prediction is
//
//	blackout = fixed + base + pages(frozen at the end of the last round) / rate
//
// where fixed is what does not depend on memory (stopping the threads, state, votes, commit, resuming), base is what a round
// costs beside sending its pages (reading the mappings, finding the dirty pages), rate is in pages per second, and the
// pages are those that the program has written since the last round began. A round sends what was written during the one before it, so their number is known only for the
// past; for the last round it follows from the rate of writing, and never exceeds what a longer round saw.
//
// Rounds shrink by the ratio of the rate of writing to that of sending. Once they no longer do, more rounds do not
// help: what is left is either short enough (Switch) or will not become so (CannotConverge).
package policy

import (
	"fmt"
	"slices"
	"time"
)

// Decision is what to do after a round.
type Decision int

// The decisions.
const (
	Continue Decision = iota + 1 // copy another round
	Switch                       // freeze: the prediction keeps the bound and another round gains little
	CannotConverge
)

var names = map[Decision]string{Continue: "continue", Switch: "switch", CannotConverge: "cannot converge"}

func (d Decision) String() string {
	if s, ok := names[d]; ok {
		return s
	}
	return fmt.Sprintf("decision %d", int(d))
}

// Round is what one round of copying measured.
type Round struct {
	Pages     uint64        // sent with their contents
	ZeroPages uint64        // told to be zero
	Took      time.Duration // from the start of the scan to the receiver's word that all is written
	Scan      time.Duration // of which finding the pages took; 0 when it was not measured
	// DirtyAfter is the number of pages known to be dirty when the round ended, counted without clearing; -1 when it
	// was not counted.
	DirtyAfter int64
}

// Limits bound a copy.
type Limits struct {
	MaxDowntime time.Duration
	// Fixed is what a blackout costs beside its pages: measured by earlier attempts, or an estimate.
	Fixed time.Duration
	// MaxRounds ends a copy that neither converges nor clearly fails to; 0 stands for 30.
	MaxRounds int
}

// Forecast is what the rounds so far say about a freeze now.
type Forecast struct {
	Decision       Decision
	Blackout       time.Duration // predicted
	Pages          uint64        // that would be sent in the freeze
	PagesPerSecond float64       // at which they would be sent
	DirtyPerSecond float64       // at which the program writes pages
	Reason         string        // for people
}

const (
	defaultMaxRounds = 30
	// shrink is the share of the round before that a round must stay under to count as progress.
	shrink = 0.85
	// patience is how many rounds in a row may make no progress before the copy is hopeless.
	patience = 3
	// margin is the share of the bound that the prediction may fill: rates vary.
	margin = 0.8
	// solid is the number of pages from which on a round's duration says more about the rate than about its overhead.
	solid = 2048
	// assumedRate is used until a round has told better: 200 MB/s.
	assumedRate = 50000
	// similar is how many times longer than the last round the one before it may have been for its rate of writing to
	// hold. A program that writes the same few pages all the time shows a low rate over a long round; then all that is
	// known is that a shorter round dirties no more than a longer one.
	similar = 4
	// enough is the share of the blackout that the pages must be for another round to be worth its time.
	enough = 0.1
)

// Decide looks at the rounds so far, oldest first, and says what to do next and why.
func Decide(rounds []Round, l Limits) Forecast {
	f := Forecast{PagesPerSecond: sendRate(rounds), DirtyPerSecond: dirtyRate(rounds)}
	if len(rounds) == 0 {
		f.Decision, f.Reason, f.Blackout = Continue, "nothing has been copied yet", l.Fixed
		return f
	}
	f.Pages = remaining(rounds, f.DirtyPerSecond)
	base := baseCost(rounds, f.PagesPerSecond)
	sending := seconds(float64(f.Pages) / f.PagesPerSecond)
	f.Blackout = l.Fixed + base + sending
	fits := f.Blackout <= time.Duration(margin*float64(l.MaxDowntime))
	stuck := stalled(rounds)
	limit := l.MaxRounds
	if limit == 0 {
		limit = defaultMaxRounds
	}
	switch {
	case fits && (stuck > 0 || sending <= time.Duration(enough*float64(f.Blackout))):
		f.Decision, f.Reason = Switch, "the predicted blackout keeps the bound, and another round would gain little"
	case l.Fixed+base > l.MaxDowntime && stuck >= patience:
		f.Decision = CannotConverge
		f.Reason = fmt.Sprintf("what does not depend on memory alone takes %v; the bound is %v", l.Fixed+base, l.MaxDowntime)
	case len(rounds) >= limit && !fits, stuck >= patience && !fits:
		f.Decision = CannotConverge
		f.Reason = fmt.Sprintf("after %d rounds a freeze would still take %v (%d pages at %.0f pages/s, written at %.0f pages/s); the bound is %v",
			len(rounds), f.Blackout.Round(time.Millisecond/10), f.Pages, f.PagesPerSecond, f.DirtyPerSecond, l.MaxDowntime)
	case len(rounds) >= limit:
		f.Decision, f.Reason = Switch, "the predicted blackout keeps the bound, and the rounds are used up"
	default:
		f.Decision, f.Reason = Continue, "another round leaves less for the freeze"
	}
	return f
}

// sendRate is the rate, in pages per second, at which pages get to the destination and are written there: of the
// last round that was long enough to tell, else of the round that showed the highest. Small rounds are mostly overhead.
func sendRate(rounds []Round) float64 {
	best := 0.0
	for i := len(rounds) - 1; i >= 0; i-- {
		r := rounds[i]
		busy := r.Took - r.Scan
		if busy <= 0 || r.Pages == 0 {
			continue
		}
		rate := float64(r.Pages) / busy.Seconds()
		if r.Pages >= solid {
			return rate
		}
		best = max(best, rate)
	}
	if best == 0 {
		return assumedRate
	}
	return best
}

// baseCost is what a round costs beside sending its pages: the middle one of the last three, for single rounds are
// disturbed.
func baseCost(rounds []Round, rate float64) time.Duration {
	var costs []time.Duration
	for _, r := range rounds[max(0, len(rounds)-3):] {
		costs = append(costs, max(r.Scan, r.Took-seconds(float64(r.Pages)/rate)))
	}
	slices.Sort(costs)
	return costs[(len(costs)-1)/2]
}

// dirtyRate is the rate, in pages per second, at which the program wrote during the newest interval that is known.
func dirtyRate(rounds []Round) float64 {
	n := len(rounds)
	if n == 0 {
		return 0
	}
	if last := rounds[n-1]; last.DirtyAfter >= 0 && last.Took > 0 {
		return float64(last.DirtyAfter) / last.Took.Seconds()
	}
	if n < 2 {
		return 0
	}
	if took := rounds[n-2].Took; took > 0 { // the last round sent what was written during the one before it
		return float64(rounds[n-1].Pages+rounds[n-1].ZeroPages) / took.Seconds()
	}
	return 0
}

// remaining estimates the pages that a freeze right after the last round would have to send.
func remaining(rounds []Round, rate float64) uint64 {
	last := rounds[len(rounds)-1]
	if last.DirtyAfter >= 0 {
		return uint64(last.DirtyAfter)
	}
	if len(rounds) == 1 {
		// Nothing is known about the rate of writing: everything may have been written again.
		return last.Pages + last.ZeroPages
	}
	before := rounds[len(rounds)-2].Took
	if last.Took*similar < before {
		return size(last)
	}
	pages := uint64(rate * last.Took.Seconds())
	if last.Took <= before {
		pages = min(pages, size(last))
	}
	return pages
}

// stalled counts the rounds at the end that were not clearly smaller than the one before them.
func stalled(rounds []Round) int {
	n := 0
	for i := len(rounds) - 1; i >= 1; i-- {
		if float64(size(rounds[i])) < shrink*float64(size(rounds[i-1])) {
			break
		}
		n++
	}
	return n
}

func size(r Round) uint64 { return r.Pages + r.ZeroPages }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
