package policy

import (
	"math"
	"slices"
	"time"
)

const (
	// memory is how many rounds are remembered, beside what was learned from a large one.
	memory = MaxMore + 2
	// solid is the number of pages from which on a round's duration says more about the rate than about its overhead.
	solid = 2048
	// telling is the number of pages from which on a round can show together with another that the link has become slower.
	telling = 256
	// assumedRate is used until a round has told better: 200 MB/s.
	assumedRate = 50000
	// Rounds whose times of writing have this ratio or a larger one show by their sizes how written(d) bends, and its exponent is taken to
	// be known to within bendError then. Those whose sizes have it show by their times what a page takes.
	apart     = 1.5
	bendError = 0.2
	// recent is how many rounds at the end are looked at for what they cost, and compared with as many before them for progress.
	recent = 3
	// shutting is the time from the order to switch until the program stands still: its port is shut first.
	shutting = 2 * time.Millisecond
	// cheap is how long the pages may take that are written in the pause while a switch is waited for.
	cheap = time.Millisecond
)

// An estimate is what the rounds up to one of them say about a freeze after it.
type estimate struct {
	base   time.Duration // of a round, beside its pages
	pages  float64       // that the freeze would send
	rate   float64       // in pages per second, at which it would
	dirty  float64       // pages written per second
	pause  time.Duration // between rounds while a switch is waited for
	saving time.Duration // by which another round may shorten the freeze, however written(d) bends
	hope   time.Duration // by which it may shorten what is predicted, which takes the bend for the worst
}

// variable is the part of the blackout that depends on the rounds.
func (e estimate) variable() time.Duration { return e.base + seconds(e.pages/e.rate) }

// model is what the rounds have shown of the program and the link.
type model struct {
	rounds    int     // in all
	kept      []Round // the newest, oldest first
	estimates []estimate
	solidRate float64 // pages per second of the last round that was large enough to tell; 0: none was
	bestRate  float64 // the highest that any round showed
	largest   float64 // pages of a round: about all that the program has
}

func (m *model) last() Round {
	if len(m.kept) == 0 {
		return Round{}
	}
	return m.kept[len(m.kept)-1]
}

func (m *model) add(r Round) {
	m.kept = append(m.kept, r)
	m.kept = m.kept[max(0, len(m.kept)-memory):]
	m.count(r)
	m.estimates = append(m.estimates, m.estimate())
	m.estimates = m.estimates[max(0, len(m.estimates)-memory):]
}

// count learns of a round what it shows of the link, and how large the program is.
func (m *model) count(r Round) {
	m.rounds++
	m.largest = max(m.largest, size(r))
	if busy := (r.Took - r.Scan).Seconds(); busy > 0 && r.Pages > 0 {
		rate := float64(r.Pages) / busy
		m.bestRate = max(m.bestRate, rate)
		if r.Pages >= solid {
			m.solidRate = rate
		}
	}
}

func (m *model) estimate() estimate {
	r := m.last()
	e := estimate{rate: m.sendRate(), pause: KeepingUp}
	e.base = m.baseCost(e.rate)
	if m.rounds == 1 {
		// Nothing is known about the writing: everything may have been written again, or nothing.
		e.pages = size(r)
		e.saving = seconds(e.pages / e.rate)
		e.hope = e.saving
		return e
	}
	if s := r.Since.Seconds(); s > 0 {
		e.dirty = size(r) / s
		e.pause = min(KeepingUp, seconds(cheap.Seconds()*e.rate*s/(size(r)+1)))
	}
	low, high := m.bend()
	freeze := r.Took + e.pause + shutting
	_, e.pages = m.written(freeze, low, high)
	for _, o := range m.recent() {
		if o.Since > 0 { // a steady program writes at least that much; one that is quiet for a moment may, too
			e.pages = max(e.pages, size(o)*min(1, freeze.Seconds()/o.Since.Seconds()))
		}
	}
	for _, bend := range []float64{low, (low + high) / 2, high} {
		before, left := m.another(e, bend)
		e.saving = max(e.saving, seconds((before-left)/e.rate))
		e.hope = max(e.hope, seconds((e.pages-left)/e.rate))
	}
	return e
}

// another is how many pages a freeze now would send if written(d) bends so, and how many one after another round.
func (m *model) another(e estimate, bend float64) (now, then float64) {
	r := m.last()
	after := func(took time.Duration) float64 {
		pages, _ := m.written(took+e.pause+shutting, bend, bend)
		return pages
	}
	sent, _ := m.written(r.Took, bend, bend)
	return after(r.Took), after(e.base + seconds(sent/e.rate))
}

// sendRate is the rate, in pages per second, at which pages get to the destination and are written there: of the last round that was
// large enough to tell, else of the one that showed the highest, for small rounds are mostly overhead. When the last rounds, of different
// sizes, go along much better with a lower one, the link has become slower since.
func (m *model) sendRate() float64 {
	rate := m.solidRate
	if rate == 0 {
		rate = m.bestRate
	}
	if rate == 0 {
		return assumedRate
	}
	if slow := m.slope(); slow > 0 && slow < rate && m.scatter(slow) < m.scatter(rate)/2 {
		return slow
	}
	return rate
}

// slope is the rate that the last round and a recent one of clearly another size show together, whatever a round costs beside its pages;
// 0 if none does.
func (m *model) slope() float64 {
	r := m.last()
	for _, o := range slices.Backward(m.recent()) {
		less, more := float64(min(r.Pages, o.Pages)), float64(max(r.Pages, o.Pages))
		if more < telling || more < apart*less {
			continue
		}
		return (float64(r.Pages) - float64(o.Pages)) / (r.Took - o.Took).Seconds()
	}
	return 0
}

// scatter is how far apart the last rounds are in what they cost beside their pages, if those were sent at the rate.
func (m *model) scatter(rate float64) time.Duration {
	least, most := time.Duration(math.MaxInt64), time.Duration(0)
	for _, r := range m.recent() {
		c := overhead(r, rate)
		least, most = min(least, c), max(most, c)
	}
	return most - least
}

func (m *model) recent() []Round { return m.kept[max(0, len(m.kept)-recent):] }

// baseCost is what a round costs beside sending its pages: the middle one of the last three, for single rounds are disturbed; of two the
// larger one, for of a small first round all but the scan was taken for sending. Of a large round nearly all is.
func (m *model) baseCost(rate float64) time.Duration {
	var costs, large []time.Duration
	for _, r := range m.recent() {
		if r.Pages < solid {
			costs = append(costs, overhead(r, rate))
		} else {
			large = append(large, overhead(r, rate))
		}
	}
	if len(costs) == 0 {
		costs = large
	}
	slices.Sort(costs)
	return costs[len(costs)/2]
}

// bend is between which exponents written(d) goes.
func (m *model) bend() (low, high float64) {
	r := m.last()
	for i := len(m.kept) - 2; i >= 0; i-- {
		o := m.kept[i]
		if o.Since <= 0 || r.Since <= 0 {
			continue
		}
		ratio := r.Since.Seconds() / o.Since.Seconds()
		if ratio < apart && ratio > 1/apart {
			continue
		}
		n := math.Log((size(r)+1)/(size(o)+1)) / math.Log(ratio)
		return min(max(n-bendError, 0), 1), min(max(n+bendError, 0), 1)
	}
	return 0, 1
}

// written is how many pages the program writes in d, at least and at most, from what it wrote before the last round. In a longer time than
// that it is at most as many more as the time is longer, however the shorter times bend. That none was written does not say that none will
// be: one more counts for the most.
func (m *model) written(d time.Duration, low, high float64) (least, most float64) {
	r := m.last()
	if r.Since <= 0 {
		return 0, size(r)
	}
	ratio := d.Seconds() / r.Since.Seconds()
	if ratio < 1 {
		low, high = high, low
	} else {
		high = 1
	}
	return min(size(r)*math.Pow(ratio, low), m.largest), min((size(r)+1)*math.Pow(ratio, high), m.largest)
}

// trailing counts the rounds at the end, of those that are remembered, of whose estimates is holds.
func (m *model) trailing(is func(estimate) bool) int {
	n := 0
	for n < len(m.estimates) && is(m.estimates[len(m.estimates)-1-n]) {
		n++
	}
	return n
}

// stuck tells that none of the last rounds has made the freeze clearly shorter than those before them had.
func (m *model) stuck() bool {
	n := len(m.estimates)
	if n < 2*recent {
		return false
	}
	shortest := func(list []estimate) time.Duration {
		d := list[0].variable()
		for _, e := range list {
			d = min(d, e.variable())
		}
		return d
	}
	return float64(shortest(m.estimates[n-recent:])) > (1-hopeShare)*float64(shortest(m.estimates[n-2*recent:n-recent]))
}

// overhead is what a round took beside sending its pages.
func overhead(r Round, rate float64) time.Duration {
	return max(r.Scan, r.Took-seconds(float64(r.Pages)/rate))
}

// size is how many pages a round found: those that it skipped, too, for a freeze would have sent them.
func size(r Round) float64 { return float64(r.Pages) + float64(r.ZeroPages) + float64(r.Skipped) }

// seconds is a time, of at most an hour: no prediction is meant beyond.
func seconds(s float64) time.Duration {
	const most = 3600
	if !(s < most) {
		s = most
	}
	return time.Duration(s * float64(time.Second))
}
