//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/mem"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// followSpace makes the mappings of a process those of the layout. Memory that stays mapped to the same thing keeps
// its content, which the source has sent already; all else is mapped anew and empty.
func (s *Skeleton) followSpace(ctx context.Context, p *process, space *images.Space, files map[uint32]*fdinfo.FileEntry) error {
	target := space.MM.GetVmas()
	p.target = target
	if err := p.makeRoom(ctx, target); err != nil {
		return err
	}
	var old []*vma.VmaEntry
	if p.space != nil {
		old = p.space.MM.GetVmas()
	} else {
		var err error
		if old, err = p.begin(ctx, target); err != nil {
			return err
		}
	}
	ops := mem.Diff(old, target)
	for _, chunk := range mem.Batches(ops, maxOps) {
		if err := s.apply(ctx, p, chunk, files); err != nil {
			return err
		}
	}
	if p.writer == nil {
		w, err := mem.NewWriter(p.PID, space.PID)
		if err != nil {
			return err
		}
		p.writer = w
		if p.from != nil {
			w.Inherit(p.from.writer, old)
		}
		if err := w.Accelerate(ctx, p.trap); err != nil {
			return err
		}
	}
	p.writer.Follow(target)
	p.space = space
	return nil
}

// maxOps bounds the operations of one batch, so that it fits into the stub's scratch memory.
const maxOps = 500

// makeRoom moves the stub away if the layout needs its place.
func (p *process) makeRoom(ctx context.Context, target []*vma.VmaEntry) error {
	at, size := p.trap.Region()
	stub := extent{uint64(at), uint64(at) + size}
	if !slices.ContainsFunc(target, func(v *vma.VmaEntry) bool {
		return v.GetStart() < stub.end+holeMargin && v.GetEnd()+holeMargin > stub.start
	}) {
		return nil
	}
	taken, err := p.mapped()
	if err != nil {
		return err
	}
	hole, err := findHole(size, taken, spansOf(target))
	if err != nil {
		return fmt.Errorf("room for the stub: %w", err)
	}
	return p.trap.Relocate(ctx, hole)
}

func spansOf(vmas []*vma.VmaEntry) []extent {
	out := make([]extent, 0, len(vmas))
	for _, v := range vmas {
		out = append(out, extent{v.GetStart(), v.GetEnd()})
	}
	return out
}

// mapped lists what is mapped in the skeleton now.
func (p *process) mapped() ([]extent, error) {
	maps, err := procfs.Host.Maps(p.PID)
	if err != nil {
		return nil, err
	}
	out := make([]extent, 0, len(maps))
	for _, m := range maps {
		out = append(out, extent{m.Start, m.End})
	}
	return out, nil
}

// clear unmaps everything that a new process has from its birth, but the stub and the vDSO, which moves to where the
// layout has it.
func (p *process) clear(ctx context.Context, target []*vma.VmaEntry) error {
	maps, err := procfs.Host.Maps(p.PID)
	if err != nil {
		return err
	}
	stub, _ := p.trap.Region()
	var b remote.Batch
	var special []procfs.Mapping
	for _, m := range maps {
		switch {
		case m.Start == uint64(stub) || m.End > uint64(stub) && m.Start < uint64(stub)+remote.RegionSize:
		case m.Path == "[vsyscall]":
		case isSpecial(m.Path):
			special = append(special, m)
		default:
			b.Call(unix.SYS_MUNMAP, m.Start, m.Size())
		}
	}
	if err := p.trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("clearing the address space: %w", err)
	}
	return p.moveVDSO(ctx, special, target)
}

// isSpecial tells the mappings that belong to the vDSO: [vdso], [vvar], [vvar_vclock].
func isSpecial(path string) bool {
	return path == "[vdso]" || strings.HasPrefix(path, "[vvar")
}

// moveVDSO moves the vDSO and its data to the addresses that the program knows. The distances between its parts are
// compiled into its code, so the parts must be the same here as at the source.
func (p *process) moveVDSO(ctx context.Context, here []procfs.Mapping, target []*vma.VmaEntry) error {
	var there []*vma.VmaEntry
	for _, v := range target {
		if v.GetStatus()&(images.VMAVDSO|images.VMAVvar) != 0 {
			there = append(there, v)
		}
	}
	if len(there) == 0 { // a program that has unmapped it
		var b remote.Batch
		for _, m := range here {
			b.Call(unix.SYS_MUNMAP, m.Start, m.Size())
		}
		return p.trap.Run(ctx, &b)
	}
	if err := sameShape(here, there); err != nil {
		return err
	}
	if here[0].Start == there[0].GetStart() {
		return nil
	}
	first, last := here[0].Start, here[len(here)-1].End
	if to := there[0].GetStart(); to < last && to+last-first > first {
		// The new place overlaps the old one: go by way of a hole.
		taken := append(spansOf(target), extent{first, last})
		at, _ := p.trap.Region()
		hole, err := findHole(last-first, taken, []extent{{uint64(at), uint64(at) + remote.RegionSize}})
		if err != nil {
			return fmt.Errorf("room for the vDSO: %w", err)
		}
		if err := p.mremapAll(ctx, here, uint64(hole)); err != nil {
			return err
		}
		for i := range here {
			here[i].Start, here[i].End = here[i].Start-first+uint64(hole), here[i].End-first+uint64(hole)
		}
	}
	return p.mremapAll(ctx, here, there[0].GetStart())
}

// mremapAll moves adjacent mappings so that the first begins at to; the vDSO's code goes last, since the kernel looks for
// it where it was mapped when it delivers a signal.
func (p *process) mremapAll(ctx context.Context, maps []procfs.Mapping, to uint64) error {
	var b remote.Batch
	for _, m := range maps {
		b.Call(unix.SYS_MREMAP, m.Start, m.Size(), m.Size(), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, m.Start-maps[0].Start+to)
	}
	if err := p.trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("moving the vDSO from 0x%x to 0x%x: %w", maps[0].Start, to, err)
	}
	return nil
}

// sameShape compares the parts of the vDSO here with those at the source.
func sameShape(here []procfs.Mapping, there []*vma.VmaEntry) error {
	same := len(here) == len(there)
	for i := range min(len(here), len(there)) {
		same = same && here[i].Size() == there[i].GetEnd()-there[i].GetStart() &&
			here[i].Start-here[0].Start == there[i].GetStart()-there[0].GetStart()
	}
	if !same {
		return fmt.Errorf("the vDSO of this kernel has %d parts, of another size or order than the %d of the source's: both hosts need the same kernel", len(here), len(there))
	}
	return nil
}

// apply makes the calls of some changes.
func (s *Skeleton) apply(ctx context.Context, p *process, changes []mem.Change, files map[uint32]*fdinfo.FileEntry) error {
	var b remote.Batch
	results := make([]*remote.Result, len(changes))
	lent := sharedFD
	open := func(b *remote.Batch, v *vma.VmaEntry) (any, error) {
		lent++
		return s.openMapped(ctx, p, b, v, files, lent)
	}
	for i, c := range changes {
		var err error
		if c.Kind == mem.Map && mem.IsAIORing(c.VMA) {
			continue
		}
		if mem.IsAttachment(c) {
			results[i], err = s.attach(p, &b, c)
		} else {
			results[i], err = mem.AddChange(&b, c, open)
		}
		if err != nil {
			return err
		}
	}
	err := p.trap.Run(ctx, &b)
	for _, c := range changes {
		if err == nil && c.Kind == mem.Map && mem.IsAIORing(c.VMA) {
			err = p.mapRing(ctx, c)
		}
	}
	if err == nil {
		return nil
	}
	for i, r := range results {
		if r == nil || r.Err() == nil {
			continue
		}
		if errors.Is(r.Err(), remote.ErrNotRun) {
			return changes[i].Explain(err) // a call that prepares it has failed
		}
		return changes[i].Explain(r.Err())
	}
	return err
}

// openMapped makes the process hold a descriptor of what a mapping maps, at the number lent if it is an object.
func (s *Skeleton) openMapped(ctx context.Context, p *process, b *remote.Batch, v *vma.VmaEntry, files map[uint32]*fdinfo.FileEntry, lent int) (any, error) {
	if v.GetStatus()&images.VMAAnonShared != 0 {
		return lent, s.lendObject(ctx, p, v, uint32(v.GetShmid()), lent)
	}
	if id := s.nameless[uint32(v.GetShmid())]; id != 0 {
		return lent, s.lendObject(ctx, p, v, id, lent)
	}
	if d, ok := s.distant[uint32(v.GetShmid())]; ok {
		return lent, s.lendDistant(ctx, p, v, d, lent)
	}
	f := files[uint32(v.GetShmid())]
	if f.GetReg() == nil {
		return nil, fmt.Errorf("file %d is no regular file of the layout", v.GetShmid())
	}
	return mem.OpenPath(b, v, f.GetReg().GetName()), nil
}
