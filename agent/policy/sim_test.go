package policy

import (
	"math"
	"math/rand/v2"
	"time"
)

// A writer is a program as its copy sees it: how many different pages it writes in a time.
type writer interface {
	resident() float64                      // pages at the start
	written(from, to time.Duration) float64 // different pages
}

// region is memory that is written at random, all of it alike.
type region struct {
	pages float64
	rate  func(at time.Duration) float64 // page writes per second
	// fresh makes each write go to a page that was not written for long, as by a sweep or by a heap that grows.
	fresh, grows bool
}

// regions is a program with several parts.
type regions []region

func (p regions) resident() float64 {
	n := 0.0
	for _, r := range p {
		if !r.grows {
			n += r.pages
		}
	}
	return n
}

// grain is the step in which rates that change are summed up.
const grain = time.Millisecond

func (p regions) written(from, to time.Duration) float64 {
	total := 0.0
	for _, r := range p {
		writes := 0.0
		for at := from; at < to; at += grain {
			writes += r.rate(at) * min(grain, to-at).Seconds()
		}
		if r.fresh {
			total += min(writes, r.pages)
		} else {
			total += r.pages * (1 - math.Exp(-writes/r.pages))
		}
	}
	return total
}

func always(rate float64) func(time.Duration) float64 {
	return func(time.Duration) float64 { return rate }
}

// A wire is the link with what writes pages at its other end.
type wire struct {
	rate     func(at time.Duration) float64 // pages per second
	overhead time.Duration                  // of a round
	jitter   float64                        // share by which a round takes longer or shorter than it should
	stall    float64                        // probability that a round is held up by stallTime
	seed     uint64
}

const stallTime = 25 * time.Millisecond

// send is how long a round that begins at the given time takes.
func (w wire) send(at time.Duration, pages float64, rnd *rand.Rand) time.Duration {
	took := w.overhead
	for pages > 0 {
		sent := min(pages, w.rate(at+took)*grain.Seconds())
		took += time.Duration(sent / w.rate(at+took) * float64(time.Second))
		pages -= sent
	}
	if w.jitter > 0 {
		took = time.Duration(float64(took) * (1 + w.jitter*(2*rnd.Float64()-1)))
	}
	if rnd.Float64() < w.stall {
		took += stallTime
	}
	return took
}

// A rule decides after each round.
type rule interface {
	// add tells of a round, and of how many pages were dirty at its end.
	add(r Round, left float64)
	// decide says whether to switch, to give up for now, or to go on, how long to wait before the next round, and how long the
	// blackout would be; 0 if the rule does not know.
	decide(b Bounds) (d Decision, wait, predicted time.Duration)
}

// result is what became of a simulated copy.
type result struct {
	switched  bool
	gaveUp    int           // times that the rule said that it cannot converge
	saidIn    int           // round after which it did first
	blackout  time.Duration // that the freeze really had
	predicted time.Duration
	copied    time.Duration // from the start to the freeze
	pages     float64       // sent in all
	rounds    int
}

// simulate copies a program until the rule switches, or until the time is over. With once, it ends also when the rule gives up.
func simulate(p writer, w wire, ru rule, b Bounds, timeout time.Duration, once bool) result {
	rnd := rand.New(rand.NewPCG(w.seed, 1))
	var res result
	var now, began, before time.Duration
	pages := p.resident()
	for now < timeout {
		before, began = began, now
		if res.rounds > 0 {
			pages = p.written(before, began)
		}
		pages = math.Round(pages)
		took := w.send(now, pages, rnd)
		now += took
		r := Round{Pages: uint64(pages), Took: took, Scan: min(took, w.overhead/2)}
		if res.rounds > 0 {
			r.Since = began - before
		}
		res.rounds++
		res.pages += pages
		ru.add(r, p.written(began, now))
		d, wait, predicted := ru.decide(b)
		res.predicted, res.copied = predicted, now
		if d == CannotConverge {
			if res.gaveUp++; res.gaveUp == 1 {
				res.saidIn = res.rounds
			}
		}
		if d == Switch || d == CannotConverge && once {
			// The leader's order takes a moment to come; it cuts the pause short.
			stop := now + wait/2 + shutting
			rest := p.written(began, stop)
			res.switched = d == Switch
			res.pages += rest
			res.blackout = b.Fixed + w.send(stop, rest, rnd)
			return res
		}
		now += wait
	}
	res.copied = now
	return res
}

// ours is the policy as a rule.
type ours struct{ p Policy }

func (o *ours) add(r Round, _ float64) { o.p.Add(r) }

func (o *ours) decide(b Bounds) (Decision, time.Duration, time.Duration) {
	f := o.p.Decide(b)
	return f.Decision, f.Wait, f.Blackout
}

// eightRounds is the rule of schedulers that drive CRIU: at most so many rounds, or until few pages are left.
type eightRounds struct {
	n    int
	last Round
}

func (e *eightRounds) add(r Round, _ float64) { e.n, e.last = e.n+1, r }

func (e *eightRounds) decide(Bounds) (Decision, time.Duration, time.Duration) {
	if e.n >= 8 || e.last.Pages < 64 {
		return Switch, 0, 0
	}
	return Continue, 0, 0
}

// bandwidth is the rule of QEMU (migration/migration.c, migration_iteration_run): switch when what is left, sent at the rate of the last
// round, takes less than the bound. QEMU counts exactly what is left.
type bandwidth struct {
	left float64
	last Round
}

func (q *bandwidth) add(r Round, left float64) { q.left, q.last = left, r }

func (q *bandwidth) decide(b Bounds) (Decision, time.Duration, time.Duration) {
	if q.last.Pages == 0 {
		return Switch, 0, 0
	}
	rate := float64(q.last.Pages) / q.last.Took.Seconds()
	predicted := time.Duration(q.left / rate * float64(time.Second))
	if predicted < b.MaxDowntime {
		return Switch, 0, predicted
	}
	return Continue, 0, predicted
}
