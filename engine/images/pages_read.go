package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

// A PageSink takes pages, as the skeleton of a restored tree does.
type PageSink interface {
	WritePages(space uint32, addr uint64, data []byte) error
	ZeroPages(space uint32, addr uint64, n uint32) error
}

// readBatch is the number of pages that a PageReader hands over at once.
const readBatch = 64

// ReadPages reads the pages of one address space from a checkpoint directory and hands them to sink in ascending
// order of address. The data given to WritePages is valid only during the call. It reports how many pages there
// were. A space without a pagemap gives an error that matches os.ErrNotExist.
func ReadPages(ctx context.Context, dir string, space uint32, sink PageSink) (pages uint64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("checkpoint directory: %w", err)
	}
	defer func() { _ = root.Close() }() // a directory handle: nothing is lost
	id, entries, err := readPagemap(root, space)
	if err != nil {
		return 0, err
	}
	f, err := root.Open(pagesName(id))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing is lost
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	var total uint64
	for _, e := range entries {
		total += e.GetNrPages()
	}
	if !st.Mode().IsRegular() || uint64(st.Size()) != total*PageSize {
		return 0, fmt.Errorf("%s: %d bytes, but %s lists %d pages", pagesName(id), st.Size(), pagemapName(space), total)
	}
	buf := make([]byte, readBatch*PageSize)
	for _, e := range entries {
		if err := readRun(ctx, f, e, space, buf, sink); err != nil {
			return 0, fmt.Errorf("%s: %w", pagesName(id), err)
		}
	}
	return total, nil
}

// readPagemap reads and checks pagemap-PID.img.
func readPagemap(root *os.Root, space uint32) (id uint32, entries []*pagemap.PagemapEntry, err error) {
	name := pagemapName(space)
	raw, err := readFile(root, name)
	if err != nil {
		return 0, nil, err
	}
	id, entries, err = parsePagemap(name, raw)
	return id, entries, err
}

func parsePagemap(name string, raw []byte) (id uint32, entries []*pagemap.PagemapEntry, err error) {
	data, err := takeMagic(name, "PAGEMAP", raw)
	if err != nil {
		return 0, nil, err
	}
	head := &pagemap.PagemapHead{}
	if data, err = takeEntry(name, 0, data, head); err != nil {
		return 0, nil, err
	}
	var end uint64
	for i := 1; len(data) > 0; i++ {
		e := &pagemap.PagemapEntry{}
		if data, err = takeEntry(name, i, data, e); err != nil {
			return 0, nil, err
		}
		if e.NrPages == nil { // written by CRIU before 4.1
			e.NrPages = proto.Uint64(uint64(e.GetCompatNrPages()))
		}
		switch a, n := e.GetVaddr(), e.GetNrPages(); {
		case e.GetInParent() || e.Flags != nil && e.GetFlags()&pePresent == 0:
			return 0, nil, fmt.Errorf("%s: entry %d (0x%x): flags: 0x%x: its pages are in another checkpoint, which is not read", name, i, a, e.GetFlags())
		case a%PageSize != 0 || a < end || a >= maxAddr || n == 0 || n > (maxAddr-a)/PageSize:
			return 0, nil, fmt.Errorf("%s: entry %d: vaddr: 0x%x and %d pages are no range after the one before", name, i, a, n)
		default:
			end = a + n*PageSize
		}
		entries = append(entries, e)
	}
	return head.GetPagesId(), entries, nil
}

func readRun(ctx context.Context, f *os.File, e *pagemap.PagemapEntry, space uint32, buf []byte, sink PageSink) error {
	addr, left := e.GetVaddr(), e.GetNrPages()
	for left > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(left, readBatch)*PageSize]
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		left -= uint64(len(b)) / PageSize
		for len(b) > 0 {
			n := zeroRun(b)
			var err error
			if n > 0 {
				err = sink.ZeroPages(space, addr, uint32(n/PageSize))
			} else {
				for n = PageSize; n < len(b) && zeroRun(b[n:n+PageSize]) == 0; n += PageSize {
				}
				err = sink.WritePages(space, addr, b[:n])
			}
			if err != nil {
				return err
			}
			b, addr = b[n:], addr+uint64(n)
		}
	}
	return nil
}

// HasPages tells whether the directory holds pages of the space.
func HasPages(dir string, space uint32) (bool, error) {
	_, err := os.Stat(dir + "/" + pagemapName(space))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
