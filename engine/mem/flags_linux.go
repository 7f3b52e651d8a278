package mem

import (
	"slices"
	"sync"

	"migrate/engine/bpf"
	"migrate/engine/procfs"
)

// kernelVMAs asks the kernel for the flags of mappings; an error says that this kernel cannot be asked.
var kernelVMAs = sync.OnceValues(bpf.OpenVMAs)

// flagTable knows what smaps says of a mapping with certain flags of the kernel. Which bits those are differs between kernels, so it
// is learned: whenever a program has a mapping with flags that are not known yet, its smaps is read, which walks all page
// tables and takes 50 ms for each resident GiB. Each program has a table of its own, so that it misleads none but itself
// when it changes its flags while they are read.
type flagTable struct{ known map[uint64]*procfs.Smaps }

// maxFlags bounds a table.
const maxFlags = 1 << 12

// read returns the mappings of a process with the flags and protection keys that smaps has for them, and nothing else of it.
func (t *flagTable) read(vmas *bpf.VMAs, pid int) ([]procfs.Mapping, error) {
	list, err := vmas.Read(pid)
	if err != nil {
		return nil, err
	}
	maps, err := procfs.Host.Maps(pid)
	if err != nil {
		return nil, err
	}
	if t.mark(maps, list) {
		return maps, nil
	}
	if list, err = vmas.Read(pid); err != nil {
		return nil, err
	}
	if maps, err = procfs.Host.Smaps(pid); err != nil {
		return nil, err
	}
	after, err := vmas.Read(pid)
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
