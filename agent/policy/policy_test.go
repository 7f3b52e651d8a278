package policy

import (
	"math"
	"testing"
	"time"
)

// A program for the simulation: it writes pages of a working set at random, at a rate, and a link sends them.
type program struct {
	resident, working float64 // pages
	writes            float64 // page writes per second, uniform over the working set
	rate              float64 // pages per second that the link carries
	overhead          time.Duration
	counted           bool // rounds know what is dirty at their end
}

// dirty is the expected number of distinct pages written in d.
func (p program) dirty(d time.Duration) float64 {
	return p.working * (1 - math.Exp(-p.writes*d.Seconds()/p.working))
}

// run copies until the policy stops it. It returns the last forecast, the rounds, and the blackout that a freeze would
// really have.
func (p program) run(t *testing.T, l Limits) (Forecast, []Round, time.Duration) {
	t.Helper()
	var rounds []Round
	pages := p.resident
	for range 100 {
		took := p.overhead + time.Duration(pages/p.rate*float64(time.Second))
		r := Round{Pages: uint64(pages), Took: took, Scan: p.overhead, DirtyAfter: -1}
		pages = p.dirty(took)
		if p.counted {
			r.DirtyAfter = int64(pages)
		}
		rounds = append(rounds, r)
		f := Decide(rounds, l)
		if f.Decision != Continue {
			return f, rounds, l.Fixed + p.overhead + time.Duration(pages/p.rate*float64(time.Second))
		}
	}
	t.Fatal("the copy never ended")
	return Forecast{}, nil, 0
}

func TestDecideOnSimulatedPrograms(t *testing.T) {
	const ms = time.Millisecond
	limits := Limits{MaxDowntime: 100 * ms, Fixed: 8 * ms}
	for _, c := range []struct {
		name      string
		p         program
		limits    Limits
		want      Decision
		maxRounds int
	}{
		{"idle", program{resident: 131072, working: 1, writes: 0, rate: 150000, overhead: 2 * ms}, limits, Switch, 3},
		{"1000 pages a second, 64 MiB", program{resident: 16384, working: 16384, writes: 1000, rate: 150000, overhead: ms}, limits, Switch, 6},
		{"1000 pages a second, 2 GiB", program{resident: 524288, working: 524288, writes: 1000, rate: 150000, overhead: 4 * ms}, limits, Switch, 7},
		{"half the link", program{resident: 131072, working: 131072, writes: 75000, rate: 150000, overhead: 2 * ms}, limits, Switch, 14},
		{"more than the link, small working set", program{resident: 524288, working: 2000, writes: 500000, rate: 150000, overhead: 2 * ms}, limits, Switch, 6},
		{"more than the link", program{resident: 131072, working: 131072, writes: 400000, rate: 150000, overhead: 2 * ms}, limits, CannotConverge, 10},
		{"slow link", program{resident: 131072, working: 131072, writes: 4000, rate: 2500, overhead: 2 * ms}, limits, CannotConverge, 10},
		{"bound below the fixed cost", program{resident: 16384, working: 16384, writes: 1000, rate: 150000, overhead: ms},
			Limits{MaxDowntime: 5 * ms, Fixed: 8 * ms}, CannotConverge, 14},
	} {
		for _, counted := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				c.p.counted = counted
				f, rounds, blackout := c.p.run(t, c.limits)
				if f.Decision != c.want || len(rounds) > c.maxRounds {
					t.Fatalf("%v after %d rounds (%+v); want %v within %d", f.Decision, len(rounds), f, c.want, c.maxRounds)
				}
				if f.Decision != Switch {
					return
				}
				if blackout > c.limits.MaxDowntime {
					t.Errorf("the blackout would be %v", blackout)
				}
				if d := (f.Blackout - blackout).Abs(); d > 2*ms && d > blackout/5 {
					t.Errorf("predicted %v, would be %v", f.Blackout, blackout)
				}
			})
		}
	}
}

func TestTheFirstRoundAloneDoesNotSwitchABigProgram(t *testing.T) {
	f := Decide([]Round{{Pages: 131072, Took: time.Second, DirtyAfter: -1}}, Limits{MaxDowntime: 100 * time.Millisecond})
	if f.Decision != Continue || f.Blackout < 900*time.Millisecond {
		t.Errorf("%+v", f)
	}
}

func TestDecideWithoutRounds(t *testing.T) {
	if f := Decide(nil, Limits{MaxDowntime: time.Second}); f.Decision != Continue {
		t.Errorf("%+v", f)
	}
}

func TestRoundsThatSendNothing(t *testing.T) {
	f := Decide([]Round{{DirtyAfter: -1}, {DirtyAfter: -1}}, Limits{MaxDowntime: 100 * time.Millisecond, Fixed: 8 * time.Millisecond})
	if f.Decision != Switch || f.Blackout != 8*time.Millisecond {
		t.Errorf("%+v", f)
	}
}
