package mem

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/remote"
)

// An Opener appends to a batch what makes the tracee hold a descriptor of the file or object that a mapping maps, and
// returns the descriptor: a number, or the result of a call.
type Opener func(b *remote.Batch, v *vma.VmaEntry) (fd any, err error)

// AddChange appends the calls that make a change in a process that is being built. The result is that of the call which
// can fail for reasons that lie in the layout. Memory is mapped with its final protection: its content is written by a
// Writer, which minds no protection.
func AddChange(b *remote.Batch, c Change, open Opener) (*remote.Result, error) {
	switch c.Kind {
	case Unmap:
		return b.Call(unix.SYS_MUNMAP, c.Start, c.Size()), nil
	case Protect:
		if IsPacketRing(c.VMA) {
			return keepPlace(b, c), nil
		}
		return b.Call(unix.SYS_MPROTECT, c.Start, c.Size(), buildProt(c.VMA)), nil
	case Advise:
		var last *remote.Result
		for _, advice := range c.Advice {
			last = b.Call(unix.SYS_MADVISE, c.Start, c.Size(), advice)
		}
		return last, nil
	case Map:
		if IsPacketRing(c.VMA) {
			return keepPlace(b, c), nil
		}
		return addMap(b, c, open)
	}
	return nil, fmt.Errorf("%v: change %d is of no kind that is known", c.Range, c.Kind)
}

// buildProt is the protection with which memory is mapped: the final one, except that memory which may only be executed takes
// a protection key by that (pkeys(7)), and so gets it last, see RestoreMarks.
func buildProt(v *vma.VmaEntry) uint32 {
	if v.GetProt() == unix.PROT_EXEC {
		return unix.PROT_EXEC | unix.PROT_READ
	}
	return v.GetProt()
}

func addMap(b *remote.Batch, c Change, open Opener) (*remote.Result, error) {
	v := c.VMA
	const kept = unix.MAP_SHARED | unix.MAP_PRIVATE | mapDroppable | unix.MAP_ANONYMOUS | unix.MAP_GROWSDOWN | unix.MAP_NORESERVE
	flags, offset := v.GetFlags()&(kept|hugeFlags)|unix.MAP_FIXED, uint64(0)
	var fd any = -1
	if v.GetStatus()&(images.VMAFilePrivate|images.VMAFileShared|images.VMAAnonShared) != 0 {
		var err error
		if fd, err = open(b, v); err != nil {
			return nil, fmt.Errorf("%v: %w", c, err)
		}
		flags, offset = flags&^(unix.MAP_ANONYMOUS|hugeFlags), v.GetPgoff()+c.Start-v.GetStart()
	} else if v.GetStatus()&images.VMAAnonPrivate == 0 {
		return nil, fmt.Errorf("%v: a mapping of status 0x%x is of no kind that can be made", c, v.GetStatus())
	}
	r := b.Call(unix.SYS_MMAP, c.Start, c.Size(), buildProt(v), flags, fd, offset)
	if fd != -1 {
		b.Call(unix.SYS_CLOSE, fd)
	}
	advice, _ := advise(0, v.GetMadv())
	for _, a := range advice {
		b.Call(unix.SYS_MADVISE, c.Start, c.Size(), a)
	}
	return r, nil
}

// OpenPath is an Opener's part for mappings of files: it opens the path, for writing if the mapping may be written.
func OpenPath(b *remote.Batch, v *vma.VmaEntry, path string) *remote.Result {
	mode := unix.O_RDONLY
	if v.GetStatus()&images.VMAFileShared != 0 {
		mode = int(v.GetFdflags() & unix.O_ACCMODE)
	}
	return b.Call(unix.SYS_OPENAT, unix.AT_FDCWD, b.String(path), mode|unix.O_CLOEXEC, 0)
}

// AddNames appends the calls that give private mappings their names (PR_SET_VMA_ANON_NAME, prctl(2)). They come after the last
// Diff has been applied. A kernel without CONFIG_ANON_VMA_NAME refuses; then the mappings stay without names, which no
// program can tell but by reading its own maps.
func AddNames(b *remote.Batch, names []NamedRange) {
	const setVMA, setVMAAnonName = 0x53564d41, 0 // PR_SET_VMA, PR_SET_VMA_ANON_NAME
	for _, n := range names {
		b.Try(unix.SYS_PRCTL, setVMA, setVMAAnonName, n.Start, n.Size(), b.String(n.Name))
	}
}
