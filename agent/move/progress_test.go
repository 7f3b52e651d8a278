package move

import (
	"testing"
	"time"

	"migrate/agent/policy"
	"migrate/pagexfer"
)

// A page stream that replaces another counts from zero; what people see goes on.
func TestProgressOverSeveralStreams(t *testing.T) {
	p := newProgress("hash")
	p.begin(time.Now(), 10)
	p.end(RoundStats{Pages: 10}, time.Second, pagexfer.Totals{WireBytes: 1000, Pages: 10}, false)
	p.another(pagexfer.Totals{WireBytes: 1010, Pages: 10})
	p.begin(time.Now(), 10)
	p.end(RoundStats{Pages: 4}, time.Second, pagexfer.Totals{WireBytes: 400, Pages: 4}, false)
	p.another(pagexfer.Totals{WireBytes: 400, Pages: 4})
	p.begin(time.Now(), 10)
	p.end(RoundStats{Pages: 1}, time.Second, pagexfer.Totals{WireBytes: 100, Pages: 1}, true)
	m := p.message(pagexfer.Totals{WireBytes: 100, Pages: 1})
	if m.BytesSent != 1510 || m.PagesSent != 15 {
		t.Errorf("%d bytes, %d pages", m.BytesSent, m.PagesSent)
	}
	for i, want := range []uint64{1000, 400, 100} {
		if got := m.Rounds[i].BytesSent; got != want {
			t.Errorf("round %d: %d bytes, want %d", i+1, got, want)
		}
	}
}

// What was told once is not changed any more: it is marshalled beside the copying. Nothing grows with the number of rounds.
func TestProgressIsToldForGood(t *testing.T) {
	p := newProgress("hash")
	p.end(RoundStats{Pages: 10}, time.Second, pagexfer.Totals{}, false)
	m := p.message(pagexfer.Totals{})
	p.end(RoundStats{Pages: 4}, time.Second, pagexfer.Totals{}, false)
	if got := m.Rounds[0].DirtyPagesAfter; got != 0 {
		t.Errorf("a message that was told has changed: %d pages were left", got)
	}
	if got := p.message(pagexfer.Totals{}).Rounds[0].DirtyPagesAfter; got != 4 {
		t.Errorf("%d pages were left, want 4", got)
	}
	for i := range 3 * maxRounds {
		p.end(RoundStats{Pages: uint64(i)}, time.Second, pagexfer.Totals{}, false)
	}
	if m := p.message(pagexfer.Totals{}); len(m.Rounds) != maxRounds || m.Rounds[0].Pages != 10 || m.Rounds[maxRounds-1].Pages != 3*maxRounds-1 {
		t.Errorf("%d rounds are told, from %d to %d pages", len(m.Rounds), m.Rounds[0].Pages, m.Rounds[len(m.Rounds)-1].Pages)
	}
}

// When all is copied anew, the size of the first round says nothing about what the program writes.
func TestANewCopyIsJudgedAnew(t *testing.T) {
	p, at := newProgress("hash"), time.Now()
	bounds := policy.Bounds{MaxDowntime: 100 * time.Millisecond, Fixed: fixedCost}
	round := func(pages uint64, took time.Duration) policy.Forecast {
		p.begin(at, 0)
		p.end(RoundStats{Pages: pages}, took, pagexfer.Totals{}, false)
		at = at.Add(took)
		return p.decide(bounds)
	}
	round(100000, time.Second)
	if f := round(10, 5*time.Millisecond); f.Decision != policy.Switch || f.DirtyPerSecond != 10 {
		t.Fatalf("%+v", f)
	}
	p.another(pagexfer.Totals{})
	if f := round(100000, time.Second); f.DirtyPerSecond != 0 || f.Decision != policy.Continue {
		t.Errorf("%+v", f)
	}
}
