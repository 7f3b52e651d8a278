package restore

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine/images"
)

type opKind uint8

const (
	opUnmap opKind = iota + 1
	opMap
	opProtect
)

// vmaOp changes the mappings in [start, end). For opMap and opProtect, vma is the mapping that will be there.
type vmaOp struct {
	kind       opKind
	start, end uint64
	vma        *vma.VmaEntry
}

func (o vmaOp) String() string {
	return fmt.Sprintf("%s 0x%x-0x%x", [...]string{"", "unmapping", "mapping", "protecting"}[o.kind], o.start, o.end)
}

// diffVMAs returns what turns the mappings old into the mappings target, both sorted and without overlaps. Where both
// map the same thing the memory is kept, with its protection changed if need be; the vDSO and its like are left out.
func diffVMAs(old, target []*vma.VmaEntry) []vmaOp {
	var unmap, make []vmaOp
	i := 0
	for _, t := range target {
		if special(t) {
			continue
		}
		at := t.GetStart()
		for ; i < len(old) && old[i].GetEnd() <= at; i++ {
		}
		for k := i; k < len(old) && old[k].GetStart() < t.GetEnd(); k++ {
			o := old[k]
			if special(o) || !sameBacking(o, t) {
				continue
			}
			start, end := max(o.GetStart(), t.GetStart()), min(o.GetEnd(), t.GetEnd())
			if at < start {
				make = append(make, vmaOp{opMap, at, start, t})
			}
			if o.GetProt() != t.GetProt() {
				make = append(make, vmaOp{opProtect, start, end, t})
			}
			at = end
		}
		if at < t.GetEnd() {
			make = append(make, vmaOp{opMap, at, t.GetEnd(), t})
		}
	}
	i = 0
	for _, o := range old {
		for i < len(target) && target[i].GetEnd() <= o.GetStart() {
			i++
		}
		if !special(o) {
			unmap = append(unmap, uncovered(o, target[i:])...)
		}
	}
	return append(unmap, make...)
}

// uncovered returns the parts of o that no target mapping covers; target begins with the first one that may. A part that is
// covered by another thing is mapped over.
func uncovered(o *vma.VmaEntry, target []*vma.VmaEntry) []vmaOp {
	var out []vmaOp
	at := o.GetStart()
	for _, t := range target {
		if t.GetStart() >= o.GetEnd() {
			break
		}
		if special(t) {
			continue
		}
		if t.GetStart() > at {
			out = append(out, vmaOp{opUnmap, at, t.GetStart(), nil})
		}
		at = max(at, t.GetEnd())
	}
	if at < o.GetEnd() {
		out = append(out, vmaOp{opUnmap, at, o.GetEnd(), nil})
	}
	return out
}

func special(v *vma.VmaEntry) bool { return v.GetStatus()&kernelMappings != 0 }

const kernelMappings = images.VMAVDSO | images.VMAVvar | images.VMAVsyscall

// kinds are the bits of a mapping's status that say what stands behind it.
const kinds = images.VMAFilePrivate | images.VMAFileShared | images.VMAAnonShared | images.VMAAnonPrivate | images.VMASysvIPC | images.VMAMemfd

// sameBacking tells whether two mappings, where they overlap, are of the same memory or the same place of the same file.
func sameBacking(a, b *vma.VmaEntry) bool {
	if a.GetStatus()&kinds != b.GetStatus()&kinds || a.GetFlags() != b.GetFlags() || a.GetMadv() != b.GetMadv() {
		return false
	}
	if a.GetStatus()&images.VMAAnonPrivate != 0 {
		return true
	}
	return a.GetShmid() == b.GetShmid() && a.GetPgoff()-a.GetStart() == b.GetPgoff()-b.GetStart()
}
