package move

import (
	"testing"
	"time"

	"migrate/pagexfer"
)

// A page stream that replaces another counts from zero; what people see goes on.
func TestProgressOverSeveralStreams(t *testing.T) {
	p := newProgress("hash")
	p.begin(10)
	p.end(RoundStats{Pages: 10}, time.Second, pagexfer.Totals{WireBytes: 1000, Pages: 10}, false)
	p.another(pagexfer.Totals{WireBytes: 1010, Pages: 10})
	p.begin(10)
	p.end(RoundStats{Pages: 4}, time.Second, pagexfer.Totals{WireBytes: 400, Pages: 4}, false)
	p.another(pagexfer.Totals{WireBytes: 400, Pages: 4})
	p.begin(10)
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
	r := p.rounds()
	if len(r) != maxRounds || r[0].Pages != 10 || r[len(r)-1].Pages != 3*maxRounds-1 {
		t.Errorf("the policy looks at %d rounds, from %d to %d pages", len(r), r[0].Pages, r[len(r)-1].Pages)
	}
}
