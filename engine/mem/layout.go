package mem

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
)

// Kind says what stands behind a mapping.
type Kind uint8

const (
	PrivateAnon Kind = iota + 1 // memory of the process alone, the heap and stacks among it
	PrivateFile                 // a file, with pages of its own where it was written
	SharedFile                  // a file
	SharedAnon                  // an object that the process shares with its children
	VDSO                        // code of the kernel
	Vvar                        // data of the kernel for the vDSO: [vvar], [vvar_vclock]
	Vsyscall                    // the page at the end of the address space (amd64)
	Other                       // not carried; there is an Obstacle
)

func (k Kind) String() string {
	return [...]string{"", "private memory", "private file mapping", "shared file mapping", "shared memory", "vDSO", "vDSO data", "vsyscall page", "other mapping"}[k]
}

// Marks of a mapping, from VmFlags of smaps (proc_pid_smaps(5)).
type Marks struct {
	Advice    uint64 // bit n: advice n of madvise(2)
	GrowsDown bool
	NoReserve bool
	Locked    bool
	MayWrite  bool // a shared mapping of a file that was opened for writing
	// Unknown says that only maps was read, and nothing like the mapping had been there when smaps was read.
	Unknown bool
}

// A File is what a file mapping maps.
type File struct {
	Path         string // as the process's root sees it
	Major, Minor uint32
	Inode        uint64
	Size         int64
	Mode         uint32 // st_mode
	BuildID      []byte // of an ELF file that has one
}

// A Mapping is one mapping of a process.
type Mapping struct {
	Range
	Kind   Kind
	Prot   uint32
	Offset uint64 // into the file or object, in bytes
	Marks  Marks
	Heap   bool   // the area of brk(2)
	Stack  bool   // of the first thread
	Name   string // of private memory, as given by PR_SET_VMA_ANON_NAME
	File   *File  // PrivateFile and SharedFile
	Object uint32 // SharedAnon: the object's shmid in Objects
}

func (m *Mapping) String() string {
	return fmt.Sprintf("mapping %v (%v)", m.Range, m.Kind)
}

// A Layout is what a process has mapped.
type Layout struct {
	Mappings []Mapping // ascending
	// Obstacles are the mappings that are not carried.
	Obstacles []engine.Obstacle
}

// Of include/uapi/asm-generic/mman-common.h and mman.h; the same on both processors.
const (
	mapShared    = 0x01
	mapPrivate   = 0x02
	mapAnonymous = 0x20
	mapGrowsDown = 0x0100
	mapLocked    = 0x2000
	mapNoReserve = 0x4000

	openReadOnly  = 0 // O_RDONLY
	openReadWrite = 2 // O_RDWR
)

// Entries returns CRIU's records of the mappings that are carried. fileID gives the id that a file has in files.img.
func (l *Layout) Entries(fileID func(*File) (uint32, error)) ([]*vma.VmaEntry, error) {
	out := make([]*vma.VmaEntry, 0, len(l.Mappings))
	for i := range l.Mappings {
		m := &l.Mappings[i]
		if m.Kind == Other {
			continue
		}
		e, err := m.entry(fileID)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", m, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// entry returns CRIU's record of a mapping.
func (m *Mapping) entry(fileID func(*File) (uint32, error)) (*vma.VmaEntry, error) {
	flags, status, shmid, access := uint32(mapPrivate), uint32(images.VMARegular), uint64(0), uint32(openReadOnly)
	switch m.Kind {
	case PrivateAnon:
		flags |= mapAnonymous
		status |= images.VMAAnonPrivate
	case SharedAnon:
		flags = mapShared | mapAnonymous
		status |= images.VMAAnonShared
		shmid = uint64(m.Object)
	case PrivateFile, SharedFile:
		id, err := fileID(m.File)
		if err != nil {
			return nil, err
		}
		shmid = uint64(id)
		status |= images.VMAFilePrivate
		if m.Kind == SharedFile {
			flags, status = mapShared, images.VMARegular|images.VMAFileShared
			if m.Marks.MayWrite {
				access = openReadWrite
			}
		}
	case VDSO:
		status |= images.VMAVDSO | images.VMAAnonPrivate
	case Vvar:
		status |= images.VMAVvar | images.VMAAnonPrivate
	case Vsyscall:
		flags, status = mapShared|mapAnonymous, images.VMAVsyscall|images.VMAAnonPrivate
	}
	return m.fill(&vma.VmaEntry{Flags: proto.Uint32(flags), Status: proto.Uint32(status), Shmid: proto.Uint64(shmid), Fdflags: proto.Uint32(access)}), nil
}

// fill adds what does not depend on the kind.
func (m *Mapping) fill(e *vma.VmaEntry) *vma.VmaEntry {
	flags, status := e.GetFlags(), e.GetStatus()
	for _, f := range []struct {
		set          bool
		flag, status uint32
	}{
		{m.Marks.GrowsDown, mapGrowsDown, 0}, {m.Marks.NoReserve, mapNoReserve, 0}, {m.Marks.Locked, mapLocked, 0},
		{m.Heap, 0, images.VMAHeap}, {m.Stack, 0, images.VMAStack},
	} {
		if f.set {
			flags, status = flags|f.flag, status|f.status
		}
	}
	e.Start, e.End, e.Pgoff = proto.Uint64(m.Start), proto.Uint64(m.End), proto.Uint64(m.Offset)
	e.Prot, e.Flags, e.Status = proto.Uint32(m.Prot), proto.Uint32(flags), proto.Uint32(status)
	e.Fd = proto.Int64(-1)
	if m.Marks.Advice != 0 {
		e.Madv = proto.Uint64(m.Marks.Advice)
	}
	return e
}

// A NamedRange is private memory to which the program gave a name.
type NamedRange struct {
	Range
	Name string
}

// Names lists the memory that has a name.
func (l *Layout) Names() []NamedRange {
	var out []NamedRange
	for i := range l.Mappings {
		if m := &l.Mappings[i]; m.Name != "" && m.Kind == PrivateAnon {
			out = append(out, NamedRange{m.Range, m.Name})
		}
	}
	return out
}
