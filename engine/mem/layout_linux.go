package mem

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/bpf"
	"migrate/engine/procfs"
)

// A LayoutReader reads what one process has mapped. It remembers files and marks, so that reading again is fast.
type LayoutReader struct {
	pid     int
	objects *Objects
	files   map[fileKey]*File
	last    []Mapping // with their marks
	views   []View
	flags   flagTable
}

// A View is a process of a mount namespace of the tree: a file may be reached from its root only.
type View struct {
	PID  int
	VPID uint32 // as the tree knows it
}

type fileKey struct {
	major, minor uint32
	inode        uint64
	path         string
}

// Look says from which mount namespaces files may be mapped, beside the process's own.
func (r *LayoutReader) Look(views []View) { r.views = views }

// NewLayoutReader returns a reader for a process. Objects collects the shared memory of the tree.
func NewLayoutReader(pid int, objects *Objects) *LayoutReader {
	return &LayoutReader{pid: pid, objects: objects, files: map[fileKey]*File{}}
}

// smallEnough is the resident size, in pages, up to which smaps is read even of a stopped program: it takes a few
// milliseconds.
const smallEnough = 512 << 20 / PageSize

// Read describes the mappings as they are now; running says that the program is not stopped. Where the kernel cannot be asked
// for the flags of mappings (see flagTable), the marks of a running program are those of smaps, which walks all page tables, and
// of a stopped one those that the memory had when smaps was read last. It is read all the same when it never was, when not
// as much memory is locked as the marks say, and, if the program is small, for a mapping that was not there yet.
func (r *LayoutReader) Read(running bool) (*Layout, error) {
	if kernel, err := kernelFlags(); err == nil {
		maps, err := r.flags.read(kernel, r.pid)
		if err == nil {
			return r.describe(maps, running)
		}
		if !errors.Is(err, bpf.ErrDisorder) {
			return nil, fmt.Errorf("mappings of pid %d: %w", r.pid, err)
		}
	}
	before := r.last
	if before == nil {
		return r.read(true)
	}
	l, err := r.read(running)
	if err != nil || running {
		return l, err
	}
	locked, err := r.memoryOf("VmLck")
	if err != nil || locked == l.locked() {
		st, err2 := procfs.Host.Stat(r.pid)
		if err = errors.Join(err, err2); err != nil || st.RSS > smallEnough {
			return l, err
		}
		if !slices.ContainsFunc(l.Mappings, func(m Mapping) bool { return m.Marks.Unknown }) {
			return l, nil
		}
	}
	r.last = before
	return r.read(true)
}

// locked is how much memory is locked.
func (l *Layout) locked() (size uint64) {
	for i := range l.Mappings {
		if l.Mappings[i].Marks.Locked {
			size += l.Mappings[i].Size()
		}
	}
	return size
}

func (r *LayoutReader) read(marks bool) (*Layout, error) {
	read := procfs.Host.Maps
	if marks {
		read = procfs.Host.Smaps
	}
	maps, err := read(r.pid)
	if err != nil {
		return nil, fmt.Errorf("mappings of pid %d: %w", r.pid, err)
	}
	return r.describe(maps, marks)
}

// describe makes a layout of what maps or smaps says.
func (r *LayoutReader) describe(maps []procfs.Mapping, running bool) (*Layout, error) {
	if len(maps) == 0 {
		return nil, fmt.Errorf("mappings of pid %d: %w", r.pid, ErrGone)
	}
	l, refused := &Layout{Mappings: make([]Mapping, 0, len(maps))}, newObstacles(r.pid)
	next := 0
	for i := range maps {
		m := Mapping{Range: Range{maps[i].Start, maps[i].End}, Prot: maps[i].Prot, Offset: maps[i].Offset}
		for next < len(r.last) && r.last[next].End <= m.Start {
			next++
		}
		why, err := r.classify(&m, &maps[i])
		if err != nil {
			return nil, fmt.Errorf("pid %d: %v: %w", r.pid, maps[i], err)
		}
		if maps[i].Smaps != nil {
			if flag := m.setMarks(maps[i].Smaps); why == nil {
				why = flag
			}
		} else {
			m.inheritMarks(r.last[next:])
		}
		if why != nil {
			m.Kind = Other
			refused.add(why, maps[i].String())
		}
		l.Mappings = append(l.Mappings, m)
	}
	r.last = l.Mappings
	var err error
	if running {
		err = r.findPinned(refused)
	}
	l.Obstacles = refused.list()
	return l, err
}

// findPinned adds an obstacle when devices may write to the program's memory, which no tracker sees: its VmPin
// counts the buffers that it registered with io_uring, RDMA or a device driver.
func (r *LayoutReader) findPinned(refused *obstacles) error {
	size, err := r.memoryOf("VmPin")
	if size != 0 {
		refused.add(refusePinned, fmt.Sprintf("%d kB", size>>10))
	}
	return err
}

// memoryOf is a size in bytes that the program's status tells (proc_pid_status(5)); 0 where the kernel has no such line.
func (r *LayoutReader) memoryOf(name string) (uint64, error) {
	status, err := procfs.Host.Bytes(r.pid, "status")
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(status), "\n"+name+":")
	line, _, _ = strings.Cut(line, "\n")
	kb := strings.TrimSuffix(strings.TrimSpace(line), " kB")
	if kb == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(kb, 10, 54)
	if err != nil {
		return 0, fmt.Errorf("status of pid %d: %s: %w", r.pid, name, err)
	}
	return n << 10, nil
}

// inheritMarks takes the marks of what was mapped there before; old begins with the first mapping that may overlap.
func (m *Mapping) inheritMarks(old []Mapping) {
	for i := range old {
		if old[i].Start >= m.End {
			break
		}
		if old[i].Kind == m.Kind {
			m.Marks = old[i].Marks
			return
		}
	}
	m.Marks = Marks{Unknown: true, MayWrite: m.Prot&procfs.ProtWrite != 0, GrowsDown: m.Stack}
}

// setMarks takes over VmFlags. It returns a Refusal if one of them says that the mapping is not carried.
func (m *Mapping) setMarks(s *procfs.Smaps) (refused *Refusal) {
	m.Marks = Marks{Key: s.ProtectionKey}
	for _, f := range s.VMFlags {
		switch f {
		case "dc":
			m.Marks.Advice |= 1 << adviceDontFork
		case "wf":
			m.Marks.Advice |= 1 << adviceWipeOnFork
		case "dd":
			m.Marks.Advice |= 1 << adviceDontDump
		case "hg":
			m.Marks.Advice |= 1 << adviceHugePage
		case "nh":
			m.Marks.Advice |= 1 << adviceNoHugePage
		case "mg":
			m.Marks.Advice |= 1 << adviceMergeable
		case "sr":
			m.Marks.Advice |= 1 << adviceSequential
		case "rr":
			m.Marks.Advice |= 1 << adviceRandom
		case "gd":
			m.Marks.GrowsDown = true
		case "nr":
			m.Marks.NoReserve = true
		case "lo":
			m.Marks.Locked = true
		case "lf":
			m.Marks.OnFault = true
		case "sl":
			m.Marks.Sealed = true
		case "dp":
			m.Marks.Droppable = true
		case "mw":
			m.Marks.MayWrite = true
		default:
			if why := refusedFlags[f]; why != nil && m.Kind < VDSO {
				refused = why
			}
		}
	}
	return refused
}

// refusedFlags are the VmFlags of what is not carried (fs/proc/task_mmu.c, show_smap_vma_flags).
var refusedFlags = map[string]*Refusal{
	"io": refuseDevice, // VM_IO
	"pf": refuseDevice, // VM_PFNMAP
	"mm": refuseDevice, // VM_MIXEDMAP
	"um": refuseUffd,   // VM_UFFD_MISSING
	"ui": refuseUffd,   // VM_UFFD_MINOR
	"ss": refuseShadow,
	"mt": refuseTags,
}

// classify finds out what stands behind a mapping, and whether that is not carried.
func (r *LayoutReader) classify(m *Mapping, p *procfs.Mapping) (refused *Refusal, err error) {
	m.Kind = PrivateAnon
	switch {
	case p.Path == "[vdso]":
		m.Kind = VDSO
	case strings.HasPrefix(p.Path, "[vvar"):
		m.Kind = Vvar
	case p.Path == "[vsyscall]":
		m.Kind = Vsyscall
	case p.Path == "[heap]":
		m.Heap = true
	case p.Path == "[stack]":
		m.Stack = true
	case strings.HasPrefix(p.Path, "[anon:") && p.Inode == 0:
		m.Name = strings.TrimSuffix(strings.TrimPrefix(p.Path, "[anon:"), "]")
	case p.Path == "" && p.Inode == 0 && !p.Shared:
	case strings.HasPrefix(p.Path, "[anon_shmem:"), strings.HasPrefix(p.Path, "/dev/zero") && p.Deleted && p.Shared:
		m.Kind = SharedAnon
		m.Object, err = r.object(p)
	case strings.HasPrefix(p.Path, sysvName) && p.Deleted && p.Shared:
		m.Kind, m.Segment = SharedAnon, true
		m.Object, err = r.object(p)
	case strings.HasPrefix(p.Path, memfdName) && p.Deleted:
		return r.file(m, p)
	case strings.HasPrefix(p.Path, hugeMapping) && p.Deleted:
		err = r.anonHuge(m, p)
	case strings.HasPrefix(p.Path, "/[aio]"):
		m.Kind = AIORing
	case strings.HasPrefix(p.Path, "anon_inode:[io_uring]"):
		return refuseIOUring, nil
	case strings.HasPrefix(p.Path, "socket:"):
		m.Kind, m.Shared, m.Object = PacketRing, p.Shared, uint32(p.Inode)
	case p.Path == "[uprobes]":
		return refuseUprobes, nil
	case strings.HasPrefix(p.Path, "/"):
		return r.file(m, p)
	default:
		return refuseSpecial, nil
	}
	return nil, err
}

// file fills in what is known of a mapped file.
func (r *LayoutReader) file(m *Mapping, p *procfs.Mapping) (refused *Refusal, err error) {
	if m.Kind = PrivateFile; p.Shared {
		m.Kind = SharedFile
	}
	key := fileKey{p.Major, p.Minor, p.Inode, p.Path}
	if m.File = r.files[key]; m.File == nil {
		if m.File, refused, err = r.openFile(p); err != nil || refused != nil {
			return refused, err
		}
		if m.File == nil {
			m.File, refused, err = r.openObject(p)
			return refused, err
		}
		r.files[key] = m.File
	}
	return nil, nil
}

// openFile looks at a mapped file, by way of its path and not of the mapping, as the destination will. There is no File if
// the path does not lead to it.
func (r *LayoutReader) openFile(p *procfs.Mapping) (*File, *Refusal, error) {
	f, refused, err := r.openFrom(r.pid, p)
	if f != nil || err != nil {
		return f, refused, err
	}
	for _, v := range r.views { // such as a program that was started before its process got a root of its own
		if other, not, err := r.openFrom(v.PID, p); err == nil && not == nil && other != nil {
			other.Via = v.VPID
			return other, nil, nil
		}
	}
	return nil, refused, nil
}

// openFrom is openFile by way of the root of a process.
func (r *LayoutReader) openFrom(pid int, p *procfs.Mapping) (_ *File, refused *Refusal, err error) {
	path := p.Path
	if p.Deleted { // or a file that is called so
		path += " (deleted)"
	}
	f, err := os.OpenFile(procfs.Host.OuterRoot(pid)+path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		if st, gone := procfs.Host.Stat(r.pid); gone != nil || st.State == 'Z' {
			return nil, nil, ErrGone
		}
		if !p.Deleted {
			return nil, refuseReplaced, nil
		}
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, nil, fmt.Errorf("stat: %w", err)
	}
	if st.Ino != p.Inode && !p.Deleted && p.Shared {
		return nil, refuseReplaced, nil
	}
	if st.Ino != p.Inode {
		return nil, nil, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFCHR:
		const zeroDevice = 1<<8 | 5
		if st.Rdev != zeroDevice || p.Shared {
			return nil, refuseDevice, nil
		}
	default:
		return nil, refuseSpecial, nil
	}
	out := &File{Path: path, Major: p.Major, Minor: p.Minor, Inode: st.Ino, Size: st.Size, Mode: st.Mode}
	if out.Huge, err = hugePage(int(f.Fd())); err != nil {
		return nil, nil, err
	}
	out.BuildID = buildID(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return out, nil, nil
}

// maxNote bounds the notes of an ELF file that are searched.
const maxNote = 1 << 16

// buildID returns the build id of an ELF file, or nil if it is not one, cannot be read, or has none: it is a further
// identity where there is one.
func buildID(path string) []byte {
	f, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing is lost
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNote {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return nil
		}
		if id := findBuildID(notes, f.ByteOrder); id != nil {
			return id
		}
	}
	return nil
}

// findBuildID walks ELF notes: sizes of name and description, a type, then both, each padded to 4 bytes (elf(5)).
func findBuildID(b []byte, order binary.ByteOrder) []byte {
	const header, ntGNUBuildID = 12, 3
	for len(b) >= header {
		nameSize, size, kind := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint32(b[8:])
		start := header + (nameSize+3)&^3
		end := start + size
		if end > uint64(len(b)) {
			return nil
		}
		if kind == ntGNUBuildID && string(b[header:header+nameSize]) == "GNU\x00" {
			return b[start:end:end]
		}
		b = b[min((end+3)&^3, uint64(len(b))):]
	}
	return nil
}
