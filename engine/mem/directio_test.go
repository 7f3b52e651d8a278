//go:build linux

package mem

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/remote"
)

// blind is a tracker that reports everything once, and nothing afterwards, as if a device wrote.
type blind struct {
	Tracker
	reported bool
}

func (b *blind) Collect(ctx context.Context, areas []Area, sent *Digest) ([]Extent, error) {
	if b.reported {
		return nil, nil
	}
	b.reported = true
	return b.Tracker.Collect(ctx, areas, sent)
}

func TestDirectReadsAreLookedAtAgain(t *testing.T) {
	for _, direct := range []bool{false, true} {
		p := startTarget(t)
		p.anon(arena, 1<<20)
		p.fill(arena, 1<<20, 1)
		if direct {
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, make([]byte, PageSize), 0o600); err != nil {
				t.Fatal(err)
			}
			// AT_FDCWD
			if _, err := p.try(order{Op: "call", NR: unix.SYS_OPENAT, Args: [6]uintptr{^uintptr(99), uintptr(p.text(file)), unix.O_RDONLY | unix.O_DIRECT}}); err != nil {
				kerneltest.Lack(t, "a file that is open for direct I/O: "+err.Error())
			}
		}
		r := newReplica(p, func(c remote.Caller) Tracker { return &blind{Tracker: p.comparing(c)} })
		r.round()
		p.stamp(arena+PageSize, 3*PageSize, 2)
		stats := r.round()
		if got := stats.Pages >= 3; got != direct {
			t.Errorf("O_DIRECT %v: %+v", direct, stats)
		}
		r.source.looks = []look{{time.Now().Add(-time.Hour), []Range{{arena, arena + PageSize}}}}
		r.round()
		if direct && len(r.source.looks) != 1 {
			t.Errorf("%d rounds are looked at again an hour later", len(r.source.looks))
		}
	}
}

func TestWithout(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	random := func() (pages [64]bool, ranges []Range) {
		for i := range pages {
			if pages[i] = r.IntN(2) == 0; pages[i] {
				ranges = appendPage(ranges, uint64(i)*PageSize)
			}
		}
		return pages, ranges
	}
	for range 1000 {
		a, ra := random()
		b, rb := random()
		var want []Range
		for i := range a {
			if a[i] && !b[i] {
				want = appendPage(want, uint64(i)*PageSize)
			}
		}
		if got := without(ra, rb); !slices.Equal(got, want) {
			t.Fatalf("%v without %v: %v, want %v", ra, rb, got, want)
		}
	}
}
