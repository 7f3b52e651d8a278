package pagexfer

import "sync"

// A buffer holds one batch with room before its data for the header and the runs, so that a frame is written
// with one call and its pages are never copied.
//
//	mem: | ... free ... | header | runs | data ... |
//	     0                              headroom   headroom+BatchBytes
type buffer struct{ mem []byte }

func (b *buffer) data() []byte { return b.mem[headroom:headroom:cap(b.mem)] }

// A pool lends buffers to callers as plain slices and recognises them by their first byte when they come back.
type pool struct {
	mu   sync.Mutex
	free []*buffer
	lent map[*byte]*buffer
}

// maxFree bounds the buffers that are kept for reuse.
const maxFree = 64

func (p *pool) take() *buffer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	return &buffer{mem: make([]byte, headroom+BatchBytes)}
}

func (p *pool) give(b *buffer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < maxFree {
		p.free = append(p.free, b)
	}
}

// lend returns an empty slice with capacity BatchBytes.
func (p *pool) lend() []byte {
	b := p.take()
	d := b.data()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lent == nil {
		p.lent = map[*byte]*buffer{}
	}
	p.lent[&d[:1][0]] = b
	return d
}

// reclaim returns the buffer that data lies in, or a new one with a copy when data was not lent by this pool.
func (p *pool) reclaim(data []byte) *buffer {
	if cap(data) > 0 {
		p.mu.Lock()
		key := &data[:1][0]
		b := p.lent[key]
		delete(p.lent, key)
		p.mu.Unlock()
		if b != nil {
			return b
		}
	}
	b := p.take()
	copy(b.mem[headroom:], data)
	return b
}
