package mem

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
)

// entry is a mapping for tests: file 0 is anonymous memory.
func entry(start, end uint64, prot, file uint32, off, madv uint64) *vma.VmaEntry {
	e := &vma.VmaEntry{Start: proto.Uint64(start * PageSize), End: proto.Uint64(end * PageSize), Prot: proto.Uint32(prot), Flags: proto.Uint32(mapPrivate | mapAnonymous),
		Status: proto.Uint32(images.VMARegular | images.VMAAnonPrivate), Madv: proto.Uint64(madv)}
	if file != 0 {
		e.Flags, e.Status = proto.Uint32(mapPrivate), proto.Uint32(images.VMARegular|images.VMAFilePrivate)
		e.Shmid, e.Pgoff = proto.Uint64(uint64(file)), proto.Uint64(off*PageSize)
	}
	return e
}

func TestDiff(t *testing.T) {
	type entries = []*vma.VmaEntry
	for _, c := range []struct {
		name     string
		old, new entries
		want     []string
	}{
		{"nothing", entries{entry(1, 5, 3, 0, 0, 0)}, entries{entry(1, 5, 3, 0, 0, 0)}, nil},
		{"grown heap", entries{entry(1, 5, 3, 0, 0, 0)}, entries{entry(1, 9, 3, 0, 0, 0)}, []string{"mapping 0x5000-0x9000"}},
		{"split by the kernel", entries{entry(1, 9, 3, 0, 0, 0)}, entries{entry(1, 4, 3, 0, 0, 0), entry(4, 9, 3, 0, 0, 0)}, nil},
		{"protected in the middle", entries{entry(1, 9, 3, 0, 0, 0)}, entries{entry(1, 4, 3, 0, 0, 0), entry(4, 5, 1, 0, 0, 0), entry(5, 9, 3, 0, 0, 0)},
			[]string{"protecting 0x4000-0x5000"}},
		{"hole", entries{entry(1, 9, 3, 0, 0, 0)}, entries{entry(1, 4, 3, 0, 0, 0), entry(6, 9, 3, 0, 0, 0)}, []string{"unmapping 0x4000-0x6000"}},
		{"another file", entries{entry(1, 9, 3, 1, 0, 0)}, entries{entry(1, 9, 3, 2, 0, 0)}, []string{"mapping 0x1000-0x9000"}},
		{"another part of the file", entries{entry(1, 9, 3, 1, 0, 0)}, entries{entry(1, 9, 3, 1, 1, 0)}, []string{"mapping 0x1000-0x9000"}},
		{"rest of a file mapping", entries{entry(1, 9, 3, 1, 0, 0)}, entries{entry(3, 9, 3, 1, 2, 0)}, []string{"unmapping 0x1000-0x3000"}},
		{"advice", entries{entry(1, 9, 3, 0, 0, 1<<adviceDontFork)}, entries{entry(1, 9, 3, 0, 0, 1<<adviceDontDump)}, []string{"advising 0x1000-0x9000"}},
		{"advice that cannot be taken back", entries{entry(1, 9, 3, 0, 0, 1<<adviceHugePage)}, entries{entry(1, 9, 3, 0, 0, 0)}, []string{"mapping 0x1000-0x9000"}},
	} {
		var got []string
		for _, ch := range Diff(c.old, c.new) {
			got = append(got, ch.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestDiffLeadsToTarget applies the steps between random address spaces to a model of pages.
func TestDiffLeadsToTarget(t *testing.T) {
	type page struct {
		mapped     bool
		prot, file uint32
		at, madv   uint64
	}
	const pages = 40
	r := rand.New(rand.NewPCG(1, 2))
	random := func() []*vma.VmaEntry {
		var out []*vma.VmaEntry
		for at := uint64(1); at < pages; {
			n := 1 + r.Uint64N(8)
			if r.IntN(3) > 0 {
				madv := []uint64{0, 0, 1 << adviceDontFork, 1 << adviceHugePage, 1 << adviceNoHugePage, 1<<adviceDontDump | 1<<adviceHugePage}[r.IntN(6)]
				out = append(out, entry(at, min(at+n, pages), uint32(r.IntN(8)), uint32(max(0, r.IntN(4)-1)), uint64(r.IntN(3)), madv))
			}
			at += n
		}
		return out
	}
	model := func(es []*vma.VmaEntry) (m [pages]page) {
		for _, e := range es {
			for p := e.GetStart() / PageSize; p < e.GetEnd()/PageSize; p++ {
				m[p] = page{mapped: true, prot: e.GetProt(), file: uint32(e.GetShmid()), at: e.GetPgoff() + p*PageSize - e.GetStart(), madv: e.GetMadv()}
				if m[p].file == 0 {
					m[p].at = 0
				}
			}
		}
		return m
	}
	for range 2000 {
		old, target := random(), random()
		have, want := model(old), model(target)
		for _, c := range Diff(old, target) {
			for p := c.Start / PageSize; p < c.End/PageSize; p++ {
				switch c.Kind {
				case Unmap:
					have[p] = page{}
				case Map:
					have[p] = model([]*vma.VmaEntry{c.VMA})[p]
				case Protect:
					have[p].prot = c.VMA.GetProt()
				case Advise:
					for _, a := range c.Advice {
						have[p].madv = given(have[p].madv, a)
					}
				}
			}
		}
		if have != want {
			t.Fatalf("from %v to %v by %v:\n%v\n%v", old, target, Diff(old, target), have, want)
		}
	}
}

// given is what madvise(2) makes of the marks of a mapping.
func given(marks uint64, advice int) uint64 {
	for mark, back := range undo {
		if back == advice {
			marks &^= 1 << mark
		}
	}
	switch advice {
	case adviceHugePage:
		marks &^= 1 << adviceNoHugePage
	case adviceNoHugePage:
		marks &^= 1 << adviceHugePage
	case adviceNormal, adviceDoFork, adviceDoDump, adviceKeepOnFork, adviceUnmergeable:
		return marks
	}
	return marks | 1<<advice
}

func TestBatches(t *testing.T) {
	shared := &vma.VmaEntry{Status: proto.Uint32(images.VMAAnonShared)}
	private := &vma.VmaEntry{Status: proto.Uint32(images.VMAAnonPrivate)}
	var in []Change
	for _, v := range []*vma.VmaEntry{private, shared, private, shared, shared, private, private, private} {
		in = append(in, Change{Kind: Map, VMA: v})
	}
	var got []int
	for _, b := range Batches(in, 3) {
		got = append(got, len(b))
	}
	if !slices.Equal(got, []int{3, 1, 3, 1}) {
		t.Error(got)
	}
}
