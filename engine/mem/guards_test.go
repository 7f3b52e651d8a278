//go:build linux

package mem

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/remote"
)

// Guard pages come and go while memory is copied in rounds; in the end they are known exactly, and nothing else is lost.
func TestGuardsAreFound(t *testing.T) {
	for _, tracker := range []struct {
		name string
		make func(*target) func(remote.Caller) Tracker
	}{
		{"userfaultfd", func(p *target) func(remote.Caller) Tracker { return p.userfault }},
		{"hashes", func(p *target) func(remote.Caller) Tracker {
			return func(remote.Caller) Tracker { return NewHashes(p.pid()) }
		}},
	} {
		t.Run(tracker.name, func(t *testing.T) {
			p := startTarget(t)
			guard := func(advice int, from, n uint64) {
				t.Helper()
				p.do(order{Op: "madvise", Addr: arena + from*PageSize, Size: n * PageSize, Advice: advice})
			}
			const remove = 103 // MADV_GUARD_REMOVE
			p.anon(arena, 4<<20)
			p.fill(arena, 1<<20, 1)
			if _, err := p.try(order{Op: "madvise", Addr: arena, Size: PageSize, Advice: adviceGuardInstall}); err != nil {
				kerneltest.Lack(t, "guard pages: "+err.Error())
			}
			if found, err := guardsIn(p.pid(), []Range{{arena, arena + PageSize}}); err != nil || len(found) == 0 {
				kerneltest.Lack(t, fmt.Sprintf("a kernel that tells of guard pages: %v", err))
			}
			p.do(order{Op: "mmap", Addr: arena + 8<<20, Size: 8 * PageSize, Prot: rw, Flags: unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_FIXED})
			_, unshared := p.try(order{Op: "madvise", Addr: arena + 8<<20, Size: PageSize, Advice: adviceGuardInstall})
			guard(adviceGuardInstall, 10, 3)   // over content
			guard(adviceGuardInstall, 700, 10) // over nothing
			r := newReplica(p, tracker.make(p))
			r.round()
			guard(remove, 10, 2)
			guard(remove, 0, 1)
			p.stamp(arena, PageSize, 3)
			guard(adviceGuardInstall, 20, 4)
			r.round()
			guard(adviceGuardInstall, 900, 1)
			guard(remove, 21, 1)
			var found []Range
			r.stopped(func() {
				r.follow(false)
				r.send(r.source.Final)
				var err error
				if found, err = r.source.Guards(); err != nil {
					t.Fatal(err)
				}
			})
			at := func(from, n uint64) Range { return Range{arena + from*PageSize, arena + (from+n)*PageSize} }
			want := []Range{at(12, 1), at(20, 1), at(22, 2), at(700, 10), at(900, 1)}
			if unshared == nil {
				want = append(want, at(2048, 1))
			}
			if !slices.Equal(found, want) {
				t.Errorf("guards at %v, want %v", found, want)
			}
			if a, b := r.source.Sum(), r.writer.Sum(); a != b {
				t.Errorf("the source's hash is %v, the copy's %v", a, b)
			}
			guard(remove, 0, 1024)
			if unshared == nil {
				guard(remove, 2048, 1)
			}
			r.final() // what was behind a guard is gone at both
		})
	}
}
