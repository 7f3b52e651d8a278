package mem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// Objects are the objects of shared anonymous memory that the processes of one tree have mapped. Each has a small
// number (shmid) and a space of its own (ObjectSpace), so that its content is carried once, however many processes
// map it. It is read by way of /proc/PID/map_files, which costs the processes nothing. No tracker sees all writes to
// it: in each round its pages are compared with what was sent.
type Objects struct {
	mu   sync.Mutex
	byID []*object
	ids  map[objectKey]uint32
}

type objectKey struct {
	major, minor uint32
	inode        uint64
}

type object struct {
	file *os.File
	sent *Digest
}

// NewObjects returns an empty set.
func NewObjects() *Objects { return &Objects{ids: map[objectKey]uint32{}} }

// add finds or opens the object behind a mapping. Its shmid is 1 or more.
func (o *Objects) add(pid int, m *procfs.Mapping) (uint32, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := objectKey{m.Major, m.Minor, m.Inode}
	if id := o.ids[key]; id != 0 {
		return id, nil
	}
	f, err := os.OpenFile(procfs.Host.Path(pid, "map_files", fmt.Sprintf("%x-%x", m.Start, m.End)), os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("opening shared memory: %w", err)
	}
	id := uint32(len(o.byID)) + 1
	o.byID = append(o.byID, &object{f, NewDigest(ObjectSpace(id))})
	o.ids[key] = id
	return id, nil
}

// Size is the length of an object in bytes; its mappings may be of a part of it.
func (o *Objects) Size(shmid uint32) (uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if shmid == 0 || int(shmid) > len(o.byID) {
		return 0, fmt.Errorf("shared memory %d is not known", shmid)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(o.byID[shmid-1].file.Fd()), &st); err != nil {
		return 0, fmt.Errorf("shared memory %d: %w", shmid, err)
	}
	return uint64(st.Size), nil
}

// Outside names the mappings of the objects by processes that are not in the tree: they would no longer share the memory.
// It reads the mappings of every process of this host that it may read, unless there are no objects.
func (o *Objects) Outside(ctx context.Context, inTree func(pid int) bool) ([]engine.Obstacle, error) {
	o.mu.Lock()
	ids := maps.Clone(o.ids)
	o.mu.Unlock()
	if len(ids) == 0 {
		return nil, nil
	}
	pids, err := procfs.Host.PIDs()
	if err != nil {
		return nil, err
	}
	var out []engine.Obstacle
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if inTree(pid) {
			continue
		}
		mapped, err := procfs.Host.Maps(pid)
		if err != nil && !errors.Is(err, procfs.ErrGone) && !errors.Is(err, os.ErrPermission) {
			return nil, err
		}
		for _, m := range mapped {
			if ids[objectKey{m.Major, m.Minor, m.Inode}] != 0 {
				out = append(out, engine.Obstacle{PID: pid, Kind: refuseOutside.Kind, Where: m.String(), Reason: refuseOutside.About,
					Remedy: "move that process with it, by naming a common ancestor, or end it"})
			}
		}
	}
	return out, nil
}

// Sum is the hash over all pages of all objects that were sent.
func (o *Objects) Sum() Sum {
	o.mu.Lock()
	defer o.mu.Unlock()
	var sum Sum
	for _, x := range o.byID {
		sum = sum.Add(x.sent.Sum())
	}
	return sum
}

// Round sends the pages of all objects that differ from what was sent before.
func (o *Objects) Round(ctx context.Context, sink Sink) (stats RoundStats, err error) {
	start := time.Now()
	o.mu.Lock()
	objects := slices.Clone(o.byID)
	o.mu.Unlock()
	for i, x := range objects {
		if err := x.round(ctx, ObjectSpace(uint32(i)+1), sink, &stats); err != nil {
			return stats, fmt.Errorf("shared memory %d: %w", i+1, err)
		}
	}
	stats.Duration = time.Since(start)
	return stats, nil
}

// round sends the populated pages of an object that changed, and zeros for those that are no longer populated.
func (x *object) round(ctx context.Context, space uint32, sink Sink, stats *RoundStats) error {
	populated, err := extentsOf(x.file)
	if err != nil {
		return err
	}
	stats.Ranges += uint64(len(populated))
	at := uint64(0)
	for _, r := range append(populated, Range{1 << 62, 1 << 62}) {
		for _, gone := range x.sent.known(Range{at, r.Start}) {
			x.sent.Remove(gone)
			stats.ZeroPages += gone.Pages()
			if err := sink.Send(ctx, space, []Run{{gone.Start, uint32(gone.Pages()), true}}, nil); err != nil {
				return err
			}
		}
		for a := r.Start; a < r.End; a += BatchBytes {
			if err := x.batch(ctx, space, Range{a, min(a+BatchBytes, r.End)}, sink, stats); err != nil {
				return err
			}
		}
		at = r.End
	}
	return nil
}

// batch sends the pages of r that changed.
func (x *object) batch(ctx context.Context, space uint32, r Range, sink Sink, stats *RoundStats) error {
	buf := sink.Buffer()[:r.Size()]
	n, err := x.file.ReadAt(buf, int64(r.Start))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(buf[n:])
	c := chooser{sent: x.sent}
	for i := range r.Pages() {
		c.addrs[i] = r.Start + i*PageSize
		c.hashes[i] = pageHash(buf[i*PageSize:][:PageSize])
	}
	runs, kept := c.choose(buf, int(r.Pages()), func(uint64) bool { return false })
	stats.Add(c.stats)
	return sink.Send(ctx, space, runs, buf[:kept*PageSize])
}

// extentsOf lists the populated ranges of a file in memory, widened to pages.
func extentsOf(f *os.File) ([]Range, error) {
	var out []Range
	for at := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("SEEK_DATA at %d: %w", at, err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("SEEK_HOLE at %d: %w", start, err)
		}
		out = append(out, Range{uint64(start) &^ (PageSize - 1), (uint64(end) + PageSize - 1) &^ (PageSize - 1)})
		at = end
	}
}

// Close lets go of the objects.
func (o *Objects) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, x := range o.byID {
		errs = append(errs, x.file.Close())
	}
	o.byID, o.ids = nil, map[objectKey]uint32{}
	return errors.Join(errs...)
}

// An ObjectWriter puts pages into one object of shared memory at the destination. Its methods may be called in parallel
// for different pages.
type ObjectWriter struct {
	file *os.File
	have *Digest
	size uint64
}

// NewObjectWriter takes an object of the given size, open for writing; the file stays the caller's.
func NewObjectWriter(file *os.File, shmid uint32, size uint64) *ObjectWriter {
	return &ObjectWriter{file, NewDigest(ObjectSpace(shmid)), size}
}

// Sum is the hash over all pages that were received.
func (w *ObjectWriter) Sum() Sum { return w.have.Sum() }

// WritePages puts pages at an offset. ErrOutside: the object is shorter.
func (w *ObjectWriter) WritePages(off uint64, data []byte) error {
	if err := w.check(off, uint64(len(data))); err != nil {
		return err
	}
	if _, err := w.file.WriteAt(data, int64(off)); err != nil {
		return fmt.Errorf("shared memory at %d: %w", off, err)
	}
	w.have.Write(off, data)
	return nil
}

// ZeroPages makes pages read as zero, and frees them.
func (w *ObjectWriter) ZeroPages(off uint64, n uint32) error {
	size := uint64(n) * PageSize
	if err := w.check(off, size); err != nil {
		return err
	}
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(w.file.Fd()), mode, int64(off), int64(size)); err != nil {
		return fmt.Errorf("shared memory at %d: punching a hole of %d bytes: %w", off, size, err)
	}
	w.have.Remove(Range{off, off + size})
	return nil
}

func (w *ObjectWriter) check(off, n uint64) error {
	end := (w.size + PageSize - 1) &^ (PageSize - 1)
	if off%PageSize != 0 || n%PageSize != 0 || cmp.Compare(off, end) > 0 || n > end-off {
		return fmt.Errorf("%d bytes at %d of shared memory of %d bytes: %w", n, off, w.size, ErrOutside)
	}
	return nil
}

// NewSharedMemory makes an object of shared anonymous memory at the destination. It is made as a mapping in a process that
// is being built, since that is the only way to one that is not called memfd, and reached through /proc/PID/map_files.
func NewSharedMemory(ctx context.Context, c remote.Caller, size uint64) (_ *os.File, err error) {
	var b remote.Batch
	at := b.Call(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, -1, 0)
	if err := c.Run(ctx, &b); err != nil {
		return nil, fmt.Errorf("shared memory of %d bytes: %w", size, err)
	}
	start, err := at.Value()
	if err != nil {
		return nil, err
	}
	defer func() {
		var b remote.Batch
		b.Call(unix.SYS_MUNMAP, start, size)
		err = errors.Join(err, c.Run(ctx, &b))
	}()
	end := (start + size + PageSize - 1) &^ (PageSize - 1)
	return os.OpenFile(procfs.Host.Path(c.PID(), "map_files", fmt.Sprintf("%x-%x", start, end)), os.O_RDWR, 0)
}
