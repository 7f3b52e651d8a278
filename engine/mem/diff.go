package mem

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine/images"
)

// ChangeKind is what happens to the mappings in a range.
type ChangeKind uint8

const (
	// Unmap removes what is there.
	Unmap ChangeKind = iota + 1
	// Map makes a new, empty mapping, over what may be there.
	Map
	// Protect changes the protection and keeps the content.
	Protect
	// Advise changes marks of madvise(2) and keeps the content.
	Advise
)

func (k ChangeKind) String() string {
	return [...]string{"nothing", "unmapping", "mapping", "protecting", "advising"}[k]
}

// A Change is one step from an address space to the next. VMA is the mapping that will be there; nil for Unmap. For
// Advise, Advice lists what to give to madvise(2), in order.
type Change struct {
	Kind ChangeKind
	Range
	VMA    *vma.VmaEntry
	Advice []int
}

func (c Change) String() string { return fmt.Sprintf("%v %v", c.Kind, c.Range) }

// Forgets tells whether the content of the range is lost by the change.
func (c Change) Forgets() bool { return c.Kind == Unmap || c.Kind == Map }

// Diff returns what turns the mappings old into the mappings target, both sorted and without overlaps: first what is
// unmapped, then the rest in ascending order. Where both map the same thing, the memory is kept. How the kernel
// happens to have split adjacent mappings does not matter. Mappings of the kernel's own (vDSO) are left out.
func Diff(old, target []*vma.VmaEntry) []Change {
	var unmap, rest []Change
	i := 0
	for _, t := range target {
		if kernelOwned(t) {
			continue
		}
		for i < len(old) && old[i].GetEnd() <= t.GetStart() {
			i++
		}
		rest = append(rest, diffOne(old[i:], t)...)
	}
	i = 0
	for _, o := range old {
		for i < len(target) && target[i].GetEnd() <= o.GetStart() {
			i++
		}
		if !kernelOwned(o) {
			unmap = append(unmap, uncovered(o, target[i:])...)
		}
	}
	return append(unmap, rest...)
}

// diffOne returns what makes the mapping t; old begins with the first mapping that may overlap it.
func diffOne(old []*vma.VmaEntry, t *vma.VmaEntry) []Change {
	var out []Change
	at := t.GetStart()
	for _, o := range old {
		if o.GetStart() >= t.GetEnd() {
			break
		}
		if kernelOwned(o) || !sameBacking(o, t) {
			continue
		}
		advice, ok := advise(o.GetMadv(), t.GetMadv())
		if !ok {
			continue
		}
		r := Range{max(o.GetStart(), t.GetStart()), min(o.GetEnd(), t.GetEnd())}
		if at < r.Start {
			out = append(out, Change{Map, Range{at, r.Start}, t, nil})
		}
		if o.GetProt() != t.GetProt() {
			out = append(out, Change{Protect, r, t, nil})
		}
		if len(advice) > 0 {
			out = append(out, Change{Advise, r, t, advice})
		}
		at = r.End
	}
	if at < t.GetEnd() {
		out = append(out, Change{Map, Range{at, t.GetEnd()}, t, nil})
	}
	return out
}

// uncovered returns the parts of o that no mapping of target covers; target begins with the first one that may.
func uncovered(o *vma.VmaEntry, target []*vma.VmaEntry) []Change {
	var out []Change
	at := o.GetStart()
	for _, t := range target {
		if t.GetStart() >= o.GetEnd() {
			break
		}
		if kernelOwned(t) {
			continue
		}
		if t.GetStart() > at {
			out = append(out, Change{Unmap, Range{at, t.GetStart()}, nil, nil})
		}
		at = max(at, t.GetEnd())
	}
	if at < o.GetEnd() {
		out = append(out, Change{Unmap, Range{at, o.GetEnd()}, nil, nil})
	}
	return out
}

func kernelOwned(v *vma.VmaEntry) bool {
	return v.GetStatus()&(images.VMAVDSO|images.VMAVvar|images.VMAVsyscall) != 0
}

// backing are the bits of a mapping's status that say what stands behind it.
const backing = images.VMAFilePrivate | images.VMAFileShared | images.VMAAnonShared | images.VMAAnonPrivate | images.VMASysvIPC | images.VMAMemfd | images.VMAAIORing | images.VMASocket

// sameBacking tells whether two mappings, where they overlap, are of the same memory or the same place of the same file.
func sameBacking(a, b *vma.VmaEntry) bool {
	// Memory is locked last, so a lock makes no difference before.
	if a.GetStatus()&backing != b.GetStatus()&backing || (a.GetFlags()^b.GetFlags())&^mapLocked != 0 {
		return false
	}
	if a.GetStatus()&images.VMAAnonPrivate != 0 {
		return true
	}
	return a.GetShmid() == b.GetShmid() && a.GetPgoff()-a.GetStart() == b.GetPgoff()-b.GetStart()
}

// Advice of madvise(2) that lasts (include/uapi/asm-generic/mman-common.h).
const (
	adviceNormal      = 0
	adviceRandom      = 1
	adviceSequential  = 2
	adviceDontFork    = 10
	adviceDoFork      = 11
	adviceMergeable   = 12
	adviceUnmergeable = 13
	adviceHugePage    = 14
	adviceNoHugePage  = 15
	adviceDontDump    = 16
	adviceDoDump      = 17
	adviceWipeOnFork  = 18
	adviceKeepOnFork  = 19
)

// undo is what takes an advice back. There is nothing that makes a mapping neutral about huge pages again.
var undo = map[int]int{
	adviceRandom: adviceNormal, adviceSequential: adviceNormal, adviceDontFork: adviceDoFork,
	adviceMergeable: adviceUnmergeable, adviceDontDump: adviceDoDump, adviceWipeOnFork: adviceKeepOnFork,
}

// advise returns the advice that turns the marks old into the marks target, in which bit n stands for advice n: first
// what is taken back, then what is new. ok is false when that is not possible.
func advise(old, target uint64) (advice []int, ok bool) {
	if old == target {
		return nil, true
	}
	const huge = 1<<adviceHugePage | 1<<adviceNoHugePage
	if old&huge != 0 && target&huge == 0 {
		return nil, false
	}
	for a := range 64 {
		if back, undoable := undo[a]; undoable && old&^target>>a&1 != 0 {
			advice = append(advice, back)
		}
	}
	for a := range 64 {
		if target&^old>>a&1 != 0 {
			advice = append(advice, a)
		}
	}
	return advice, true
}

// Batches splits changes into batches of at most n, with at most one mapping of shared memory each: its descriptor is given
// to the tracee before the batch runs, at a number that the next one would take over.
func Batches(changes []Change, n int) [][]Change {
	var out [][]Change
	start, shared := 0, false
	for i, c := range changes {
		object := c.Kind == Map && c.VMA.GetStatus()&images.VMAAnonShared != 0
		if i-start == n || shared && object {
			out = append(out, changes[start:i])
			start, shared = i, false
		}
		shared = shared || object
	}
	if start < len(changes) {
		out = append(out, changes[start:])
	}
	return out
}
