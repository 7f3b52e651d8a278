package mem

import (
	"math/rand/v2"
	"testing"
)

func randomPage(r *rand.Rand) []byte {
	p := make([]byte, PageSize)
	for i := 0; i < 64; i++ {
		p[r.IntN(PageSize)] = byte(r.Uint32())
	}
	return p
}

// TestDigestIsOfContent compares digests that came about in different ways.
func TestDigestIsOfContent(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	content := map[uint64][]byte{}
	d := NewDigest(7)
	for range 5000 {
		addr := r.Uint64N(3*chunkPages) * PageSize
		switch r.IntN(4) {
		case 0:
			delete(content, addr)
			d.Remove(Range{addr, addr + PageSize})
		case 1:
			delete(content, addr)
			d.Write(addr, zeroPage[:])
		default:
			content[addr] = randomPage(r)
			d.Write(addr, content[addr])
		}
	}
	fresh := NewDigest(7)
	for addr, page := range content {
		fresh.Write(addr, page)
	}
	if d.Sum() != fresh.Sum() {
		t.Errorf("%v after many changes, %v of the same content", d.Sum(), fresh.Sum())
	}
	d.Remove(Range{0, 1 << 40})
	if d.Sum() != (Sum{}) || len(d.chunks) != 0 {
		t.Errorf("%v with %d chunks after all was removed", d.Sum(), len(d.chunks))
	}
}

func TestDigestTellsPlaces(t *testing.T) {
	page := randomPage(rand.New(rand.NewPCG(5, 6)))
	sums := map[Sum]string{{}: "nothing"}
	add := func(what string, space uint32, addrs ...uint64) {
		d := NewDigest(space)
		for _, a := range addrs {
			d.Write(a, page)
		}
		if before, ok := sums[d.Sum()]; ok {
			t.Errorf("%s has the hash of %s", what, before)
		}
		sums[d.Sum()] = what
	}
	add("page 0", 1, 0)
	add("page 1", 1, PageSize)
	add("page 0 of another space", 2, 0)
	add("page 0 of an object", ObjectSpace(1), 0)
	add("both pages", 1, 0, PageSize)
	add("pages 0 and 2", 1, 0, 2*PageSize)
	a, b, both := NewDigest(1), NewDigest(1), NewDigest(1)
	a.Write(0, page)
	b.Write(PageSize, page)
	both.Write(PageSize, page)
	both.Write(0, page)
	if a.Sum().Add(b.Sum()) != both.Sum() || both.Sum().Sub(a.Sum()) != b.Sum() {
		t.Error("sums do not add up")
	}
	if len(both.Sum().Bytes()) != 16 || both.Sum().String() == "" {
		t.Error("encoding")
	}
	both.distrust()
	if both.Sum() != (Sum{}) || len(both.known(Range{0, 1 << 30})) != 1 {
		t.Error("distrusted pages count, or are forgotten")
	}
}
