package mem

import (
	"context"

	"golang.org/x/sys/unix"
)

// reader reads batches of pages and sends them. Each worker has its own.
type reader struct {
	source *Source
	sink   Sink
	failed []Range

	iovecs []unix.RemoteIovec
	skipper
	chooser
}

// chooser drops pages from a batch that are as they were sent before.
type chooser struct {
	sent   *Digest
	stats  RoundStats
	hashes [batchPages]uint64
	addrs  [batchPages]uint64
}

// send reads the pages of a batch and sends those that differ from what was sent before.
func (r *reader) send(ctx context.Context, batch []Range) error {
	batch, err := r.left(batch)
	if err != nil || len(batch) == 0 {
		return err
	}
	buf := r.sink.Buffer()[:BatchBytes]
	pages, err := r.read(buf, batch)
	if err != nil {
		return err
	}
	for i := range pages {
		r.hashes[i] = pageHash(buf[i*PageSize:][:PageSize])
	}
	runs, kept := r.choose(buf[:pages*PageSize], pages, r.source.isFile)
	return r.sink.Send(ctx, r.source.space, runs, buf[:kept*PageSize])
}

// read fills buf with the pages of the batch and notes their addresses. Pages that cannot be read are left out and noted
// as failed.
func (r *reader) read(buf []byte, batch []Range) (pages int, err error) {
	parts := []forked{{batch, false}}
	if r.source.related {
		if parts, err = r.source.view.split(batch); err != nil {
			return 0, err
		}
	}
	for _, p := range parts {
		read := r.gather
		if p.shared {
			read = r.force
		}
		if pages, err = read(buf, pages, p.ranges); err != nil {
			return 0, err
		}
	}
	return pages, nil
}

// gather reads ranges behind the pages that buf holds, and returns how many it holds then.
func (r *reader) gather(buf []byte, pages int, ranges []Range) (int, error) {
	r.iovecs = r.iovecs[:0]
	total := pages
	for _, b := range ranges {
		r.iovecs = append(r.iovecs, unix.RemoteIovec{Base: uintptr(b.Start), Len: int(b.Size())})
		for addr := b.Start; addr < b.End; addr += PageSize {
			r.addrs[total] = addr
			total++
		}
	}
	n, err := r.source.view.gather(buf[pages*PageSize:total*PageSize], r.iovecs)
	if err != nil {
		return 0, err
	}
	pages += n / PageSize
	for i := pages; i < total; i++ { // from the first page on that the program itself may not read
		if pages, err = r.forceOne(buf, pages, r.addrs[i]); err != nil {
			return 0, err
		}
	}
	return pages, nil
}

// force is gather by the way that minds no protection.
func (r *reader) force(buf []byte, pages int, ranges []Range) (_ int, err error) {
	for _, b := range ranges {
		for at := b.Start; at < b.End; at += PageSize {
			if pages, err = r.forceOne(buf, pages, at); err != nil {
				return 0, err
			}
		}
	}
	return pages, nil
}

func (r *reader) forceOne(buf []byte, pages int, addr uint64) (int, error) {
	ok, err := r.source.view.readForced(addr, buf[pages*PageSize:(pages+1)*PageSize])
	if err != nil {
		return 0, err
	}
	if !ok {
		r.failed = appendPage(r.failed, addr)
		r.stats.Retry++
		return pages, nil
	}
	r.addrs[pages] = addr
	return pages + 1, nil
}

// choose compares the pages read with what was sent before, notes their hashes, moves those to be sent to the front of
// buf, and returns the runs to be sent and how many pages they hold. isFile tells pages that are not zero when fresh.
func (r *chooser) choose(buf []byte, pages int, isFile func(addr uint64) bool) (runs []Run, kept int) {
	d := r.sent
	var send [batchPages]bool
	d.mu.Lock()
	for i := range pages {
		addr, hash := r.addrs[i], r.hashes[i]
		before := d.at(addr)
		switch {
		case before == hash, before == hashAbsent && hash == hashZero && !isFile(addr):
			r.stats.Unchanged++
		default:
			send[i] = true
			d.set(addr, hash)
		}
	}
	d.mu.Unlock()
	for i := range pages {
		if !send[i] {
			continue
		}
		zero := r.hashes[i] == hashZero
		runs = appendRun(runs, r.addrs[i], zero)
		if zero {
			r.stats.ZeroPages++
			continue
		}
		if kept != i {
			copy(buf[kept*PageSize:(kept+1)*PageSize], buf[i*PageSize:(i+1)*PageSize])
		}
		kept++
	}
	r.stats.Pages += uint64(kept)
	r.stats.Bytes += uint64(kept) * PageSize
	return runs, kept
}

// appendRun adds a page to runs.
func appendRun(runs []Run, addr uint64, zero bool) []Run {
	if n := len(runs); n > 0 {
		if last := &runs[n-1]; last.Zero == zero && last.Addr+uint64(last.Pages)*PageSize == addr {
			last.Pages++
			return runs
		}
	}
	return append(runs, Run{addr, 1, zero})
}
