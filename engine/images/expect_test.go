package images

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Pages that were announced stand in the order of the announcement, whatever order they come in; those that never come
// leave no gap.
func TestPagesThatWereExpected(t *testing.T) {
	for name, missing := range map[string]bool{"all come": false, "some do not": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w, want := NewPageWriter(dir), memory{}
			if err := w.Expect(1, []Run{{Addr: 0x10000, Pages: 600}, {Addr: 0x4000000, Pages: 3}}); err != nil {
				t.Fatal(err)
			}
			var order []uint64
			for i := range uint64(600) {
				order = append(order, 0x10000+i*PageSize)
			}
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			if missing {
				order = order[:500]
			}
			for i, addr := range order {
				if i%10 == 0 {
					_ = want.ZeroPages(1, addr, 1)
					if err := w.ZeroPages(1, addr, 1); err != nil {
						t.Fatal(err)
					}
					continue
				}
				page := bytes.Repeat([]byte{byte(addr >> 12), byte(addr >> 20)}, PageSize/2)
				_ = want.WritePages(1, addr, page)
				if err := w.WritePages(1, addr, page); err != nil {
					t.Fatal(err)
				}
			}
			last := bytes.Repeat([]byte{7}, 3*PageSize)
			_ = want.WritePages(1, 0x4000000, last)
			if err := w.WritePages(1, 0x4000000, last); err != nil {
				t.Fatal(err)
			}
			p := w.spaces[1]
			before := p.f
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if sorted := p.f != before; sorted != missing {
				t.Errorf("the file was written twice: %v", sorted)
			}
			if st, err := os.Stat(filepath.Join(dir, pagesName(1))); err != nil || st.Size() != int64(len(want))*PageSize {
				t.Errorf("%d bytes for %d pages, %v", st.Size(), len(want), err)
			}
			got := memory{}
			if _, err := ReadPages(context.Background(), dir, 1, got); err != nil {
				t.Fatal(err)
			}
			if !maps.EqualFunc(got, want, bytes.Equal) {
				t.Error("other pages came back")
			}
		})
	}
	if err := NewPageWriter(t.TempDir()).Expect(1, []Run{{Addr: 1, Pages: 1}}); err == nil {
		t.Error("an address that is none was expected")
	}
}
