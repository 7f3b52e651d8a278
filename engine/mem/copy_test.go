//go:build linux

package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// replica is a target and its copy.
type replica struct {
	*target
	source  *Source
	layouts *LayoutReader
	objects *Objects
	trap    *remote.Trap
	writer  *Writer
	vmas    []*vma.VmaEntry
	files   map[string]uint32
	paths   map[uint64]string
	shared  map[uint64]*ObjectWriter
	sharedF map[uint64]*os.File
}

// newReplica starts to track a target and makes a process for its copy.
func newReplica(p *target, newTracker func(remote.Caller) Tracker) *replica {
	p.Helper()
	trap := newSeed(p)
	r := &replica{
		target: p, objects: NewObjects(), trap: trap, files: map[string]uint32{}, paths: map[uint64]string{},
		shared: map[uint64]*ObjectWriter{}, sharedF: map[uint64]*os.File{},
	}
	r.layouts = NewLayoutReader(p.pid(), r.objects)
	p.borrow(func(c remote.Caller) (err error) {
		if r.source, err = NewSource(p.pid(), 7, newTracker(c)); err != nil {
			return err
		}
		r.source.Relate(true)
		return r.source.Start(testContext(p))
	})
	var err error
	if r.writer, err = NewWriter(trap.PID(), 7); err != nil {
		p.Fatal(err)
	}
	if err := r.writer.Accelerate(testContext(p), trap); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() {
		r.source.Close()
		r.writer.Close()
		r.objects.Close()
		for _, f := range r.sharedF {
			f.Close()
		}
	})
	return r
}

// Buffer and Send make the copy's side the sink.
func (r *replica) Buffer() []byte { return make([]byte, 0, BatchBytes) }

func (r *replica) Send(_ context.Context, space uint32, runs []Run, data []byte) error {
	for _, run := range runs {
		n := uint64(run.Pages) * PageSize
		write, zero := r.writer.WritePages, r.writer.ZeroPages
		if id, ok := IsObject(space); ok {
			write, zero = r.shared[uint64(id)].WritePages, r.shared[uint64(id)].ZeroPages
		}
		if run.Zero {
			if err := zero(run.Addr, run.Pages); err != nil {
				return err
			}
			continue
		}
		if err := write(run.Addr, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// follow makes the copy's mappings those of the target.
func (r *replica) follow(marks bool) {
	r.Helper()
	layout, err := r.layouts.Read(marks)
	if err != nil {
		r.Fatal(err)
	}
	vmas, err := layout.Entries(func(f *File) (uint32, error) {
		if r.files[f.Path] == 0 {
			r.files[f.Path] = uint32(len(r.files)) + 1
			r.paths[uint64(r.files[f.Path])] = f.Path
		}
		return r.files[f.Path], nil
	})
	if err != nil {
		r.Fatal(err)
	}
	for _, part := range Batches(Diff(r.vmas, vmas), 100) {
		var b remote.Batch
		for _, c := range part {
			if c.VMA != nil && kernelOwned(c.VMA) {
				continue
			}
			if _, err := AddChange(&b, c, r.open); err != nil {
				r.Fatal(err)
			}
		}
		if err := r.trap.Run(testContext(r), &b); err != nil {
			r.Fatalf("%v: %v", part, err)
		}
	}
	r.vmas = vmas
	r.source.Follow(vmas)
	r.writer.Follow(vmas)
}

func (r *replica) open(b *remote.Batch, v *vma.VmaEntry) (any, error) {
	if v.GetStatus()&images.VMAAnonShared == 0 {
		return OpenPath(b, v, r.paths[v.GetShmid()]), nil
	}
	id := v.GetShmid()
	if r.shared[id] == nil {
		records, err := r.objects.Records(false)
		if err != nil {
			return nil, err
		}
		size := records[slices.IndexFunc(records, func(o *imagespb.Object) bool { return uint64(o.Id) == id })].Size
		f, err := NewSharedMemory(testContext(r), r.trap, size, 0)
		if err != nil {
			return nil, err
		}
		r.sharedF[id] = f
		r.shared[id] = NewObjectWriter(f, uint32(id), size)
	}
	const fd = 700
	return fd, r.trap.Push(testContext(r), []remote.PushFile{{File: r.sharedF[id], FD: fd}})
}

// round copies once while the target may run.
func (r *replica) round() RoundStats {
	r.Helper()
	r.follow(true)
	return r.send(r.source.Round)
}

func (r *replica) send(round func(context.Context, Sink) (RoundStats, error)) RoundStats {
	r.Helper()
	stats, err := round(testContext(r), r)
	if err != nil {
		r.Fatal(err)
	}
	more, err := r.objects.Round(testContext(r), r)
	if err != nil {
		r.Fatal(err)
	}
	stats.Add(more)
	return stats
}

// final copies the stopped target and compares all of its memory with the copy's.
func (r *replica) final() (stats RoundStats) {
	r.Helper()
	r.stopped(func() {
		r.follow(false)
		stats = r.send(r.source.Final)
		if err := r.writer.Settle(); err != nil {
			r.Fatal(err)
		}
		r.compare()
	})
	if a, b := r.source.Sum(), r.writer.Sum(); a != b {
		r.Errorf("the source's hash is %v, the copy's %v", a, b)
	}
	return stats
}

func (r *replica) compare() {
	r.Helper()
	here, err := openView(r.pid())
	if err != nil {
		r.Fatal(err)
	}
	defer here.mem.Close()
	there, err := openView(r.trap.PID())
	if err != nil {
		r.Fatal(err)
	}
	defer there.mem.Close()
	bad := 0
	for _, v := range r.vmas {
		if v.GetStatus()&images.VMAAnonShared != 0 {
			if err := r.sameAs(v.GetStart(), v.GetEnd()-v.GetStart()); err != nil {
				r.Errorf("shared memory: %v", err)
			}
		}
		if !Carried(v) {
			continue
		}
		whole := Range{v.GetStart(), v.GetEnd()}
		for _, part := range merge(r.populated(r.pid(), whole), r.populated(r.trap.PID(), whole)) {
			a, b := make([]byte, part.Size()), make([]byte, part.Size())
			_, errA := here.mem.ReadAt(a, int64(part.Start))
			_, errB := there.mem.ReadAt(b, int64(part.Start))
			if (errA == nil) != (errB == nil) {
				r.Errorf("mapping %v: reading the original: %v; the copy: %v", part, errA, errB)
			}
			for i := 0; i < len(a) && bad < 10; i += PageSize {
				if !bytes.Equal(a[i:i+PageSize], b[i:i+PageSize]) {
					bad++
					r.Errorf("page 0x%x of mapping 0x%x-0x%x (status 0x%x, prot %d) differs: %x..., copy %x...", part.Start+uint64(i), v.GetStart(),
						v.GetEnd(), v.GetStatus(), v.GetProt(), a[i:i+16], b[i:i+16])
				}
			}
		}
	}
	maps, err := procfs.Host.Maps(r.trap.PID())
	if err != nil {
		r.Fatal(err)
	}
	for _, v := range r.vmas {
		if kernelOwned(v) {
			continue
		}
		at := v.GetStart()
		for _, m := range maps {
			if m.Start <= at && at < m.End && m.Prot == v.GetProt() {
				at = m.End
			}
		}
		if at < v.GetEnd() {
			r.Errorf("the copy lacks 0x%x of mapping 0x%x-0x%x", at, v.GetStart(), v.GetEnd())
		}
	}
}

// populated lists the pages of a range that a process has.
func (r *replica) populated(pid int, in Range) []Range {
	f, err := procfs.Host.Open(pid, "pagemap")
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close()
	extents, err := population(f, Area{Range: in}, nil)
	if err != nil {
		r.Fatal(err)
	}
	var out []Range
	for _, e := range extents {
		if e.State == Written {
			out = append(out, e.Range)
		}
	}
	return out
}

func TestCopyOfARunningProgram(t *testing.T) {
	p := startTarget(t)
	p.anon(arena, 8<<20)
	p.fill(arena, 4<<20, 1)
	r := newReplica(p, p.userfault)
	first := r.round()
	t.Logf("first round: %+v", first)
	p.stamp(arena+1<<20, 16*PageSize, 2)
	second := r.round()
	t.Logf("second round: %+v", second)
	if second.Pages < 16 || second.Pages > first.Pages/2 {
		t.Errorf("16 pages were written, %d sent", second.Pages)
	}
	p.stamp(arena, 4*PageSize, 3)
	t.Logf("final: %+v", r.final())
}

// sameAs compares a range of the original with the copy.
func (r *replica) sameAs(at, size uint64) error {
	a, b := make([]byte, size), make([]byte, size)
	for pid, buf := range map[int][]byte{r.pid(): a, r.trap.PID(): b} {
		v, err := openView(pid)
		if err != nil {
			return err
		}
		_, err = v.mem.ReadAt(buf, int64(at))
		if err := errors.Join(err, v.mem.Close()); err != nil {
			return err
		}
	}
	for i := uint64(0); i < size; i += PageSize {
		if !bytes.Equal(a[i:i+PageSize], b[i:i+PageSize]) {
			return fmt.Errorf("page 0x%x differs", at+i)
		}
	}
	return nil
}
