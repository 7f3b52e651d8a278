package images

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

// The contents of memory stand in two files for each address space, as in CRIU. pagemap-PID.img has a head, which
// names the second file, and then an entry for each run of pages, in ascending order of address. pages-N.img has
// the pages of all runs one after another, raw. A page of zeroes is a hole of the file, so it costs no disk; a
// page that no run covers was never written and reads as the kernel gives it.

// pePresent is PE_PRESENT (CRIU, criu/include/pagemap.h): the page's content is in the pages file.
const pePresent = 1 << 2

// A Run is a number of pages that follow each other.
type Run struct {
	Addr  uint64 // multiple of PageSize
	Pages uint32
	Zero  bool // all zero; no data
}

const (
	chunkPages = 512 // one page table
	chunkSize  = chunkPages * PageSize
)

// A PageWriter writes pages into a checkpoint directory. A page that comes again replaces what was written of it.
// Its methods may be called by several goroutines at once, also for the same space, but not for the same page; Close ends
// it.
type PageWriter struct {
	dir    string
	mu     sync.Mutex
	spaces map[uint32]*pageFile
}

// pageFile is the pages file of one space. Its pages stand in the order in which they were expected or first arrived, until
// finish.
type pageFile struct {
	mu     sync.Mutex
	f      *os.File
	id     uint32
	next   uint32            // pages in the file
	chunks map[uint64]*chunk // by address / chunkSize
	// The chunk that was used last: pages come in long runs.
	last   *chunk
	lastAt uint64
}

// chunk is the places of the pages of one page table in the file.
type chunk struct {
	place   [chunkPages]uint32 // + 1; 0 for none
	written [chunkPages]bool
}

// NewPageWriter starts writing pages into dir, an existing directory.
func NewPageWriter(dir string) *PageWriter {
	return &PageWriter{dir: dir, spaces: map[uint32]*pageFile{}}
}

func pagesName(id uint32) string    { return fmt.Sprintf("pages-%d.img", id) }
func pagemapName(pid uint32) string { return fmt.Sprintf("pagemap-%d.img", pid) }

func (w *PageWriter) space(space uint32) (*pageFile, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.spaces[space]; p != nil {
		return p, nil
	}
	id := uint32(len(w.spaces) + 1)
	f, err := os.OpenFile(w.dir+"/"+pagesName(id), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	p := &pageFile{f: f, id: id, chunks: map[uint64]*chunk{}}
	w.spaces[space] = p
	return p, nil
}

// Send takes the pages of a round: data holds the pages of the runs that are not zero, in order.
func (w *PageWriter) Send(ctx context.Context, space uint32, runs []Run, data []byte) error {
	for _, r := range runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.Zero {
			if err := w.ZeroPages(space, r.Addr, r.Pages); err != nil {
				return err
			}
			continue
		}
		n := uint64(r.Pages) * PageSize
		if n > uint64(len(data)) {
			return fmt.Errorf("pages of space %d: run at 0x%x: %d pages, %d bytes of data are left", space, r.Addr, r.Pages, len(data))
		}
		if err := w.WritePages(space, r.Addr, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	if len(data) != 0 {
		return fmt.Errorf("pages of space %d: %d bytes of data belong to no run", space, len(data))
	}
	return nil
}

// WritePages writes whole pages that begin at addr.
func (w *PageWriter) WritePages(space uint32, addr uint64, data []byte) error {
	if len(data)%PageSize != 0 {
		return fmt.Errorf("pages of space %d: 0x%x: %d bytes are no number of pages", space, addr, len(data))
	}
	return w.put(space, addr, uint64(len(data)/PageSize), data)
}

// ZeroPages records that n pages from addr on are zero.
func (w *PageWriter) ZeroPages(space uint32, addr uint64, n uint32) error {
	return w.put(space, addr, uint64(n), nil)
}

func (w *PageWriter) put(space uint32, addr, n uint64, data []byte) error {
	if addr%PageSize != 0 || addr >= maxAddr || n > (maxAddr-addr)/PageSize {
		return fmt.Errorf("pages of space %d: 0x%x and %d pages are no range of an address space", space, addr, n)
	}
	p, err := w.space(space)
	if err != nil {
		return err
	}
	pieces, err := p.places(addr, n)
	if err != nil {
		return err
	}
	for _, x := range pieces {
		if err := p.write(x, data); err != nil {
			return fmt.Errorf("%s: %w", pagesName(p.id), err)
		}
	}
	return nil
}

// piece is pages that stand next to each other in the file, and were all or not at all written before.
type piece struct {
	at    uint32 // in the file
	from  uint64 // in the data, in pages
	pages uint64
	fresh bool
}

// places finds the places of n pages that are to be written now.
func (p *pageFile) places(addr, n uint64) ([]piece, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if uint64(p.next)+n >= 1<<32 {
		return nil, fmt.Errorf("%s: more than 2^32 pages", pagesName(p.id))
	}
	var out []piece
	for i := range n {
		at, fresh := p.place(addr + i*PageSize)
		if k := len(out); k > 0 {
			if last := &out[k-1]; uint64(at) == uint64(last.at)+last.pages && fresh == last.fresh {
				last.pages++
				continue
			}
		}
		out = append(out, piece{at, i, 1, fresh})
	}
	return out, nil
}

// Expect gives pages their places in the file, in the order of the ranges, before they come: pages that come in another
// order, as those that several workers read do, need not be sorted afterwards. A page that was expected need not come.
func (w *PageWriter) Expect(space uint32, ranges []Run) error {
	p, err := w.space(space)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range ranges {
		if r.Addr%PageSize != 0 || r.Addr >= maxAddr || uint64(r.Pages) > (maxAddr-r.Addr)/PageSize || uint64(p.next)+uint64(r.Pages) >= 1<<32 {
			return fmt.Errorf("pages of space %d: 0x%x and %d pages cannot be expected", space, r.Addr, r.Pages)
		}
		for i := range uint64(r.Pages) {
			c, at := p.chunk(r.Addr + i*PageSize)
			p.placeIn(c, at)
		}
	}
	return nil
}

// chunk returns where the place of a page is kept.
func (p *pageFile) chunk(addr uint64) (*chunk, int) {
	key := addr / chunkSize
	if p.last == nil || p.lastAt != key {
		c := p.chunks[key]
		if c == nil {
			c = &chunk{}
			p.chunks[key] = c
		}
		p.last, p.lastAt = c, key
	}
	return p.last, int(addr % chunkSize / PageSize)
}

func (p *pageFile) placeIn(c *chunk, i int) uint32 {
	if c.place[i] == 0 {
		p.next++
		c.place[i] = p.next
	}
	return c.place[i] - 1
}

// place finds the place of a page that is to be written now, and gives it one if it has none. It is fresh if nothing was
// written there before.
func (p *pageFile) place(addr uint64) (at uint32, fresh bool) {
	c, i := p.chunk(addr)
	fresh = !c.written[i]
	c.written[i] = true
	return p.placeIn(c, i), fresh
}

// write puts a piece of data, or zeroes, into the file. What was never written is a hole.
func (p *pageFile) write(x piece, data []byte) error {
	off := int64(x.at) * PageSize
	if data != nil {
		_, err := p.f.WriteAt(data[x.from*PageSize:(x.from+x.pages)*PageSize], off)
		return err
	}
	if x.fresh {
		return nil
	}
	for n := range int64(x.pages) {
		if _, err := p.f.WriteAt(zeroPage[:], off+n*PageSize); err != nil {
			return err
		}
	}
	return nil
}

// Close brings the pages into order, writes the pagemaps, and flushes all to disk.
func (w *PageWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	var names []string
	for space, p := range w.spaces {
		if err := p.finish(w.dir, space); err != nil {
			errs = append(errs, fmt.Errorf("pages of space %d: %w", space, err))
		}
		names = append(names, pagesName(p.id), pagemapName(space))
	}
	w.spaces = nil
	if errors.Join(errs...) == nil {
		errs = append(errs, syncFiles(w.dir, names))
	}
	return errors.Join(append(errs, syncDir(w.dir))...)
}

// placedRun is a run of pages together with where it stands in the pages file.
type placedRun struct {
	addr, pages uint64
	at          uint32
}

// runs lists what the file holds, in ascending order of address.
func (p *pageFile) runs() []placedRun {
	keys := make([]uint64, 0, len(p.chunks))
	for k := range p.chunks {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var out []placedRun
	for _, k := range keys {
		c := p.chunks[k]
		for i, slot := range c.place {
			if !c.written[i] {
				continue // expected, but never sent
			}
			addr := k*chunkSize + uint64(i)*PageSize
			if n := len(out); n > 0 {
				last := &out[n-1]
				if last.addr+last.pages*PageSize == addr && uint64(last.at)+last.pages == uint64(slot-1) {
					last.pages++
					continue
				}
			}
			out = append(out, placedRun{addr, 1, slot - 1})
		}
	}
	return out
}

func (p *pageFile) finish(dir string, space uint32) (err error) {
	defer func() { err = errors.Join(err, p.f.Close()) }()
	runs := p.runs()
	pages := uint64(0)
	inOrder := true // and without gaps
	for _, r := range runs {
		inOrder = inOrder && uint64(r.at) == pages
		pages += r.pages
	}
	if !inOrder {
		if err := p.sort(dir, runs); err != nil {
			return err
		}
	}
	if err := p.f.Truncate(int64(pages) * PageSize); err != nil {
		return err
	}
	return writePagemap(dir, space, p.id, runs)
}

// sort rewrites the pages file in the order of the runs.
func (p *pageFile) sort(dir string, runs []placedRun) error {
	name := dir + "/" + pagesName(p.id)
	out, err := os.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	buf := make([]byte, 64*PageSize)
	var off int64
	for _, r := range runs {
		from, size := int64(r.at)*PageSize, int64(r.pages)*PageSize
		for done := int64(0); done < size; {
			b := buf[:min(int64(len(buf)), size-done)]
			// The file may end in a hole that was never written: what cannot be read there is zero.
			n, err := p.f.ReadAt(b, from+done)
			if err != nil && !errors.Is(err, io.EOF) {
				return errors.Join(err, out.Close())
			}
			clear(b[n:])
			if err := writeSparse(out, b, off+done); err != nil {
				return errors.Join(err, out.Close())
			}
			done += int64(len(b))
		}
		off += size
	}
	if err := errors.Join(p.f.Close(), os.Rename(name+".new", name)); err != nil {
		return errors.Join(err, out.Close())
	}
	p.f = out
	return nil
}

// writeSparse writes whole pages, leaving out those that are zero.
func writeSparse(f *os.File, b []byte, off int64) error {
	for len(b) > 0 {
		n := zeroRun(b)
		if n == 0 {
			for n = PageSize; n < len(b) && zeroRun(b[n:n+PageSize]) == 0; n += PageSize {
			}
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

var zeroPage [PageSize]byte

// zeroRun returns the number of bytes of zero pages at the beginning of b.
func zeroRun(b []byte) int {
	n := 0
	for n < len(b) && bytes.Equal(b[n:n+PageSize], zeroPage[:]) {
		n += PageSize
	}
	return n
}

func writePagemap(dir string, space, id uint32, runs []placedRun) (err error) {
	f, err := os.OpenFile(dir+"/"+pagemapName(space), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	head, err := build(pagemapName(space), "PAGEMAP", &pagemap.PagemapHead{PagesId: proto.Uint32(id)})
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<16)
	if _, err := w.Write(head.data); err != nil {
		return err
	}
	var b []byte
	for _, r := range runs {
		for left := r.pages; left > 0; {
			n := min(left, 1<<31)
			e := &pagemap.PagemapEntry{
				Vaddr: proto.Uint64(r.addr + (r.pages-left)*PageSize), CompatNrPages: proto.Uint32(uint32(n)),
				NrPages: proto.Uint64(n), Flags: proto.Uint32(pePresent),
			}
			if b, err = (proto.MarshalOptions{}).MarshalAppend(append(b[:0], 0, 0, 0, 0), e); err != nil {
				return err
			}
			binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
			if _, err := w.Write(b); err != nil {
				return err
			}
			left -= n
		}
	}
	return w.Flush()
}
