package mem

import (
	"context"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/remote"
)

// A process that is born of one that has its memory already has that memory, too, without a copy of its own (fork(2)). What its
// own pages are equal to is left as it is, so that both go on sharing it, as parent and child did at the source; what it
// has no page of is given back.

// Inherited splits what a process has mapped into what a child has of it after a fork, with its content, and what is to be
// unmapped there, because its content is not the parent's or its pages are no ordinary ones.
func Inherited(parent []*vma.VmaEntry) (kept, unmap []*vma.VmaEntry) {
	for _, v := range parent {
		switch {
		case v.GetMadv()&(1<<adviceDontFork) != 0:
		case v.GetMadv()&(1<<adviceWipeOnFork) != 0, v.GetFlags()&mapDroppable != 0, isHuge(v):
			unmap = append(unmap, v)
		default:
			kept = append(kept, v)
		}
	}
	return kept, unmap
}

// SameVDSO tells whether two address spaces have the kernel's own mappings at the same places.
func SameVDSO(a, b []*vma.VmaEntry) bool {
	own := func(l []*vma.VmaEntry) (out []Range) {
		for _, v := range l {
			if kernelOwned(v) {
				out = append(out, rangeOf(v))
			}
		}
		return out
	}
	x, y := own(a), own(b)
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return false
		}
	}
	return true
}

// Inherit says that the process was born of the one that parent has filled, and that it has kept these mappings of it. It
// comes before the first Follow. Until Disinherit, pages that are as the parent's are left alone.
func (w *Writer) Inherit(parent *Writer, kept []*vma.VmaEntry) {
	w.vmas, w.base = kept, NewDigest(w.space)
	parent.have.mu.Lock()
	defer parent.have.mu.Unlock()
	for _, v := range kept {
		if !Carried(v) {
			continue
		}
		parent.have.eachKnown(rangeOf(v), func(addr, hash uint64) {
			w.have.set(addr, hash)
			w.base.set(addr, hash)
		})
	}
}

// writeInherited puts pages of which some may be the parent's.
func (w *Writer) writeInherited(addr uint64, data []byte) error {
	w.base.Remove(Range{addr, addr + uint64(len(data))})
	flush := func(from, to int) error {
		if from == to {
			return nil
		}
		if err := w.put(addr+uint64(from), data[from:to]); err != nil {
			return err
		}
		w.have.Write(addr+uint64(from), data[from:to])
		return nil
	}
	from := 0
	for at := 0; at < len(data); at += PageSize {
		hash := pageHash(data[at : at+PageSize])
		w.have.mu.Lock()
		same := w.have.at(addr+uint64(at)) == hash
		w.have.mu.Unlock()
		if !same {
			continue
		}
		if err := flush(from, at); err != nil {
			return err
		}
		from = at + PageSize
	}
	return flush(from, len(data))
}

// Disinherit gives back the pages of the parent that the process has not, when all of its own have come.
func (w *Writer) Disinherit(ctx context.Context, c remote.Caller) error {
	if w.base == nil {
		return nil
	}
	var b remote.Batch
	for _, r := range w.base.known(Range{0, 1 << 63}) {
		b.Call(unix.SYS_MADVISE, r.Start, r.Size(), unix.MADV_DONTNEED)
		w.have.Remove(r)
		if b.Len() < maxMarks {
			continue
		}
		if err := c.Run(ctx, &b); err != nil {
			return fmt.Errorf("giving back pages of the parent: %w", err)
		}
		b = remote.Batch{}
	}
	w.base = nil
	if err := c.Run(ctx, &b); err != nil {
		return fmt.Errorf("giving back pages of the parent: %w", err)
	}
	return nil
}
