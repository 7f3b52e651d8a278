//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/remote"
)

// heritage lets children share the memory of their parents, when all pages of a tree are at hand before it is built: a process
// has its memory before its first child is born. It is nil for a tree whose pages come while its source runs.
type heritage struct {
	layout *images.Layout
	files  map[uint32]*fdinfo.FileEntry
	// fill puts all pages of a process into it.
	fill func(ctx context.Context, s *Skeleton, pid uint32) error
}

// newHeritage returns a heritage for a tree that can have one. A segment of System V shared memory has to be made by the
// process that made it at the source, and the root of namespaces of its own enters them after its birth; such trees go without.
func newHeritage(layout *images.Layout, fill func(ctx context.Context, s *Skeleton, pid uint32) error) *heritage {
	sysv := slices.ContainsFunc(layout.Header.GetObjects(), func(o *imagespb.Object) bool { return o.GetKind() == imagespb.Object_SYSV })
	if sysv || layout.Namespaces != nil || len(layout.Tree) < 2 {
		return nil
	}
	h := &heritage{layout: layout, files: map[uint32]*fdinfo.FileEntry{}, fill: fill}
	for _, f := range layout.Files {
		h.files[f.GetId()] = f
	}
	return h
}

// ripen gives a process its memory, before it bears a child. It may be none of the tree.
func (s *Skeleton) ripen(ctx context.Context, p *process) error {
	h := s.env.heritage
	if h == nil || p == nil || p.space != nil || p.Second(p.Shared.VM) {
		return nil
	}
	i := slices.IndexFunc(h.layout.Spaces, func(sp *images.Space) bool { return int(sp.PID) == p.VPID })
	if i < 0 || h.layout.Spaces[i].MM == nil {
		return nil
	}
	if len(s.order) == 0 {
		s.order = append(s.order, p.VPID) // the first one makes the objects
	}
	if err := s.followObjects(ctx, h.layout.Header); err != nil {
		return err
	}
	s.findNameless(h.layout.Header, h.layout.Files)
	if err := s.followSpace(ctx, p, h.layout.Spaces[i], h.files); err != nil {
		return fmt.Errorf("process %d: %w", p.VPID, err)
	}
	return h.fill(ctx, s, uint32(p.VPID))
}

// begin prepares the address space of a new process: it is that of its parent, or empty. It returns what is mapped.
func (p *process) begin(ctx context.Context, target []*vma.VmaEntry) ([]*vma.VmaEntry, error) {
	if p.from == nil || !mem.SameVDSO(p.from.space.MM.GetVmas(), target) {
		p.from = nil
		return nil, p.clear(ctx, target)
	}
	kept, unmap := mem.Inherited(p.from.space.MM.GetVmas())
	var b remote.Batch
	for _, v := range unmap {
		b.Call(unix.SYS_MUNMAP, v.GetStart(), v.GetEnd()-v.GetStart())
	}
	if err := p.trap.Run(ctx, &b); err != nil {
		return nil, fmt.Errorf("what a child does not inherit: %w", err)
	}
	return kept, nil
}

// fillSpace puts the pages of a process from a checkpoint into it, once.
func (s *Skeleton) fillSpace(ctx context.Context, dir string, pid uint32) error {
	p := s.procs[int(pid)]
	if p == nil || p.filled || p.writer == nil { // without one, its memory is that of another process
		return nil
	}
	if _, err := images.ReadPages(ctx, dir, pid, diskPages{s}); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.filled = true
	return p.writer.Disinherit(ctx, p.trap)
}

// diskPages takes the pages of a checkpoint on disk. They are read while Follow builds the tree, which holds the lock that
// keeps a page stream out; there is no stream, and nobody else writes.
type diskPages struct{ s *Skeleton }

func (d diskPages) WritePages(space uint32, addr uint64, data []byte) error {
	w, err := d.s.writer(space)
	if err != nil {
		return err
	}
	return w.WritePages(addr, data)
}

func (d diskPages) ZeroPages(space uint32, addr uint64, n uint32) error {
	w, err := d.s.writer(space)
	if err != nil {
		return err
	}
	return w.ZeroPages(addr, n)
}
