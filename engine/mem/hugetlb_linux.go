package mem

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// Huge pages of hugetlbfs (MAP_HUGETLB and files of a mount). They come from a pool of their own, so a destination has to have
// enough of them free. No tracker watches them: write protection works on whole huge pages and does not tell of those that
// were given back, so all that are populated are compared with what was sent.

const (
	mapHugetlb  = unix.MAP_HUGETLB
	hugeFlags   = mapHugetlb | 0x3f<<mapHugeShift
	hugeMapping = "/anon_hugepage"
)

// anonHuge describes a mapping of huge pages that has no file of a mount behind it.
func (r *LayoutReader) anonHuge(m *Mapping, p *procfs.Mapping) (err error) {
	if p.Shared {
		m.Kind = SharedAnon
		m.Object, err = r.object(p)
		return err
	}
	link := procfs.Host.Path(r.pid, "map_files", fmt.Sprintf("%x-%x", p.Start, p.End))
	var fs unix.Statfs_t
	if err := unix.Statfs(link, &fs); err != nil {
		return r.unlessGone(fmt.Errorf("size of its huge pages: %w", err))
	}
	m.Huge = uint64(fs.Bsize)
	return nil
}

// hugePage is the size of the huge pages of a file system, or 0 if it is not hugetlbfs.
func hugePage(fd int) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("statfs: %w", err)
	}
	if int64(fs.Type) != unix.HUGETLBFS_MAGIC {
		return 0, nil
	}
	return uint64(fs.Bsize), nil
}

// encodeHuge is how flags of mmap(2) tell the size of huge pages.
func encodeHuge(size uint64) uint32 {
	if size == 0 {
		return 0
	}
	return mapHugetlb | uint32(bits.Len64(size)-1)<<mapHugeShift
}

// isHuge tells mappings of huge pages.
func isHuge(v *vma.VmaEntry) bool { return v.GetFlags()&mapHugetlb != 0 }

// Explain adds to the failure of a change what an operator can do about it.
func (c Change) Explain(err error) error {
	if c.Kind != Map || !isHuge(c.VMA) || !errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("%v: %w", c, err)
	}
	size := uint64(1) << (c.VMA.GetFlags() >> mapHugeShift & 0x3f)
	return fmt.Errorf("%v: this host has fewer than the %d huge pages of %d kB that it needs; add them in /sys/kernel/mm/hugepages/hugepages-%dkB/nr_hugepages: %w",
		c, (c.Size()+size-1)/size, size>>10, size>>10, err)
}
