//go:build linux

package mem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/remote"
)

var (
	seeds    = flag.Int("seeds", 50, "how many random programs are copied with each tracker")
	oneSeed  = flag.Uint64("seed", 0, "copy only the random program of this seed")
	tracker  = flag.String("tracker", "", "how the random programs are tracked: userfaultfd, soft-dirty, hashes; default: by all that this kernel has")
	seedOps  = flag.Int("ops", 80, "how much each random program does")
	pagesOf  = uint64(1024) // of the arena
	accesses = []int{unix.PROT_NONE, unix.PROT_READ, rw, rw, rw, unix.PROT_READ | unix.PROT_EXEC}
)

// TestRandomProgram copies programs that map, unmap, move, protect and write at random, while they do so, and compares
// all of their memory in the end.
func TestRandomProgram(t *testing.T) {
	kerneltest.Root(t)
	for _, by := range []struct {
		name  string
		needs *kernel.Feature
		make  func(*target, remote.Caller) Tracker
	}{
		{"userfaultfd", kernel.UserfaultWP, (*target).userfault},
		{"soft-dirty", kernel.SoftDirty, (*target).softDirtyBits},
		{"hashes", nil, (*target).comparing},
	} {
		if *tracker != "" && *tracker != by.name || *tracker == "" && by.needs != nil && !by.needs.Have() {
			continue
		}
		t.Run(by.name, func(t *testing.T) {
			if by.needs != nil {
				kerneltest.Feature(t, by.needs)
			}
			if *oneSeed != 0 {
				randomProgram(t, *oneSeed, by.make)
				return
			}
			for seed := range uint64(*seeds) {
				if !t.Run(fmt.Sprint(seed+1), func(t *testing.T) { randomProgram(t, seed+1, by.make) }) {
					return
				}
			}
		})
	}
}

// chaos is a program and what it knows about its own memory.
type chaos struct {
	*target
	*rand.Rand
	file  string
	prot  []int // of each page of the arena; -1 for not mapped
	kind  []int // of each page: unix.MAP_PRIVATE or MAP_SHARED, with MAP_ANONYMOUS or not
	steps int
}

func randomProgram(t *testing.T, seed uint64, by func(*target, remote.Caller) Tracker) {
	p := &chaos{target: startTarget(t), Rand: rand.New(rand.NewPCG(seed, 1)), prot: make([]int, pagesOf), kind: make([]int, pagesOf)}
	for i := range p.prot {
		p.prot[i] = -1
	}
	p.file = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(p.file, bytes.Repeat([]byte("migrate "), int(pagesOf)*PageSize/8), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		p.step()
	}
	r := newReplica(p.target, func(c remote.Caller) Tracker { return by(p.target, c) })
	r.round()
	for range *seedOps / 8 {
		switch p.IntN(3) {
		case 0: // with the mappings of before
			p.several()
			r.send(r.source.Round)
		case 1: // at the same time
			r.follow(p.IntN(2) == 0)
			done := make(chan error, 1)
			go func() {
				_, err := r.source.Round(testContext(t), r)
				done <- err
			}()
			p.several()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		default:
			p.several()
			r.round()
		}
	}
	r.final()
	if t.Failed() {
		t.Fatalf("seed %d", seed)
	}
	// An attempt to switch was given up: the program runs on and is copied on.
	p.several()
	r.round()
	p.several()
	r.final()
}

func (p *chaos) several() {
	for range 1 + p.IntN(15) {
		p.step()
	}
}

// span is a random range of the arena, in pages.
func (p *chaos) span() (from, n uint64) {
	from = p.Uint64N(pagesOf - 1)
	return from, 1 + p.Uint64N(min(pagesOf-from, 1+p.Uint64N(128)))
}

func (p *chaos) mapped(from, n uint64) bool {
	for i := from; i < from+n; i++ {
		if p.prot[i] < 0 {
			return false
		}
	}
	return true
}

func at(page uint64) uint64 { return arena + page*PageSize }

// step does one thing at random.
func (p *chaos) step() {
	p.Helper()
	p.steps++
	from, n := p.span()
	o := order{Addr: at(from), Size: n * PageSize, Seed: p.Uint64()}
	switch p.IntN(12) {
	case 0, 1:
		p.mmap(o, from, n)
	case 2:
		o.Op = "munmap"
		p.do(o)
		p.note(from, n, -1, 0)
	case 3:
		p.mremap(o, from, n)
	case 4:
		if p.mapped(from, n) {
			o.Op, o.Prot = "mprotect", accesses[p.IntN(len(accesses))]
			p.do(o)
			for i := from; i < from+n; i++ {
				p.prot[i] = o.Prot
			}
		}
	case 5:
		if p.mapped(from, n) {
			o.Op, o.Advice = "madvise", []int{unix.MADV_DONTNEED, unix.MADV_DONTNEED, unix.MADV_DONTFORK, unix.MADV_DOFORK, unix.MADV_HUGEPAGE, unix.MADV_DONTDUMP}[p.IntN(6)]
			p.do(o)
		}
	default:
		p.write(o, from, n)
	}
}

func (p *chaos) mmap(o order, from, n uint64) {
	o.Op, o.Prot, o.Flags = "mmap", accesses[p.IntN(len(accesses))], anon
	kind := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	switch p.IntN(8) {
	case 0, 1:
		o.Flags, o.File, o.Off = unix.MAP_PRIVATE|unix.MAP_FIXED, p.file, p.Uint64N(pagesOf-n)*PageSize
		kind = unix.MAP_PRIVATE
	case 2:
		kind = unix.MAP_SHARED | unix.MAP_ANONYMOUS
		o.Flags = kind | unix.MAP_FIXED
	}
	p.do(o)
	p.note(from, n, o.Prot, kind)
}

func (p *chaos) note(from, n uint64, prot, kind int) {
	for i := from; i < from+n; i++ {
		p.prot[i], p.kind[i] = prot, kind
	}
}

// mremap moves a range that has one kind and protection, growing or shrinking it. It may fail where the kernel has split it.
func (p *chaos) mremap(o order, from, n uint64) {
	to := p.Uint64N(pagesOf)
	grown := max(4, n+p.Uint64N(8)) - 3
	if !p.uniform(from, n) || to+grown > pagesOf || from < to+grown && to < from+n || p.kind[from]&unix.MAP_SHARED != 0 {
		return
	}
	if p.kind[from]&unix.MAP_ANONYMOUS == 0 {
		grown = min(grown, n) // beyond the end of the file there is nothing
	}
	o.Op, o.To, o.NewSize = "mremap", at(to), grown*PageSize
	if _, err := p.try(o); err != nil {
		p.resync(to, grown)
		p.resync(from, n)
		return
	}
	prot, kind := p.prot[from], p.kind[from]
	p.note(from, n, -1, 0)
	p.note(to, grown, prot, kind)
}

// resync unmaps what is in an unknown state after a call that failed half-way.
func (p *chaos) resync(from, n uint64) {
	p.do(order{Op: "munmap", Addr: at(from), Size: n * PageSize})
	p.note(from, n, -1, 0)
}

func (p *chaos) uniform(from, n uint64) bool {
	for i := from; i < from+n; i++ {
		if p.prot[i] < 0 || p.prot[i] != p.prot[from] || p.kind[i] != p.kind[from] {
			return false
		}
	}
	return true
}

// write writes to what is writable of a range.
func (p *chaos) write(o order, from, n uint64) {
	for i := from; i < from+n; {
		j := i
		for j < from+n && p.prot[j] == rw {
			j++
		}
		if j > i {
			o.Op, o.Addr, o.Size, o.Stride = "stamp", at(i), (j-i)*PageSize, PageSize
			if p.IntN(6) == 0 {
				o.Op = "fill"
			}
			p.do(o)
		}
		i = j + 1
	}
}

// FuzzBuildID feeds notes to the search for a build id.
func FuzzBuildID(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x04\x00\x00\x00\x03\x00\x00\x00GNU\x00abcd"))
	f.Add([]byte("\x04\x00\x00\x00\xff\xff\xff\xff\x03\x00\x00\x00GNU\x00"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x00\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id := findBuildID(b, binary.LittleEndian); len(id) > len(b) {
			t.Error(errors.New("longer than the notes"))
		}
	})
}
