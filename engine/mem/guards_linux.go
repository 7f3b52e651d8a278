package mem

import (
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/procfs"
)

// Guard pages (MADV_GUARD_INSTALL, madvise(2), since Linux 6.13) stand in page tables only: no mapping tells of them. A tracker
// reports one as a written page, which then cannot be read; so they are found without looking for them in all of the memory.
// Since 6.16 a kernel says of such a page that it is a guard (PAGE_IS_GUARD); on one before that it stays unreadable, and
// ends the dump.

// guardsIn lists the guard pages in some ranges of a process, which ascend.
func guardsIn(pid int, ranges []Range) (_ []Range, err error) {
	if len(ranges) == 0 {
		return nil, nil
	}
	f, err := procfs.Host.Open(pid, "pagemap")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var out rangeSet
	var found [64]region
	for _, r := range ranges {
		for r.Start < r.End {
			n, next, err := scan{Range: r, mask: pageGuard, wants: pageGuard}.run(int(f.Fd()), found[:])
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
				return nil, nil // a kernel that cannot tell
			}
			if err != nil {
				return nil, fmt.Errorf("pid %d: looking for guard pages in %v: %w", pid, r, err)
			}
			for _, g := range found[:n] {
				out.append(g.Range)
			}
			if next <= r.Start {
				break
			}
			r.Start = next
		}
	}
	return out, nil
}

// takeGuards notes which of the pages that could not be read are guards. The destination may keep what it has there: the
// guard takes its place.
func (s *Source) takeGuards(stats *RoundStats) error {
	found, err := guardsIn(s.view.pid, s.retry)
	if err != nil || len(found) == 0 {
		return err
	}
	for _, g := range found {
		stats.Retry -= g.Pages()
	}
	s.retry = without(s.retry, found)
	s.guards = merge(found, s.guards)
	return nil
}

// Guards lists the guard pages of a stopped program, after its Final round: those of private memory, which the rounds have
// met, and those of shared memory, which is looked through.
func (s *Source) Guards() ([]Range, error) {
	var shared []Range
	for _, v := range s.vmas {
		if v.GetStatus()&(images.VMAFileShared|images.VMAAnonShared) != 0 && !kernelOwned(v) {
			shared = append(shared, rangeOf(v))
		}
	}
	return guardsIn(s.view.pid, merge(s.guards, shared))
}

func rangeOf(v *vma.VmaEntry) Range { return Range{v.GetStart(), v.GetEnd()} }
