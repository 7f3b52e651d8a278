//go:build linux

package mem

import (
	"context"
	"sync"
	"testing"
	"time"
)

// meddler is a replica to which something happens while the first pages of a round are on their way.
type meddler struct {
	*replica
	once   sync.Once
	meddle func()
	mu     sync.Mutex
	order  []uint64 // addresses of the runs that came
}

func (m *meddler) Send(ctx context.Context, space uint32, runs []Run, data []byte) error {
	m.once.Do(m.meddle)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range runs {
		for i := range uint64(r.Pages) {
			m.order = append(m.order, r.Addr+i*PageSize)
		}
	}
	return m.replica.Send(ctx, space, runs, data)
}

// Pages that were written in the round before come last, and what was written again since the scan is left to the next round, which has it.
func TestRewrittenPagesAreSkipped(t *testing.T) {
	const size, hot = 16 << 20, 1 << 20
	p := startTarget(t)
	p.anon(arena, size)
	p.fill(arena, size, 1)
	r := newReplica(p, p.userfault)
	r.round()
	p.stamp(arena, hot, 2)
	r.round()
	p.stamp(arena, size, 3)
	r.follow(true)
	m := &meddler{replica: r, meddle: func() {
		time.Sleep(2 * patience)        // what comes soon after the scan is not looked at
		p.stamp(arena, hot-PageSize, 4) // the last hot page is left alone
	}}
	stats, err := r.source.Round(testContext(t), m)
	if err != nil {
		t.Fatal(err)
	}
	const cold = (size - hot) / PageSize
	if stats.Skipped < hot/PageSize-1 || stats.Pages < cold+1 { // the target has memory besides
		t.Errorf("%+v; want at least %d skipped and %d sent", stats, hot/PageSize-1, cold+1)
	}
	came := 0
	for i, addr := range m.order {
		if addr >= arena && addr < arena+size {
			came++
		}
		in := addr >= arena && addr < arena+hot
		if in && (addr != arena+hot-PageSize || i < cold) {
			t.Errorf("page 0x%x came as number %d", addr, i)
		}
	}
	if came != cold+1 {
		t.Errorf("%d pages came, want %d", came, cold+1)
	}
	if stats := r.final(); stats.Skipped != 0 || stats.Pages < hot/PageSize-1 {
		t.Errorf("the last round: %+v", stats)
	}
}

// What is not tracked cannot be skipped: nobody would say that it was written.
func TestUntrackedPagesAreNotSkipped(t *testing.T) {
	const size = 8 << 20
	p := startTarget(t)
	p.anon(arena, size)
	p.fill(arena, size, 1)
	r := newReplica(p, p.userfault)
	r.round()
	p.stamp(arena, size, 2)
	r.follow(true)
	m := &meddler{replica: r, meddle: func() {
		time.Sleep(2 * patience)
		p.anon(arena+size/2, size/4) // a mapping in the place of another, which is not registered
		p.fill(arena+size/2, size/4, 3)
	}}
	if _, err := r.source.Round(testContext(t), m); err != nil {
		t.Fatal(err)
	}
	for _, addr := range m.order {
		if addr == arena+size/2 {
			r.final()
			return
		}
	}
	t.Error("a page that nobody watches was skipped")
}
