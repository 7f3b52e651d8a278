package restore

import (
	"fmt"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"migrate/engine/images"
)

func area(start, end uint64, prot, status uint32, shmid uint64) *vma.VmaEntry {
	return &vma.VmaEntry{Start: proto.Uint64(start << 12), End: proto.Uint64(end << 12), Prot: proto.Uint32(prot), Status: proto.Uint32(status), Flags: proto.Uint32(2), Shmid: proto.Uint64(shmid), Pgoff: proto.Uint64(start << 12)}
}

func TestDiffVMAs(t *testing.T) {
	const anon, file = images.VMARegular | images.VMAAnonPrivate, images.VMARegular | images.VMAFilePrivate
	type list = []*vma.VmaEntry
	for name, c := range map[string]struct {
		old, target list
		want        string
	}{
		"new":                {nil, list{area(1, 3, 3, anon, 0)}, "mapping 1-3"},
		"same":               {list{area(1, 3, 3, anon, 0)}, list{area(1, 3, 3, anon, 0)}, ""},
		"grown":              {list{area(1, 3, 3, anon, 0)}, list{area(1, 5, 3, anon, 0)}, "mapping 3-5"},
		"shrunk":             {list{area(1, 5, 3, anon, 0)}, list{area(1, 3, 3, anon, 0)}, "unmapping 3-5"},
		"gone":               {list{area(1, 5, 3, anon, 0)}, nil, "unmapping 1-5"},
		"a hole":             {list{area(1, 9, 3, anon, 0)}, list{area(1, 3, 3, anon, 0), area(5, 9, 3, anon, 0)}, "unmapping 3-5"},
		"protected in part":  {list{area(1, 9, 3, anon, 0)}, list{area(1, 3, 3, anon, 0), area(3, 9, 1, anon, 0)}, "protecting 3-9"},
		"another thing":      {list{area(1, 9, 3, anon, 0)}, list{area(1, 9, 3, file, 7)}, "mapping 1-9"},
		"another file":       {list{area(1, 9, 3, file, 6)}, list{area(1, 9, 3, file, 7)}, "mapping 1-9"},
		"merged with growth": {list{area(1, 3, 3, anon, 0), area(3, 5, 1, anon, 0)}, list{area(1, 6, 3, anon, 0)}, "protecting 3-5, mapping 5-6"},
		"the vDSO":           {nil, list{area(1, 3, 5, images.VMAVDSO, 0)}, ""},
	} {
		var got []string
		for _, op := range diffVMAs(c.old, c.target) {
			got = append(got, fmt.Sprintf("%s %d-%d", strings.Fields(op.String())[0], op.start>>12, op.end>>12))
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s: %s; want %s", name, text, c.want)
		}
	}
}

// TestDiffVMAsLeadsToTheTarget applies the operations to a map of pages and compares it with the target.
func TestDiffVMAsLeadsToTheTarget(t *testing.T) {
	const pages = 40
	layout := rapid.Custom(func(t *rapid.T) []*vma.VmaEntry {
		var out []*vma.VmaEntry
		for at := uint64(1); at < pages; {
			n := uint64(rapid.IntRange(1, 8).Draw(t, "pages"))
			kind := rapid.SampledFrom([]uint32{0, images.VMAAnonPrivate, images.VMAFilePrivate}).Draw(t, "kind")
			if kind != 0 {
				out = append(out, area(at, at+n, uint32(rapid.IntRange(0, 3).Draw(t, "prot")), kind, uint64(rapid.IntRange(0, 1).Draw(t, "file"))))
			}
			at += n
		}
		return out
	})
	rapid.Check(t, func(t *rapid.T) {
		old, target := layout.Draw(t, "old"), layout.Draw(t, "target")
		type page struct {
			status uint32
			shmid  uint64
			prot   uint32
		}
		render := func(vmas []*vma.VmaEntry) map[uint64]page {
			m := map[uint64]page{}
			for _, v := range vmas {
				for a := v.GetStart(); a < v.GetEnd(); a += 4096 {
					m[a] = page{v.GetStatus(), v.GetShmid(), v.GetProt()}
				}
			}
			return m
		}
		got, want := render(old), render(target)
		for _, op := range diffVMAs(old, target) {
			for a := op.start; a < op.end; a += 4096 {
				switch op.kind {
				case opUnmap:
					delete(got, a)
				case opMap:
					got[a] = page{op.vma.GetStatus(), op.vma.GetShmid(), op.vma.GetProt()}
				case opProtect:
					p := got[a]
					p.prot = op.vma.GetProt()
					got[a] = p
				}
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d pages are mapped, want %d", len(got), len(want))
		}
		for a, w := range want {
			g := got[a]
			if w.status == images.VMAAnonPrivate {
				g.shmid, w.shmid = 0, 0
			}
			if g != w {
				t.Fatalf("page 0x%x is %+v, want %+v", a, g, w)
			}
		}
	})
}
