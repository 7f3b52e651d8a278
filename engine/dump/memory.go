//go:build linux

package dump

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
	"migrate/engine/span"
	"migrate/engine/task"
)

// memory is the memory of the tree: an address space for each process, and the objects that they share.
type memory struct {
	source  *Source
	files   *fileTable
	objects *mem.Objects
	spaces  map[int]*space // by process id on this host
	cuts    mem.PolicyCuts // of the stopped tree, once they are known
}

// space is the address space of one process.
type space struct {
	pid    int
	stack  uint64 // where its first stack begins: execve(2) draws it anew, also where others keep the old memory
	reader *mem.LayoutReader
	source *mem.Source
	vmas   []*vma.VmaEntry // as last described
	names  []*imagespb.VmaName
	marks  []*imagespb.VmaMark
	caller *borrower
}

func newMemory(s *Source) *memory {
	return &memory{source: s, files: newFileTable(), objects: mem.NewObjects(), spaces: map[int]*space{}}
}

// check names the mappings that are not carried.
func (m *memory) check(ctx context.Context) ([]engine.Obstacle, error) {
	var all []engine.Obstacle
	if err := m.look(); err != nil {
		return nil, err
	}
	for _, p := range m.source.procs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		reader := mem.NewLayoutReader(p.PID, m.objects)
		reader.Look(m.files.views)
		layout, err := reader.Read(true)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, layout.Obstacles...)
	}
	outside, err := m.objects.Outside(ctx, func(pid int) bool {
		return m.source.has(pid) || m.source.fs.Descends(pid, m.source.has)
	})
	if err != nil {
		return nil, err
	}
	inShm, err := m.objects.AddShm()
	return slices.Concat(all, outside, inShm), err
}

// OwnShm tells whether the /dev/shm of the tree is its own, so that what is in it moves with it.
func (s *Source) OwnShm() bool { return s.memory.objects.HasShm() }

// look finds the mount namespaces of the tree.
func (m *memory) look() error {
	views, err := ns.MountViews(m.source.fs, m.source.procs)
	m.files.views = nil
	for _, p := range views {
		m.files.views = append(m.files.views, mem.View{PID: p.PID, VPID: uint32(p.VPID)})
	}
	return err
}

// has tells whether a process is of the tree as it was listed last, or the pid 1 above it. The descendants of such a process
// are of the tree, also those that were born since.
func (s *Source) has(pid int) bool {
	return pid == s.target.Init || slices.ContainsFunc(s.procs, func(p *engine.Process) bool { return p.PID == pid })
}

// Track begins to watch what the tree writes. Each process is borrowed for a moment.
func (s *Source) Track(ctx context.Context) error {
	task.Learn()
	return s.memory.follow(ctx)
}

// follow makes the spaces those of the processes that there are now.
func (m *memory) follow(ctx context.Context) error {
	here := map[int]bool{}
	for _, p := range m.source.procs {
		here[p.PID] = true
		if p.Second(p.Shared.VM) { // its memory is that of another
			here[p.PID] = false
			continue
		}
		if isZombie(m.source.fs, p.PID) {
			continue
		}
		if sp := m.spaces[p.PID]; sp != nil {
			if err := m.same(sp); err != nil {
				return err
			}
			continue
		}
		sp, err := m.open(ctx, p)
		if ended(err) {
			continue // the next listing will not have it
		}
		if err != nil {
			return fmt.Errorf("pid %d: %w", p.PID, err)
		}
		m.spaces[p.PID] = sp
	}
	var errs []error
	for pid, sp := range m.spaces {
		sp.source.Relate(len(here) > 1)
		if !here[pid] {
			errs = append(errs, sp.source.Close())
			delete(m.spaces, pid)
		}
	}
	return errors.Join(errs...)
}

// ErrReplaced means that a process has executed another program since its memory was copied first. What was copied belongs to
// memory that is gone.
var ErrReplaced = errors.New("it has executed another program (execve(2)) while it was being copied: move it again")

// same refuses a process whose memory is not that of its space any more.
func (m *memory) same(sp *space) error {
	replaced, err := sp.source.Replaced()
	if err != nil {
		return fmt.Errorf("pid %d: %w", sp.pid, err)
	}
	st, err := m.source.fs.Stat(sp.pid)
	if errors.Is(err, procfs.ErrGone) || err == nil && st.VSize == 0 {
		return nil // it is ending, and the next listing will not have it
	}
	if err != nil {
		return err
	}
	if replaced || st.StartStack != sp.stack {
		return fmt.Errorf("pid %d (%s): %w", sp.pid, st.Comm, ErrReplaced)
	}
	return nil
}

// open starts reading, and tracking if it is asked for, of one process.
func (m *memory) open(ctx context.Context, p *engine.Process) (_ *space, err error) {
	sp := &space{pid: p.PID, reader: mem.NewLayoutReader(p.PID, m.objects), caller: &borrower{tracer: m.source.tracer, pid: p.PID, tid: p.PID}}
	st, err := m.source.fs.Stat(p.PID)
	if err != nil {
		return nil, err
	}
	sp.stack = st.StartStack
	if sp.source, err = mem.NewSource(p.PID, uint32(p.VPID), m.tracker(sp)); err != nil {
		return nil, err
	}
	err = sp.source.Start(ctx)
	if err = errors.Join(err, sp.caller.giveBack()); err != nil {
		return nil, errors.Join(err, sp.source.Close())
	}
	return sp, nil
}

// tracker is how the writes of a space are found: a stopped program makes none.
func (m *memory) tracker(sp *space) mem.Tracker {
	if m.source.frozen != nil {
		return mem.NewHashes(sp.pid)
	}
	return mem.NewTracker(sp.caller, func(ctx context.Context, fn func() error) error {
		if m.source.frozen != nil {
			return fn()
		}
		var stops []ptrace.Stop
		var err error
		for _, pid := range m.sharers(sp.pid) {
			more, serr := m.source.tracer.SeizeAll(ctx, pid, 0)
			stops = append(stops, more...)
			err = errors.Join(err, serr)
		}
		if err == nil {
			err = fn()
		}
		tids := make([]int, 0, len(stops))
		for _, st := range stops {
			tids = append(tids, st.TID)
		}
		return errors.Join(err, m.source.tracer.DetachAll(context.WithoutCancel(ctx), tids...)) // also when the time is up
	})
}

// sharers lists the processes that have the memory of one, itself first.
func (m *memory) sharers(pid int) []int {
	all := []int{pid}
	for _, p := range m.source.procs {
		for _, q := range m.source.procs {
			if p.PID == pid && q != p && p.Shared.VM != 0 && q.Shared.VM == p.Shared.VM {
				all = append(all, q.PID)
			}
		}
	}
	return all
}

// ended tells whether an error says that a process ended.
func ended(err error) bool {
	return errors.Is(err, procfs.ErrGone) || errors.Is(err, ptrace.ErrGone) || errors.Is(err, remote.ErrGone) || errors.Is(err, unix.ESRCH)
}

// maxListings bounds how often a running tree is listed anew because one of its processes ended meanwhile.
const maxListings = 100

// Layout describes the processes and their mappings as they are now: what the destination needs before the pages of the
// next round.
func (s *Source) Layout(ctx context.Context) (*images.Layout, error) {
	var l *images.Layout
	var err error
	for range maxListings {
		l, err = s.layout(ctx)
		if err == nil || s.frozen != nil || !ended(err) {
			return l, err
		}
	}
	return nil, fmt.Errorf("the processes of the tree end faster than they can be described: %w", err)
}

func (s *Source) layout(ctx context.Context) (*images.Layout, error) {
	if s.frozen == nil {
		if err := s.list(); err != nil {
			return nil, err
		}
		if err := s.leaveOutYoung(); err != nil {
			return nil, err
		}
	}
	if err := s.memory.follow(ctx); err != nil {
		return nil, err
	}
	if err := s.memory.look(); err != nil {
		return nil, err
	}
	s.memory.objects.Begin()
	err := span.Do(ctx, "names", func(ctx context.Context) error { return s.files.Nameless(ctx, s.procs, s.frozen != nil) })
	if err != nil {
		return nil, err
	}
	if err := s.memory.objects.AddSegments(); err != nil {
		return nil, err
	}
	if found, err := s.memory.objects.AddShm(); err != nil || len(found) > 0 {
		return nil, cmp.Or(err, error(&ObstacleError{found}))
	}
	in, end := span.Begin(ctx, "header")
	header, err := s.header(in)
	end()
	if err != nil {
		return nil, err
	}
	header.Namespaces = s.spaces.outline.header
	l := &images.Layout{Header: header, Tree: s.entries(), Namespaces: s.spaces.outline.images}
	for _, p := range s.procs {
		sp := s.memory.spaces[p.PID]
		if p.Second(p.Shared.VM) || isZombie(s.fs, p.PID) {
			l.Spaces = append(l.Spaces, &images.Space{PID: uint32(p.VPID)})
			continue
		}
		if sp == nil {
			return nil, fmt.Errorf("pid %d ended while its mappings were read: %w", p.PID, procfs.ErrGone)
		}
		if err := span.Do(ctx, "mappings", func(context.Context) error { return s.memory.describe(sp, s.frozen == nil) }); err != nil {
			return nil, err
		}
		exe, err := s.memory.files.addLink(s.fs, s.memory.objects, fmt.Sprintf("%d/exe", p.PID))
		if err != nil {
			return nil, fmt.Errorf("pid %d: its program: %w", p.PID, err)
		}
		l.Spaces = append(l.Spaces, &images.Space{PID: uint32(p.VPID), MM: spaceRecord(sp.vmas, exe)})
	}
	l.Files, l.Header.Files = s.memory.files.entries, slices.Clone(s.memory.files.extras)
	l.Header.Objects, err = s.memory.objects.Records(s.frozen != nil)
	return l, err
}

// spaceRecord is what a layout tells of an address space: its mappings and its program. The rest is part of the state.
func spaceRecord(vmas []*vma.VmaEntry, exe uint32) *mm.MmEntry {
	zero := proto.Uint64(0)
	return &mm.MmEntry{
		MmStartCode: zero, MmEndCode: zero, MmStartData: zero, MmEndData: zero, MmStartStack: zero, MmStartBrk: zero, MmBrk: zero,
		MmArgStart: zero, MmArgEnd: zero, MmEnvStart: zero, MmEnvEnd: zero, ExeFileId: proto.Uint32(exe), Vmas: vmas,
	}
}

// describe reads the mappings of a space; marks says that the slow way may be gone, which tells the marks of mappings.
func (m *memory) describe(sp *space, marks bool) error {
	sp.reader.Look(m.files.views)
	layout, err := sp.reader.Read(marks)
	if err != nil {
		return err
	}
	if len(layout.Obstacles) > 0 {
		return &ObstacleError{layout.Obstacles}
	}
	vmas, err := layout.Entries(m.files.addMapped)
	if err != nil {
		return fmt.Errorf("pid %d: %w", sp.pid, err)
	}
	sp.vmas, sp.names, sp.marks = vmas, nil, layout.LateMarks()
	for _, n := range layout.Names() {
		sp.names = append(sp.names, &imagespb.VmaName{Start: n.Start, End: n.End, Name: n.Name})
	}
	sp.source.Follow(vmas)
	return nil
}

// record puts what was last described of the mappings of a stopped process into its image.
func (sp *space) record(img *images.Process) error {
	img.MM.Vmas, img.Extra.VmaNames, img.Extra.VmaMarks = sp.vmas, sp.names, sp.marks
	guards, err := sp.source.Guards()
	for _, g := range guards {
		img.Extra.Guards = append(img.Extra.Guards, &imagespb.AddressRange{Start: g.Start, End: g.End})
	}
	return err
}

// policyCuts says where shared memory of the stopped tree may change its policy.
func (m *memory) policyCuts() mem.PolicyCuts {
	if m.cuts == nil {
		m.cuts = mem.PolicyCuts{}
		for _, sp := range m.spaces {
			m.cuts.Add(sp.vmas)
		}
		m.cuts.Sort()
	}
	return m.cuts
}

// Round sends what was written since the round before, or all there is, for the layout that was described last. In a
// stopped tree nothing may be left over.
func (s *Source) Round(ctx context.Context, sink mem.Sink) (mem.RoundStats, error) {
	var total mem.RoundStats
	for _, p := range s.procs {
		sp := s.memory.spaces[p.PID]
		if sp == nil || isZombie(s.fs, p.PID) {
			continue
		}
		round := sp.source.Round
		if s.frozen != nil {
			round = sp.source.Final
		}
		stats, err := round(ctx, sink)
		err = errors.Join(err, sp.caller.giveBack())
		if s.frozen == nil && ended(err) {
			continue // the next layout will not have it
		}
		if err != nil {
			return total, fmt.Errorf("pid %d: %w", p.PID, err)
		}
		total.Add(stats)
	}
	stats, err := s.memory.objects.Round(ctx, sink)
	total.Add(stats)
	return total, err
}

// Digest is the hash over all memory that was sent.
func (s *Source) Digest() mem.Sum {
	sum := s.memory.objects.Sum()
	for _, sp := range s.memory.spaces {
		sum = sum.Add(sp.source.Sum())
	}
	return sum
}

func (m *memory) close(context.Context) error {
	errs := []error{m.objects.Close()}
	for pid, sp := range m.spaces {
		errs = append(errs, sp.source.Close())
		delete(m.spaces, pid)
	}
	return errors.Join(errs...)
}

// pageDir makes a directory's writer of pages a Sink.
type pageDir struct {
	*images.PageWriter
	buffers *sync.Pool // of *[]byte with a capacity of mem.BatchBytes
}

func newPageDir(w *images.PageWriter) pageDir {
	return pageDir{w, &sync.Pool{New: func() any { b := make([]byte, 0, mem.BatchBytes); return &b }}}
}

// Buffer implements mem.Sink.
func (d pageDir) Buffer() []byte { return *d.buffers.Get().(*[]byte) }

// Send implements mem.Sink.
func (d pageDir) Send(ctx context.Context, space uint32, runs []mem.Run, data []byte) error {
	out := make([]images.Run, 0, len(runs))
	for _, r := range runs {
		out = append(out, images.Run(r))
	}
	err := d.PageWriter.Send(ctx, space, out, data)
	if data = data[:0]; cap(data) == mem.BatchBytes {
		d.buffers.Put(&data)
	}
	return err
}

// Expect implements mem.Expecter.
func (d pageDir) Expect(space uint32, ranges []mem.Range) error {
	const most = 1 << 30
	var out []images.Run
	for _, r := range ranges {
		for at := r.Start; at < r.End; at += most * mem.PageSize {
			out = append(out, images.Run{Addr: at, Pages: uint32(min(r.End-at, most*mem.PageSize) / mem.PageSize)})
		}
	}
	return d.PageWriter.Expect(space, out)
}
