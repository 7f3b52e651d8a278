package mem

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// An ObjectWriter puts pages into one object at the destination. WritePages and ZeroPages may be called in parallel for
// different pages.
type ObjectWriter struct {
	file *os.File
	have *Digest
	size uint64
	huge uint64 // size of a page of hugetlbfs, which takes no write(2); 0 for other files
	// foreign says that others than the tree use the object: its content is theirs, too, and stays.
	foreign bool
}

// NewObjectWriter takes an object of the given size, open for writing; the file stays the caller's.
func NewObjectWriter(file *os.File, shmid uint32, size uint64) *ObjectWriter {
	return &ObjectWriter{file: file, have: NewDigest(ObjectSpace(shmid)), size: size}
}

// Resize tells that the object has another size now.
func (w *ObjectWriter) Resize(size uint64) {
	if size < w.size {
		w.have.Remove(Range{pageUp(size), 1 << 62})
	}
	w.size = size
}

// Sum is the hash over all pages that were received.
func (w *ObjectWriter) Sum() Sum { return w.have.Sum() }

// WritePages puts pages at an offset. ErrOutside: the object is shorter.
func (w *ObjectWriter) WritePages(off uint64, data []byte) error {
	if err := w.check(off, uint64(len(data))); err != nil {
		return err
	}
	if err := w.put(off, data[:min(uint64(len(data)), w.size-off)]); err != nil {
		return fmt.Errorf("%s at %d: %w", w.file.Name(), off, err)
	}
	w.have.Write(off, data)
	return nil
}

func (w *ObjectWriter) put(off uint64, data []byte) error {
	if w.foreign {
		return nil
	}
	if w.huge == 0 {
		_, err := w.file.WriteAt(data, int64(off))
		return err
	}
	for len(data) > 0 {
		page := off &^ (w.huge - 1)
		n := min(uint64(len(data)), page+w.huge-off)
		m, err := unix.Mmap(int(w.file.Fd()), int64(page), int(w.huge), unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("mapping a huge page: %w", err)
		}
		copy(m[off-page:], data[:n])
		if err := unix.Munmap(m); err != nil {
			return err
		}
		off, data = off+n, data[n:]
	}
	return nil
}

// ZeroPages makes pages read as zero, and frees them.
func (w *ObjectWriter) ZeroPages(off uint64, n uint32) error {
	size := uint64(n) * PageSize
	if err := w.check(off, size); err != nil {
		return err
	}
	for _, r := range w.have.known(Range{off, off + size}) { // all else was never written
		if err := w.free(r); err != nil {
			return fmt.Errorf("%s at %d: punching a hole of %d bytes: %w", w.file.Name(), r.Start, r.Size(), err)
		}
	}
	w.have.Remove(Range{off, off + size})
	return nil
}

func (w *ObjectWriter) free(r Range) error {
	if w.huge == 0 && !w.foreign {
		const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		err := unix.Fallocate(int(w.file.Fd()), mode, int64(r.Start), int64(r.Size()))
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	for at := r.Start; at < min(r.End, w.size); at += BatchBytes {
		if err := w.put(at, zeroes[:min(BatchBytes, r.End-at, w.size-at)]); err != nil {
			return err
		}
	}
	return nil
}

func (w *ObjectWriter) check(off, n uint64) error {
	end := pageUp(w.size)
	if off%PageSize != 0 || n%PageSize != 0 || cmp.Compare(off, end) > 0 || n > end-off {
		return fmt.Errorf("%d bytes at %d of %s of %d bytes: %w", n, off, w.file.Name(), w.size, ErrOutside)
	}
	return nil
}
