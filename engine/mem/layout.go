package mem

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/procfs"
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
	AIORing                     // the ring of io_setup(2)
	PacketRing                  // the rings of a packet socket
	Other                       // not carried; there is an Obstacle
)

func (k Kind) String() string {
	return [...]string{"", "private memory", "private file mapping", "shared file mapping", "shared memory", "vDSO", "vDSO data", "vsyscall page", "ring of io_setup", "ring of a packet socket", "other mapping"}[k]
}

// Marks of a mapping, from VmFlags of smaps (proc_pid_smaps(5)).
type Marks struct {
	Advice    uint64 // bit n: advice n of madvise(2)
	GrowsDown bool
	NoReserve bool
	Locked    bool   // mlock(2), mlockall(2)
	OnFault   bool   // of a locked one: MLOCK_ONFAULT
	Sealed    bool   // mseal(2)
	Droppable bool   // MAP_DROPPABLE
	Key       uint32 // protection key of pkey_mprotect(2)
	MayWrite  bool   // a shared mapping of a file that was opened for writing
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
	Object       uint32 // its number among the Objects, if no name reaches it
	Huge         uint64 // size of its pages, if it is of hugetlbfs
	Secret       bool   // it is of memfd_secret(2), which is locked by itself
	Via          uint32 // the path is from the root of this View; 0: of the process itself
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
	// Segment says that the object is System V shared memory.
	Segment bool
	Shared  bool   // PacketRing: MAP_SHARED; Object is the inode number of the socket
	Huge    uint64 // PrivateAnon: size of its pages, if they are of hugetlbfs
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
	mapDroppable = 0x08 // instead of mapPrivate
	mapAnonymous = 0x20
	mapGrowsDown = 0x0100
	mapLocked    = 0x2000
	mapNoReserve = 0x4000

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

// record is an entry with all its optional fields in one piece of memory: there may be many thousands.
type record struct {
	vma.VmaEntry
	start, end, pgoff, shmid, madv uint64
	prot, flags, status, fdflags   uint32
	fd                             int64
}

// entry returns CRIU's record of a mapping.
func (m *Mapping) entry(fileID func(*File) (uint32, error)) (*vma.VmaEntry, error) {
	r := &record{start: m.Start, end: m.End, pgoff: m.Offset, prot: m.Prot, flags: mapPrivate, status: images.VMARegular, madv: m.Marks.Advice, fd: -1}
	switch m.Kind {
	case PrivateAnon:
		if r.flags |= mapAnonymous | encodeHuge(m.Huge); m.Marks.Droppable {
			r.flags ^= mapPrivate | mapDroppable
		}
		r.status |= images.VMAAnonPrivate
	case SharedAnon:
		r.flags = mapShared | mapAnonymous
		r.status |= images.VMAAnonShared
		r.shmid = uint64(m.Object)
		if m.Segment {
			r.status |= images.VMASysvIPC
			if m.Marks.MayWrite || m.Prot&procfs.ProtWrite != 0 {
				r.fdflags = openReadWrite
			}
		}
	case PrivateFile, SharedFile:
		id, err := fileID(m.File)
		if err != nil {
			return nil, err
		}
		r.shmid = uint64(id)
		r.status |= images.VMAFilePrivate
		if m.Kind == SharedFile {
			r.flags, r.status = mapShared, images.VMARegular|images.VMAFileShared
			if m.Marks.MayWrite {
				r.fdflags = openReadWrite
			}
		}
		r.flags |= encodeHuge(m.File.Huge)
	case AIORing:
		r.flags, r.status = mapShared, images.VMAAIORing
	case PacketRing:
		if r.status, r.shmid = images.VMASocket, uint64(m.Object); m.Shared {
			r.flags = mapShared
		}
	case VDSO:
		r.status |= images.VMAVDSO | images.VMAAnonPrivate
	case Vvar:
		r.status |= images.VMAVvar | images.VMAAnonPrivate
	case Vsyscall:
		r.flags, r.status = mapShared|mapAnonymous, images.VMAVsyscall|images.VMAAnonPrivate
	}
	for _, f := range []struct {
		set          bool
		flag, status uint32
	}{
		{m.Marks.GrowsDown, mapGrowsDown, 0}, {m.Marks.NoReserve, mapNoReserve, 0}, {m.Marks.Locked && (m.File == nil || !m.File.Secret), mapLocked, 0},
		{m.Heap, 0, images.VMAHeap}, {m.Stack, 0, images.VMAStack},
	} {
		if f.set {
			r.flags, r.status = r.flags|f.flag, r.status|f.status
		}
	}
	e := &r.VmaEntry
	e.Start, e.End, e.Pgoff, e.Shmid = &r.start, &r.end, &r.pgoff, &r.shmid
	e.Prot, e.Flags, e.Status, e.Fd, e.Fdflags = &r.prot, &r.flags, &r.status, &r.fd, &r.fdflags
	if r.madv != 0 {
		e.Madv = &r.madv
	}
	return e, nil
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
