// Package policy decides when a move stops copying. A Policy is told what each round measured, predicts how long the program
// would stand still if it were stopped now, and says whether to copy another round, to switch, or that no more rounds will
// help, and then why. It is pure: no I/O, no clock, no goroutines; time arrives in the rounds.
//
// The prediction is
//
//	blackout = fixed + base + written(took + lag) / rate
//
// fixed is what does not depend on memory: stopping the threads, state, votes, commit, resuming. base is what a round costs beside sending
// its pages: following the layout, finding the dirty pages. rate is in pages per second. A freeze sends what was written since the last
// round began: while that round was sent (took), and from its end until the program stands still (lag).
//
// written(d), the number of different pages that the program writes in a time d, is known from the rounds, each of which sends what was
// written since the one before it began. It never falls and it bends down, for pages are written twice: between two measured times it goes
// like a power of d, whose exponent is 1 for a program that writes all over its memory and 0 for one that writes the same pages all the time.
//
// Another round takes base + written/rate and leaves what is written meanwhile. It is worth making while that may be clearly less; as long
// as rounds of different lengths have not shown the exponent, all of 0 to 1 may be, so that the prediction is cautious and the hope is not.
// Once there is nothing to hope for, what is left is either short enough (Switch) or will not become so (CannotConverge). docs/policy.md
// compares this with other rules.
package policy

import (
	"fmt"
	"time"
)

// Decision is what to do after a round.
type Decision int

// The decisions.
const (
	Continue       Decision = iota + 1 // copy another round at once
	Switch                             // stop the program: the prediction keeps the bound
	CannotConverge                     // more rounds will not bring the prediction under the bound, unless the program or the link changes
)

var names = map[Decision]string{Continue: "continue", Switch: "switch", CannotConverge: "cannot converge"}

func (d Decision) String() string {
	if s, ok := names[d]; ok {
		return s
	}
	return fmt.Sprintf("decision %d", int(d))
}

// Cause is what keeps the prediction above the bound.
type Cause int

// The causes. Only CauseWrites depends on the program's writing and on the link: slowing one or speeding up the other can help.
const (
	CauseNone   Cause = iota
	CauseFixed        // what does not depend on memory takes too long alone
	CauseWrites       // the program writes pages faster than they can be sent
)

// Round is what one round of copying measured.
type Round struct {
	Pages     uint64        // sent with their contents
	ZeroPages uint64        // told to be zero
	Skipped   uint64        // found to be written, and not sent because they had been written again by then
	Since     time.Duration // from the start of the round before until that of this one: when its pages were written; 0 for the first
	Took      time.Duration // from its start to the receiver's word that all is written
	Scan      time.Duration // of which finding the pages took; 0 when it was not measured
}

// Bounds are what a blackout is held to and made of, beside its pages.
type Bounds struct {
	MaxDowntime time.Duration
	Fixed       time.Duration // what a blackout costs beside its pages
}

// Forecast is what the rounds so far say about a freeze now.
type Forecast struct {
	Decision       Decision
	Cause          Cause         // of CannotConverge
	Wait           time.Duration // before the next round, if there is to be one
	Blackout       time.Duration // predicted
	Pages          uint64        // that would be sent in the freeze
	PagesPerSecond float64       // at which they would be sent
	DirtyPerSecond float64       // at which the program writes pages
	Reason         string        // for people
}

const (
	// margin is the share of the bound that the prediction may fill: rates vary.
	margin = 0.8
	// A round is worth its time when it may shorten the blackout by this share, and by this time. To reach the bound it must promise more.
	worthShare = 0.03
	hopeShare  = 0.05
	worthTime  = 300 * time.Microsecond
	// patience is how many rounds in a row that were not worth their time make a copy hopeless.
	patience = 2
	// learning is how many more rounds may be made for a better prediction alone, once it keeps the bound.
	learning = 2
	// MaxMore is how many more rounds are made at most once the prediction keeps the bound, if it goes on doing so.
	MaxMore = 8
	// MaxRounds is how many rounds are made at most without a pause.
	MaxRounds = 30
)

// What Forecast.Wait can be.
const (
	// KeepingUp is the longest pause between rounds while a switch is waited for: short enough that little is left for the freeze, long
	// enough that the program does not pay for a write fault on each of its pages all the time.
	KeepingUp = 10 * time.Millisecond
	// Hopeless is the shortest pause between rounds of a program that writes faster than the link carries: it may get quieter. It is left in
	// peace, and the link to others, for as long as a round takes, but no longer than longest.
	Hopeless = 250 * time.Millisecond
	longest  = time.Second
	// slower is the share of the link's rate below which a program writes slowly enough for rounds to get shorter, if nothing disturbs
	// them. A long pause would add more pages than they can take away.
	slower = 0.85
)

// Policy is what is known of one copy. Its memory does not grow with the number of rounds. The zero value knows nothing.
type Policy struct {
	model   model
	run     int  // rounds since the last pause
	changed bool // the next round is of a program as it was before
}

// Add tells of a round that has ended.
func (p *Policy) Add(r Round) {
	if pause := r.Since - p.model.last().Took; pause >= Hopeless/2 {
		p.run = 0
	}
	p.run++
	if p.changed {
		p.changed = false
		p.model.count(r)
		return
	}
	p.model.add(r)
}

// Decide says what to do next and why. It changes nothing: asked again with a larger bound, it is never further from a switch.
func (p *Policy) Decide(b Bounds) Forecast {
	m := &p.model
	if m.rounds == 0 {
		return Forecast{Decision: Continue, Blackout: b.Fixed, PagesPerSecond: assumedRate, Reason: "nothing has been copied yet"}
	}
	if len(m.estimates) == 0 {
		rate := m.sendRate()
		return Forecast{Decision: Continue, Blackout: b.Fixed + seconds(m.largest/rate), Pages: uint64(m.largest), PagesPerSecond: rate,
			Reason: "how fast the program writes now is not known yet"}
	}
	e := m.estimates[len(m.estimates)-1]
	f := Forecast{Blackout: b.Fixed + e.variable(), Pages: uint64(e.pages), PagesPerSecond: e.rate, DirtyPerSecond: e.dirty}
	fits := func(e estimate) bool { return b.Fixed+e.variable() <= time.Duration(margin*float64(b.MaxDowntime)) }
	worth := func(e estimate, saving time.Duration, share float64) bool {
		return saving > max(worthTime, time.Duration(share*float64(b.Fixed+e.variable())))
	}
	met := m.trailing(fits)
	switch {
	case met > 0 && !worth(e, e.saving, worthShare) && (met > learning || !worth(e, e.hope, worthShare)):
		f.Decision, f.Reason = Switch, "the predicted blackout keeps the bound, and another round would gain little"
	case met > MaxMore || met > 0 && p.run >= MaxRounds:
		f.Decision, f.Reason = Switch, "the predicted blackout keeps the bound, and enough rounds have been made"
	case met > 0:
		f.Decision, f.Reason = Continue, "the predicted blackout keeps the bound, but another round makes it clearly shorter"
	case p.run < MaxRounds && !m.stuck() && m.trailing(func(e estimate) bool { return !worth(e, e.hope, hopeShare) }) < patience:
		f.Decision, f.Reason = Continue, "another round leaves less for the freeze"
	default:
		f.Decision = CannotConverge
		f.Cause, f.Reason = why(e, b, f.Blackout)
	}
	switch f.Decision {
	case Switch:
		f.Wait = e.pause
	case CannotConverge:
		f.Wait = min(max(m.last().Took, Hopeless), longest)
		if f.Cause == CauseWrites && e.dirty < slower*e.rate {
			f.Wait = min(m.last().Took/8, Hopeless)
		}
	}
	return f
}

// why says what keeps a blackout above the bound, and what would help.
func why(e estimate, b Bounds, blackout time.Duration) (Cause, string) {
	needs := time.Duration(float64(blackout)/margin/float64(time.Millisecond)+1) * time.Millisecond
	if b.Fixed+e.base >= time.Duration(margin*float64(b.MaxDowntime)) {
		return CauseFixed, fmt.Sprintf("what does not depend on memory takes %v, and the bound is %v: no number of rounds helps, only a bound of %v",
			tenths(b.Fixed+e.base), b.MaxDowntime, needs)
	}
	return CauseWrites, fmt.Sprintf("a freeze would take %v (%.0f pages at %.0f pages/s, written at %.0f pages/s), and more rounds do not make it shorter; "+
		"the bound is %v: it needs one of %v, or a quieter program", tenths(blackout), e.pages, e.rate, e.dirty, b.MaxDowntime, needs)
}

func tenths(d time.Duration) time.Duration { return d.Round(time.Millisecond / 10) }

// Idle is the copy of a program that writes nothing: how many rounds it takes, with the one of the freeze, how long the copying takes,
// and the forecast at its end.
func Idle(pages uint64, pagesPerSecond float64, fixed time.Duration) (rounds int, copying time.Duration, f Forecast) {
	var p Policy
	r := Round{Pages: pages, Took: seconds(float64(pages) / pagesPerSecond)}
	for f.Decision != Switch {
		p.Add(r)
		rounds, copying = rounds+1, copying+r.Took
		f = p.Decide(Bounds{MaxDowntime: time.Hour, Fixed: fixed})
		r = Round{Since: max(r.Took, 1)}
	}
	return rounds + 1, copying, f
}
