package policy

import (
	"testing"
	"time"
)

// slowed is a program that gets a share of the processor time that it would use.
type slowed struct {
	writer
	spans []span
}

// span is a share that holds from a time until the next one.
type span struct {
	from  time.Duration
	share float64
}

// clock is how far the program has come by a time.
func (s *slowed) clock(at time.Duration) time.Duration {
	var own time.Duration
	for i, sp := range s.spans {
		end := at
		if i+1 < len(s.spans) {
			end = min(at, s.spans[i+1].from)
		}
		if end > sp.from {
			own += time.Duration(float64(end-sp.from) * sp.share)
		}
	}
	return own
}

func (s *slowed) written(from, to time.Duration) float64 {
	return s.writer.written(s.clock(from), s.clock(to))
}

// throttling is the policy with a program that it may slow down.
type throttling struct {
	ours
	t     Throttle
	most  int
	p     *slowed
	now   time.Duration
	steps []int
}

func (r *throttling) add(x Round, left float64) {
	r.now += x.Took
	r.ours.add(x, left)
}

func (r *throttling) decide(b Bounds) (Decision, time.Duration, time.Duration) {
	f := r.ours.p.Decide(b)
	if r.t.Next(f, r.most) {
		r.ours.p.Changed()
		r.steps = append(r.steps, r.t.Percent())
		r.p.spans = append(r.p.spans, span{r.now, 1 - float64(r.t.Percent())/100})
		return Continue, 0, f.Blackout
	}
	r.now += f.Wait
	return f.Decision, f.Wait, f.Blackout
}

func slowDown(c scenario, most int) (result, *throttling) {
	p := &slowed{writer: c.p, spans: []span{{0, 1}}}
	r := &throttling{most: most, p: p}
	return simulate(p, c.w, r, c.b, timeout, false), r
}

// TestThrottleConverges tells which programs that never converge by themselves do so when they may be slowed down by how many percent. The
// bound holds for them, too; and nobody is slowed down by more than is allowed, or for nothing.
func TestThrottleConverges(t *testing.T) {
	const never = 100
	needs := map[string]int{
		"uniform, 1.0 of the link":                 20,
		"uniform, 1.5 of the link":                 40,
		"uniform, 2.0 of the link":                 60,
		"uniform, 3.0 of the link":                 70,
		"hot set of 64 MiB at 3 x link":            60,
		"bursts, 1 Gbit/s":                         60,
		"1.5 x link after 0.5 s of quiet":          40,
		"link slows to a tenth, 0.3 of it written": 80,
		"8 GiB over 1 Gbit/s, 1.5 of it written":   never, // within five minutes
		"bound below what is fixed":                never, // the writing is not in the way
	}
	for _, c := range scenarios(t) {
		t.Run(c.name, func(t *testing.T) {
			for _, most := range []int{0, 20, 30, 40, 50, 60, 70, 80, 90, 99} {
				r, rule := slowDown(c, most)
				t.Logf("at most %d %%: switched: %t, after %v and %d rounds, steps %v, blackout %v", most, r.switched, r.copied, r.rounds, rule.steps, r.blackout)
				if want := most >= needs[c.name]; r.switched != want {
					t.Errorf("at most %d %%: it converges: %t", most, r.switched)
				}
				if r.switched && len(rule.steps) > 0 && r.blackout > c.b.MaxDowntime {
					t.Errorf("at most %d %%: a blackout of %v", most, r.blackout)
				}
				if c.name == "bound below what is fixed" && len(rule.steps) > 0 {
					t.Errorf("slowed down by %v for nothing", rule.steps)
				}
				for i, s := range rule.steps {
					if s > most || i > 0 && s <= rule.steps[i-1] {
						t.Errorf("at most %d %%: the steps are %v", most, rule.steps)
					}
				}
			}
		})
	}
}

func TestThrottleNext(t *testing.T) {
	stuck := Forecast{Decision: CannotConverge, Cause: CauseWrites, PagesPerSecond: 1000, DirtyPerSecond: 1000}
	fast := stuck
	fast.DirtyPerSecond = 10000
	var slow Throttle
	for i, c := range []struct {
		f    Forecast
		most int
		want int
	}{
		{Forecast{Decision: Continue}, 90, 0},
		{Forecast{Decision: CannotConverge, Cause: CauseFixed}, 90, 0},
		{stuck, 0, 0},
		{stuck, 90, 20},
		{stuck, 90, 30},
		{fast, 90, 62}, // half of the way
		{Forecast{Decision: Switch}, 90, 62},
		{fast, 65, 65},
		{fast, 65, 65},
		{Forecast{Decision: Continue}, 40, 40}, // less is allowed now
		{stuck, 0, 0},
	} {
		before := slow.Percent()
		if changed := slow.Next(c.f, c.most); slow.Percent() != c.want || changed != (before != c.want) {
			t.Fatalf("step %d: %d, changed: %t; want %d", i, slow.Percent(), changed, c.want)
		}
	}
}
