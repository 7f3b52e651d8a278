package mem

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"migrate/engine/bpf"
	"migrate/engine/procfs"
)

// A flagReader asks the kernel for the flags of mappings.
type flagReader struct {
	vmas *bpf.VMAs
	// tracked is the bit of mappings whose writes are tracked by a userfaultfd: it comes with the tracking and is no mark; 0
	// when it is not known.
	tracked uint64
}

// kernelFlags returns the reader; an error says that this kernel cannot be asked.
var kernelFlags = sync.OnceValues(func() (*flagReader, error) {
	vmas, err := bpf.OpenVMAs()
	if err != nil {
		return nil, err
	}
	f := &flagReader{vmas: vmas}
	f.tracked, _ = f.findTracked() // without it smaps is read once more
	return f, nil
})

// read lists the mappings of a process; flags are without that of tracking.
func (f *flagReader) read(pid, most int) ([]bpf.VMA, error) {
	list, err := f.vmas.Read(pid, most)
	for i := range list {
		list[i].Flags &^= f.tracked
	}
	return list, err
}

// findTracked tracks a page of this program and looks what that changes.
func (f *flagReader) findTracked() (bit uint64, err error) {
	page, err := unix.Mmap(-1, 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(page)) }()
	// A mapping of its own: advice that a neighbour has not.
	if err := unix.Madvise(page, unix.MADV_DONTFORK); err != nil {
		return 0, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	defer func() { err = errors.Join(err, unix.Close(int(fd))) }()
	if err := uffdAPI(int(fd), uffdWPAsync|uffdWPUnpopulated); err != nil {
		return 0, err
	}
	at := addressOf(page)
	before, err := f.flagsAt(at)
	if err != nil {
		return 0, err
	}
	if err := uffdRegister(int(fd), Range{at, at + PageSize}, uffdModeWP); err != nil {
		return 0, err
	}
	after, err := f.flagsAt(at)
	return after &^ before, err
}

func (f *flagReader) flagsAt(addr uint64) (uint64, error) {
	list, err := f.vmas.Read(unix.Getpid(), ownMappings)
	for _, v := range list {
		if v.Start <= addr && addr < v.End {
			return v.Flags, nil
		}
	}
	return 0, errors.Join(err, fmt.Errorf("no mapping at 0x%x", addr))
}

// flagTable knows what smaps says of a mapping with certain flags of the kernel. Which bits those are differs between kernels, so it
// is learned: whenever a program has a mapping with flags that are not known yet, its smaps is read, which walks all page
// tables and takes 50 ms for each resident GiB. Each program has a table of its own, so that it misleads none but itself
// when it changes its flags while they are read.
type flagTable struct{ known map[uint64]*procfs.Smaps }

const (
	// maxFlags bounds a table.
	maxFlags = 1 << 12
	// newMappings is how many mappings a running program may make between two looks at them.
	newMappings = 1 << 10
	// ownMappings bounds those of this program.
	ownMappings = 1 << 12
)

// read returns the mappings of a process with the flags and protection keys that smaps has for them, and nothing else of it.
func (t *flagTable) read(kernel *flagReader, pid int) ([]procfs.Mapping, error) {
	maps, err := procfs.Host.Maps(pid)
	if err != nil {
		return nil, err
	}
	most := len(maps) + newMappings
	list, err := kernel.read(pid, most)
	if err != nil {
		return nil, err
	}
	if t.mark(maps, list) {
		return maps, nil
	}
	if list, err = kernel.read(pid, most); err != nil {
		return nil, err
	}
	if maps, err = procfs.Host.Smaps(pid); err != nil {
		return nil, err
	}
	after, err := kernel.read(pid, most)
	if err != nil {
		return nil, err
	}
	t.learn(maps, list, after)
	return maps, nil
}

// mark gives each mapping what is known of its flags. It reports whether that was possible for all.
func (t *flagTable) mark(maps []procfs.Mapping, list []bpf.VMA) bool {
	for i := range maps {
		for len(list) > 0 && list[0].Start < maps[i].Start {
			list = list[1:]
		}
		if len(list) == 0 || list[0].Start != maps[i].Start || list[0].End != maps[i].End {
			if maps[i].Path == "[vsyscall]" { // a mapping in name only
				continue
			}
			return false // it has changed meanwhile
		}
		s := t.known[list[0].Flags]
		if s == nil {
			return false
		}
		maps[i].Smaps = s
	}
	return true
}

// learn takes over what smaps said of mappings that were the same before and afterwards.
func (t *flagTable) learn(maps []procfs.Mapping, before, after []bpf.VMA) {
	if t.known == nil || len(t.known) > maxFlags {
		t.known = map[uint64]*procfs.Smaps{}
	}
	stable := map[uint64]bpf.VMA{}
	for _, v := range before {
		if i, ok := slices.BinarySearchFunc(after, v.Start, func(a bpf.VMA, start uint64) int {
			switch {
			case a.Start < start:
				return -1
			case a.Start > start:
				return 1
			}
			return 0
		}); ok && after[i] == v {
			stable[v.Start] = v
		}
	}
	for i := range maps {
		if v, ok := stable[maps[i].Start]; ok && v.End == maps[i].End && maps[i].Smaps != nil && t.known[v.Flags] == nil {
			t.known[v.Flags] = &procfs.Smaps{VMFlags: maps[i].Smaps.VMFlags, ProtectionKey: maps[i].Smaps.ProtectionKey}
		}
	}
}
