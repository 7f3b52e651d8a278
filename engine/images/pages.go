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
// Its methods may be called by several goroutines at once, also for the same space; Close ends it.
type PageWriter struct {
	dir    string
	mu     sync.Mutex
	spaces map[uint32]*pageFile
}

// pageFile is the pages file of one space. Its pages stand in the order of their first arrival until finish.
type pageFile struct {
	mu     sync.Mutex
	f      *os.File
	id     uint32
	next   uint32                         // pages in the file
	chunks map[uint64]*[chunkPages]uint32 // by address / chunkSize: place of the page in the file + 1
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
	p := &pageFile{f: f, id: id, chunks: map[uint64]*[chunkPages]uint32{}}
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
	p.mu.Lock()
	defer p.mu.Unlock()
	if uint64(p.next)+n >= 1<<32 {
		return fmt.Errorf("%s: more than 2^32 pages", pagesName(p.id))
	}
	// Pages that stand next to each other in the file are written by one call.
	for i := uint64(0); i < n; {
		at, fresh := p.place(addr + i*PageSize)
		k := uint64(1)
		for ; i+k < n; k++ {
			a, f := p.place(addr + (i+k)*PageSize)
			if a != at+uint32(k) || f != fresh {
				break
			}
		}
		if err := p.write(at, k, fresh, data, i); err != nil {
			return fmt.Errorf("%s: %w", pagesName(p.id), err)
		}
		i += k
	}
	return nil
}

// place finds the place of a page in the file, and gives it one if it has none.
func (p *pageFile) place(addr uint64) (at uint32, fresh bool) {
	c := p.chunks[addr/chunkSize]
	if c == nil {
		c = new([chunkPages]uint32)
		p.chunks[addr/chunkSize] = c
	}
	slot := &c[addr%chunkSize/PageSize]
	if *slot == 0 {
		p.next++
		*slot = p.next
		return p.next - 1, true
	}
	return *slot - 1, false
}

// write puts k pages at the place given: those of data from page i on, or zeroes. What was never written is a hole.
func (p *pageFile) write(at uint32, k uint64, fresh bool, data []byte, i uint64) error {
	off := int64(at) * PageSize
	if data != nil {
		_, err := p.f.WriteAt(data[i*PageSize:(i+k)*PageSize], off)
		return err
	}
	if fresh {
		return nil
	}
	var zero [PageSize]byte
	for n := range int64(k) {
		if _, err := p.f.WriteAt(zero[:], off+n*PageSize); err != nil {
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
	for space, p := range w.spaces {
		if err := p.finish(w.dir, space); err != nil {
			errs = append(errs, fmt.Errorf("pages of space %d: %w", space, err))
		}
	}
	w.spaces = nil
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
		for i, slot := range p.chunks[k] {
			if slot == 0 {
				continue
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
	inOrder := slices.IsSortedFunc(runs, func(a, b placedRun) int { return int(int64(a.at) - int64(b.at)) })
	if !inOrder {
		if err := p.sort(dir, runs); err != nil {
			return err
		}
	}
	if err := p.f.Truncate(int64(p.next) * PageSize); err != nil {
		return err
	}
	if err := p.f.Sync(); err != nil {
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
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}
