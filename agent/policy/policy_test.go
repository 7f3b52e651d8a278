package policy

import (
	"strings"
	"testing"
	"time"
)

const msec = time.Millisecond

// after is a policy that was told of rounds without pauses between them; Since is filled in.
func after(rounds ...Round) *Policy {
	p := &Policy{}
	for i, r := range rounds {
		if i > 0 && r.Since == 0 {
			r.Since = rounds[i-1].Took
		}
		p.Add(r)
	}
	return p
}

func TestDecide(t *testing.T) {
	full := Round{Pages: 131072, Took: time.Second, Scan: 5 * msec}
	small := Round{Pages: 50, Took: 6 * msec, Scan: 5 * msec}
	huge := Round{Pages: 120000, Took: time.Second, Scan: 5 * msec}
	for _, c := range []struct {
		name   string
		p      *Policy
		b      Bounds
		want   Decision
		cause  Cause
		reason string
	}{
		{"nothing copied", after(), usual, Continue, CauseNone, "nothing has been copied"},
		{"the first round of a large program", after(full), usual, Continue, CauseNone, "another round"},
		{"quiet", after(full, small), usual, Switch, CauseNone, "would gain little"},
		{"rounds that send nothing", after(Round{}, Round{}), usual, Switch, CauseNone, "would gain little"},
		{"all is written again", after(full, huge, huge, huge), usual, CannotConverge, CauseWrites, "or a quieter program"},
		{"all is written again, and that may be", after(full, huge, huge, huge), Bounds{MaxDowntime: 2 * time.Second, Fixed: 15 * msec}, Switch, CauseNone, "would gain little"},
		{"the bound is below what is fixed", after(full, small, small, small), Bounds{MaxDowntime: 10 * msec, Fixed: 15 * msec}, CannotConverge, CauseFixed, "only a bound of"},
		{"the bound is so from the start, but there is still to be gained", after(full, huge), Bounds{MaxDowntime: 10 * msec, Fixed: 15 * msec}, Continue, CauseNone, "another round"},
	} {
		f := c.p.Decide(c.b)
		if f.Decision != c.want || f.Cause != c.cause || !strings.Contains(f.Reason, c.reason) {
			t.Errorf("%s: %+v; want %v", c.name, f, c.want)
		}
	}
}

// What why says would be enough is enough.
func TestTheBoundThatIsAskedForIsEnough(t *testing.T) {
	full, huge := Round{Pages: 131072, Took: time.Second, Scan: 5 * msec}, Round{Pages: 120000, Took: time.Second, Scan: 5 * msec}
	p := after(full, huge, huge, huge)
	f := p.Decide(usual)
	if !strings.Contains(f.Reason, "it needs one of 1.2") {
		t.Fatalf("the reason is %q", f.Reason)
	}
	if f := p.Decide(Bounds{MaxDowntime: 1300 * msec, Fixed: usual.Fixed}); f.Decision != Switch {
		t.Errorf("%+v", f)
	}
}

// The pauses of a copy that cannot converge must not be taken for writing: once the program is quieter, it converges from there.
func TestPausesAreNotTakenForWriting(t *testing.T) {
	p := phases(half, 2*linkRate, 0.5*linkRate, 8*time.Second)
	r := simulate(p, steady(linkRate), &ours{}, usual, timeout, false)
	if !r.switched || r.gaveUp == 0 || r.copied > 11*time.Second {
		t.Errorf("%+v", r)
	}
}

// On a link whose rate wanders, rounds get longer and shorter. A program that writes less than the link carries comes through all the same.
func TestBusyHosts(t *testing.T) {
	const copies = 50
	over := 0
	for seed := range uint64(copies) {
		r := simulate(uniform(half, 0.7*busyRate), busy(seed), &ours{}, usual, timeout, false)
		if !r.switched || r.copied > 30*time.Second {
			t.Errorf("copy %d: switched: %v, after %v and %d rounds", seed, r.switched, r.copied, r.rounds)
		}
		if r.blackout > usual.MaxDowntime {
			over++
		}
	}
	if over > copies/20 {
		t.Errorf("%d of %d copies were over the bound", over, copies)
	}
}

// While a switch is waited for, a program that writes much is followed closely, and one that writes little is left alone.
func TestThePauseFollowsTheWriting(t *testing.T) {
	full := Round{Pages: 131072, Took: time.Second, Scan: 5 * msec}
	if f := after(full, Round{Pages: 50, Took: 6 * msec, Scan: 5 * msec}).Decide(usual); f.Wait != KeepingUp {
		t.Errorf("%+v", f)
	}
	hot := Round{Pages: 3000, Took: 28 * msec, Scan: 5 * msec}
	if f := after(full, hot, hot, hot).Decide(usual); f.Decision != Switch || f.Wait > 2*msec {
		t.Errorf("%+v", f)
	}
}

func TestIdle(t *testing.T) {
	rounds, copying, f := Idle(100000, 100000, 12*msec)
	if rounds != 3 || copying != time.Second || f.Blackout > 13*msec {
		t.Errorf("%d rounds, %v, %+v", rounds, copying, f)
	}
	if _, _, f := Idle(0, 100000, 12*msec); f.Decision != Switch {
		t.Errorf("%+v", f)
	}
}
