package mem

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/remote"
)

// An Attachment is what AddAttach needs to know of a segment of System V shared memory.
type Attachment struct {
	ID   uint32 // of shmget(2)
	Size uint64
	// Hole is the address of a free range as large as the segment. It is used where only a part is mapped; see NeedsHole.
	Hole uint64
}

// IsAttachment tells mappings that shmat(2) makes, and mmap(2) does not.
func IsAttachment(c Change) bool { return c.Kind == Map && c.VMA.GetStatus()&images.VMASysvIPC != 0 }

// NeedsHole tells whether a change maps another part of a segment of the given size than all of it.
func NeedsHole(c Change, size uint64) bool {
	return partOffset(c) != 0 || c.Size() != pageUp(size)
}

func partOffset(c Change) uint64 { return c.VMA.GetPgoff() + c.Start - c.VMA.GetStart() }

// AddAttach appends the calls that attach a segment. A part is attached elsewhere as a whole first, then moved, so that shmdt(2)
// and the count of attachments take it for what it is.
func AddAttach(b *remote.Batch, c Change, a Attachment) (*remote.Result, error) {
	v, size, off := c.VMA, pageUp(a.Size), partOffset(c)
	if off > size || c.Size() > size-off {
		return nil, fmt.Errorf("%v: %d bytes at %d of a segment of %d", c, c.Size(), off, a.Size)
	}
	flags, prot := attachFlags(v)
	var r *remote.Result
	if !NeedsHole(c, a.Size) {
		r = b.Call(unix.SYS_SHMAT, a.ID, c.Start, flags|shmRemap)
	} else {
		r = b.Call(unix.SYS_SHMAT, a.ID, a.Hole, flags)
		b.Call(unix.SYS_MREMAP, a.Hole+off, c.Size(), c.Size(), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, c.Start)
		if off > 0 {
			b.Call(unix.SYS_MUNMAP, a.Hole, off)
		}
		if end := off + c.Size(); end < size {
			b.Call(unix.SYS_MUNMAP, a.Hole+end, size-end)
		}
	}
	if prot != buildProt(v) {
		b.Call(unix.SYS_MPROTECT, c.Start, c.Size(), buildProt(v))
	}
	advice, _ := advise(0, v.GetMadv())
	for _, a := range advice {
		b.Call(unix.SYS_MADVISE, c.Start, c.Size(), a)
	}
	return r, nil
}

// attachFlags are those of shmat(2) for a mapping, with the protection that they give.
func attachFlags(v *vma.VmaEntry) (flags, prot uint32) {
	prot = unix.PROT_READ | unix.PROT_WRITE
	if v.GetFdflags()&unix.O_ACCMODE == unix.O_RDONLY {
		flags, prot = shmRDONLY, unix.PROT_READ
	}
	if v.GetProt()&unix.PROT_EXEC != 0 {
		flags, prot = flags|shmExec, prot|unix.PROT_EXEC
	}
	return flags, prot
}
