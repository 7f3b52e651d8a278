package mem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/remote"
)

// ErrOutside means that pages were sent for memory that is not mapped, or does not take pages.
var ErrOutside = errors.New("pages for memory that is not part of the process")

// A Writer puts pages into the private memory of one stopped process.
type Writer struct {
	view  view
	space uint32
	have  *Digest
	vmas  []*vma.VmaEntry
	fill  *filler // nil unless Accelerate was called
	base  *Digest // pages of the parent that have not been replaced; nil unless Inherit was called
}

// NewWriter opens the memory of a process that receives the pages of space. It stays that of the program that the
// process runs now.
func NewWriter(pid int, space uint32) (*Writer, error) {
	v, err := openView(pid)
	if err != nil {
		return nil, err
	}
	return &Writer{view: v, space: space, have: NewDigest(space)}, nil
}

// Accelerate makes the pages that follow go into fresh memory in a third to a half of the time. It is called before
// the first Follow; c runs calls in the process. From then on until Settle, which must come before the process itself
// or a call made in it touches its memory, memory that has received no page yet cannot be touched: that gives SIGBUS
// or EFAULT. Where the kernel has no userfaultfd or does not allow it, nothing changes.
func (w *Writer) Accelerate(ctx context.Context, c remote.Caller) (err error) {
	w.fill, err = newFiller(ctx, c)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// Settle ends what Accelerate began. It may be called again, and on any Writer.
func (w *Writer) Settle() error {
	if w.fill == nil {
		return nil
	}
	err := w.fill.Close()
	w.fill = nil
	return err
}

// Close lets go of the process. It may be called again.
func (w *Writer) Close() error { return errors.Join(w.Settle(), w.view.close()) }

// Sum is the hash over all pages that were received.
func (w *Writer) Sum() Sum { return w.have.Sum() }

// Follow tells that the mappings of the process are now these, made from the ones before by the steps of Diff. It must not
// run at the same time as any other method.
func (w *Writer) Follow(vmas []*vma.VmaEntry) {
	for _, c := range Diff(w.vmas, vmas) {
		if c.Forgets() {
			w.have.Remove(c.Range)
			if w.base != nil {
				w.base.Remove(c.Range)
			}
		}
		if c.Kind == Map && w.fill != nil && fillable(c.VMA) {
			w.fill.register(c.Range)
		}
	}
	w.vmas = vmas
}

// fillable tells memory into which pages are put one by one: not where the kernel would use huge pages.
func fillable(v *vma.VmaEntry) bool {
	huge := v.GetMadv()&(1<<adviceHugePage) != 0 || hugeByDefault() && v.GetMadv()&(1<<adviceNoHugePage) == 0
	return v.GetStatus()&images.VMAAnonPrivate != 0 && !kernelOwned(v) && !huge && !isHuge(v)
}

// hugeByDefault tells whether this kernel uses huge pages where a program does not ask for them.
var hugeByDefault = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	return err == nil && strings.Contains(string(b), "[always]")
})

// WritePages puts pages, whose content is data, at addr. ErrOutside: not all of it is private memory of the layout.
func (w *Writer) WritePages(addr uint64, data []byte) error {
	if len(data)%PageSize != 0 {
		return fmt.Errorf("space %d: %d bytes at 0x%x are no pages: %w", w.space, len(data), addr, ErrOutside)
	}
	return w.each(Range{addr, addr + uint64(len(data))}, func(r Range, _ *vma.VmaEntry) error {
		part := data[r.Start-addr : r.End-addr]
		if w.base != nil {
			return w.writeInherited(r.Start, part)
		}
		if err := w.put(r.Start, part); err != nil {
			return err
		}
		w.have.Write(r.Start, part)
		return nil
	})
}

// put puts pages at addr: into place where there are none yet, by writing where there are.
func (w *Writer) put(addr uint64, data []byte) error {
	if w.fill == nil {
		return w.view.write(addr, data)
	}
	whole := Range{addr, addr + uint64(len(data))}
	known := append(w.have.known(whole), Range{whole.End, whole.End})
	for _, k := range known {
		if err := w.putFresh(addr, data[addr-whole.Start:k.Start-whole.Start]); err != nil {
			return err
		}
		if err := w.view.write(k.Start, data[k.Start-whole.Start:k.End-whole.Start]); err != nil {
			return err
		}
		addr = k.End
	}
	return nil
}

// putFresh puts pages where none were received before. The place may still have some: a page that was zeroed.
func (w *Writer) putFresh(addr uint64, data []byte) error {
	for len(data) > 0 {
		n := w.fill.fill(addr, data)
		if n == 0 { // the data may go beyond the end of a mapping as the kernel has split it
			n = w.fill.fill(addr, data[:PageSize])
		}
		if n == 0 {
			n = PageSize
			if err := w.view.write(addr, data[:n]); err != nil {
				return err
			}
		}
		addr, data = addr+uint64(n), data[n:]
	}
	return nil
}

// zeroes is what is written over pages that become zero.
var zeroes [BatchBytes]byte

// ZeroPages makes n pages from addr on read as zero. Pages that were never written cost nothing.
func (w *Writer) ZeroPages(addr uint64, n uint32) error {
	return w.each(Range{addr, addr + uint64(n)*PageSize}, func(r Range, v *vma.VmaEntry) error {
		if w.base != nil {
			w.base.Remove(r)
		}
		if v.GetStatus()&images.VMAFilePrivate != 0 { // a page that was not written is the file's
			return w.clear([]Range{r}, true)
		}
		return w.clear(w.have.known(r), false)
	})
}

// clear writes zeros over ranges; mark says that the pages differ from a fresh mapping's all the same.
func (w *Writer) clear(ranges []Range, mark bool) error {
	for _, r := range ranges {
		for at := r.Start; at < r.End; at += BatchBytes {
			part := zeroes[:min(uint64(BatchBytes), r.End-at)]
			if err := w.view.write(at, part); err != nil {
				return err
			}
			if mark {
				w.have.Write(at, part)
			}
		}
		if !mark {
			w.have.Remove(r)
		}
	}
	return nil
}

// each splits a range at the borders of mappings and calls fn for the parts.
func (w *Writer) each(r Range, fn func(Range, *vma.VmaEntry) error) error {
	if r.Start%PageSize != 0 || r.End < r.Start {
		return fmt.Errorf("space %d: %v is no range of pages: %w", w.space, r, ErrOutside)
	}
	i, _ := slices.BinarySearchFunc(w.vmas, r.Start, func(v *vma.VmaEntry, at uint64) int {
		if v.GetEnd() <= at {
			return -1
		}
		return 1
	})
	for ; r.Start < r.End; i++ {
		if i == len(w.vmas) || w.vmas[i].GetStart() > r.Start || !Carried(w.vmas[i]) {
			return fmt.Errorf("space %d: %v: %w", w.space, r, ErrOutside)
		}
		end := min(r.End, w.vmas[i].GetEnd())
		if err := fn(Range{r.Start, end}, w.vmas[i]); err != nil {
			return err
		}
		r.Start = end
	}
	return nil
}
