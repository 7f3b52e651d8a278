package mem

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"
)

// A Sum is a hash over memory, 128 bits. Sums of disjoint sets of pages add up to the sum of their union, in any
// order, so that it is kept up to date page by page. A page of zeros counts as one that is not there.
type Sum struct{ Hi, Lo uint64 }

// Add returns the sum of both sets of pages.
func (s Sum) Add(o Sum) Sum {
	lo, carry := bits.Add64(s.Lo, o.Lo, 0)
	hi, _ := bits.Add64(s.Hi, o.Hi, carry)
	return Sum{hi, lo}
}

// Sub returns the sum of s without the pages of o, which must be among those of s.
func (s Sum) Sub(o Sum) Sum {
	lo, borrow := bits.Sub64(s.Lo, o.Lo, 0)
	hi, _ := bits.Sub64(s.Hi, o.Hi, borrow)
	return Sum{hi, lo}
}

// Bytes returns the sum as 16 bytes, big-endian, for the wire.
func (s Sum) Bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, s.Hi), s.Lo)
}

func (s Sum) String() string { return hex.EncodeToString(s.Bytes()) }

// Values of a page's hash with a meaning of their own. The hash of a page's content is never one of them.
const (
	hashAbsent = 0 // the page is as in a fresh mapping
	hashZero   = 1 // the page was sent and is all zeros
	hashStale  = 2 // the page was sent, but it is not known with what content
)

// zeroPage is what content is compared with.
var zeroPage [PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }

// pageHash hashes the content of one page.
func pageHash(page []byte) uint64 {
	if isZero(page) {
		return hashZero
	}
	return max(xxh3.Hash(page), hashStale+1)
}

// A Digest knows the hash of every page of one space that was sent or received, and their Sum. It takes 8 bytes for
// a page, in blocks for 2 MiB of addresses. Its methods may be called by several goroutines.
type Digest struct {
	key uint64 // of the space

	mu     sync.Mutex
	chunks map[uint64]*chunk // by address / chunkSize
	sum    Sum
}

type chunk struct {
	hash [chunkPages]uint64
	used int // hashes that are not hashAbsent
}

// NewDigest returns the digest of a space of which nothing is known yet.
func NewDigest(space uint32) *Digest {
	return &Digest{key: mix(uint64(space) + 0x9e3779b97f4a7c15), chunks: map[uint64]*chunk{}}
}

// Sum returns the hash over all pages.
func (d *Digest) Sum() Sum {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sum
}

// mix is the finalizer of SplitMix64: a permutation in which every bit of x moves every bit of the result.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// of is what a page contributes to the sum.
func (d *Digest) of(addr, hash uint64) Sum {
	if hash <= hashStale {
		return Sum{}
	}
	place := mix(addr ^ d.key)
	return Sum{mix(hash ^ place), mix(hash + bits.RotateLeft64(place, 32) ^ 0xd6e8feb86659fd93)}
}

// at returns what is known of a page.
func (d *Digest) at(addr uint64) uint64 {
	if c := d.chunks[addr/chunkSize]; c != nil {
		return c.hash[addr%chunkSize/PageSize]
	}
	return hashAbsent
}

// set notes a page's hash. The lock must be held.
func (d *Digest) set(addr, hash uint64) {
	c := d.chunks[addr/chunkSize]
	if c == nil {
		if hash == hashAbsent {
			return
		}
		c = &chunk{}
		d.chunks[addr/chunkSize] = c
	}
	h := &c.hash[addr%chunkSize/PageSize]
	if *h == hash {
		return
	}
	d.sum = d.sum.Sub(d.of(addr, *h)).Add(d.of(addr, hash))
	if *h == hashAbsent {
		c.used++
	}
	if *h = hash; hash == hashAbsent {
		if c.used--; c.used == 0 {
			delete(d.chunks, addr/chunkSize)
		}
	}
}

// Write notes the content of the pages from addr on.
func (d *Digest) Write(addr uint64, data []byte) {
	var hashes [BatchBytes / PageSize]uint64
	for len(data) >= PageSize {
		n := min(len(hashes), len(data)/PageSize)
		for i := range n {
			hashes[i] = pageHash(data[i*PageSize : (i+1)*PageSize])
		}
		d.mu.Lock()
		for i, h := range hashes[:n] {
			d.set(addr+uint64(i)*PageSize, h)
		}
		d.mu.Unlock()
		addr, data = addr+uint64(n)*PageSize, data[n*PageSize:]
	}
}

// Remove forgets the pages of r: they are as in a fresh mapping, or unmapped.
func (d *Digest) Remove(r Range) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.eachKnown(r, func(addr, _ uint64) { d.set(addr, hashAbsent) })
}

// distrust makes every known page one of unknown content, so that it differs from whatever is read.
func (d *Digest) distrust() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.eachKnown(Range{0, 1 << 63}, func(addr, _ uint64) { d.set(addr, hashStale) })
}

// known returns the runs of pages of r that are known: that are not as in a fresh mapping.
func (d *Digest) known(r Range) []Range {
	var out []Range
	d.mu.Lock()
	defer d.mu.Unlock()
	d.eachKnown(r, func(addr, _ uint64) { out = appendPage(out, addr) })
	return out
}

// appendPage adds a page to ascending ranges.
func appendPage(out []Range, addr uint64) []Range {
	if n := len(out); n > 0 && out[n-1].End == addr {
		out[n-1].End += PageSize
		return out
	}
	return append(out, Range{addr, addr + PageSize})
}

// eachKnown calls fn for every known page of r, in ascending order of addresses. The lock must be held.
func (d *Digest) eachKnown(r Range, fn func(addr, hash uint64)) {
	for _, key := range d.keys(r) {
		c := d.chunks[key]
		base := key * chunkSize
		for i := range c.hash {
			addr := base + uint64(i)*PageSize
			if c.hash[i] != hashAbsent && addr >= r.Start && addr < r.End {
				fn(addr, c.hash[i])
			}
		}
	}
}

// keys returns the chunks of r that have a known page, in ascending order. It walks the smaller of the range and the
// table, so that a reservation of terabytes costs nothing. The lock must be held.
func (d *Digest) keys(r Range) []uint64 {
	var out []uint64
	first, last := r.Start/chunkSize, (r.End+chunkSize-1)/chunkSize
	if last-first <= uint64(len(d.chunks)) {
		for k := first; k < last; k++ {
			if d.chunks[k] != nil {
				out = append(out, k)
			}
		}
		return out
	}
	for k := range d.chunks {
		if k >= first && k < last {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}
