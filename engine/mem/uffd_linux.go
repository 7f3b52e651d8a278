package mem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// userfault tracks writes with a userfaultfd that the program itself was made to open. Its mappings are registered for
// write protection in asynchronous mode: a write to a protected page lifts the protection without anybody being asked,
// and PAGEMAP_SCAN tells, from outside, which pages are not protected, and protects them again in the same step
// (Documentation/admin-guide/mm/pagemap.rst). Nothing happens to the program when this process ends.
//
// Ways in which writes would get lost, and what is done:
//
//   - A scan that meets a mapping which is not registered gives EPERM, has protected what it walked before, and tells
//     nothing of it. So each mapping is scanned alone, and after EPERM it is registered and reported whole.
//   - Mappings made by mmap, by a moving mremap, by brk and in a child are not registered: the same.
//   - Writes by way of a file, by other mappings of the same memory and by devices are not seen. Shared memory is not
//     given to a Tracker (see Objects); devices and pinned memory are obstacles.
//   - A page that the program gave back (MADV_DONTNEED) counts as written without being present. Where pages were sent before,
//     pages are asked for whether they are present or not; an absent one is reported as such.
//   - In a private mapping of a file, a page that the program gave back keeps its protection, as a marker, and does not even
//     count as written (pte_install_uffd_wp_if_needed in include/linux/mm_inline.h). Where pages of it were sent before, the
//     scan tells of every page, and those that are not there any more are compared.
//   - Asking so where nothing was ever populated would write a marker for each page of a reservation. There, only
//     present pages are asked for.
type userfault struct {
	caller remote.Caller
	fd     *os.File // the userfaultfd
	scan   scanner
	own    rangeSet // what is registered, as far as is known
}

// NewUserfault returns a Tracker for the process of caller, which is used by Start alone.
func NewUserfault(caller remote.Caller) Tracker { return &userfault{caller: caller} }

func (*userfault) Name() string { return "userfaultfd" }

// Start makes the program open a userfaultfd, takes it, and closes the program's own descriptor.
func (u *userfault) Start(ctx context.Context) (err error) {
	if err := u.Close(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tracking writes of pid %d: %w", u.caller.PID(), err), u.Close())
		}
	}()
	if u.scan.pagemap, err = procfs.Host.Open(u.caller.PID(), "pagemap"); err != nil {
		return err
	}
	if u.fd, err = u.open(ctx); err != nil {
		return err
	}
	if err := uffdAPI(int(u.fd.Fd()), uffdWPAsync|uffdWPUnpopulated); err != nil {
		return fmt.Errorf("UFFDIO_API (asynchronous write protection needs Linux 6.7): %w", err)
	}
	return nil
}

func (u *userfault) open(ctx context.Context) (_ *os.File, err error) {
	var b remote.Batch
	// A program without privileges may open one for faults of its own code only; in asynchronous mode, where no fault is
	// handled by anybody, writes by the kernel are tracked all the same.
	fd := b.Call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly)
	if err := u.caller.Run(ctx, &b); err != nil {
		return nil, fmt.Errorf("userfaultfd(2): %w", err)
	}
	n, err := fd.Value()
	if err != nil {
		return nil, fmt.Errorf("userfaultfd(2): %w", err)
	}
	f, err := u.caller.Pull(ctx, int(n))
	var after remote.Batch
	after.Call(unix.SYS_CLOSE, n)
	return f, errors.Join(err, u.caller.Run(ctx, &after))
}

// Close lets go of the userfaultfd, which ends all registrations.
func (u *userfault) Close() error {
	var errs []error
	if u.fd != nil {
		errs = append(errs, u.fd.Close())
	}
	if u.scan.pagemap != nil {
		errs = append(errs, u.scan.pagemap.Close())
	}
	u.fd, u.scan.pagemap, u.own = nil, nil, nil
	return errors.Join(errs...)
}

func (u *userfault) Collect(ctx context.Context, areas []Area, sent *Digest) ([]Extent, error) {
	if err := uffdAlive(int(u.fd.Fd())); err != nil {
		return nil, fmt.Errorf("pid %d: %w", u.caller.PID(), ErrReplaced)
	}
	var out []Extent
	var own rangeSet
	for _, a := range areas {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ext, registered, err := u.collect(a, sent)
		if err != nil {
			return nil, fmt.Errorf("pid %d: written pages of 0x%x-0x%x: %w", u.caller.PID(), a.Start, a.End, err)
		}
		if registered {
			own.append(a.Range)
		}
		out = append(out, ext...)
	}
	u.own = own
	return out, nil
}

// collect reports the pages of one area, and whether it is registered.
func (u *userfault) collect(a Area, sent *Digest) (_ []Extent, registered bool, err error) {
	for tries := 0; tries < 3 && !a.Huge; tries++ {
		if !u.own.covers(a.Range) {
			a.Whole = true
			if err := uffdRegister(int(u.fd.Fd()), a.Range, uffdModeWP); err != nil {
				if errors.Is(err, unix.ENOMEM) {
					return nil, false, ErrReplaced
				}
				break // the mapping vanished or changed; as long as it stands, it is reported whole
			}
		}
		ext, err := u.scan.collect(a, sent, scanProtect|scanCheckWPAsync)
		if !errors.Is(err, unix.EPERM) {
			return ext, true, err
		}
		u.own = slices.DeleteFunc(slices.Clone(u.own), func(r Range) bool { return r.Start < a.End && a.Start < r.End })
	}
	a.Whole = true
	ext, err := u.scan.collect(a, sent, 0)
	return ext, false, err
}

// scanner asks PAGEMAP_SCAN about areas.
type scanner struct {
	pagemap *os.File
	regions [1024]region
}

// collect reports the pages of an area; flags are those of the scan.
func (s *scanner) collect(a Area, sent *Digest, flags uint64) (out []Extent, err error) {
	q := scan{Range: a.Range, flags: flags, anyOf: pagePresent | pageSwapped, wants: pagePresent | pageSwapped | pagePFNZero}
	if a.File {
		q.inverted, q.mask = pageFile, pageFile
	}
	if a.Whole {
		out, err = s.ask(q, out)
		return fillGaps(a.Range, out), err
	}
	q.mask |= pageWritten
	for _, part := range parts(a.Range, sent) {
		switch q.Range = part.Range; {
		case !part.known:
			out, err = s.ask(q, out)
		case a.File:
			out, err = s.every(part.Range, flags, out)
		default:
			out, err = s.written(part.Range, flags, out)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// classified is the length in bytes from which on it is worth a call to ask whether written pages are there at all.
const classified = 16 * PageSize

// written appends the written pages of anonymous memory in which pages were sent before. The kernel has a fast way to
// answer the mere question for what was written (pagemap_scan_pmd_entry in fs/proc/task_mmu.c). Whether the pages are
// present is asked afterwards, where it pays; what changes in between counts as written the next time.
func (s *scanner) written(r Range, flags uint64, out []Extent) ([]Extent, error) {
	first := len(out)
	out, err := s.ask(scan{Range: r, flags: flags, mask: pageWritten, wants: pageWritten}, out)
	if err != nil {
		return nil, err
	}
	found := slices.Clone(out[first:])
	out = out[:first]
	for _, e := range found {
		if e.Size() < classified {
			out = append(out, Extent{e.Range, Written})
			continue
		}
		const there = pagePresent | pageSwapped
		present, err := s.ask(scan{Range: e.Range, anyOf: there, wants: there | pagePFNZero}, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, fillGaps(e.Range, present)...)
	}
	return out, nil
}

// every appends the written pages of a mapping of a file in which pages were sent before, and, as Absent, all that have no page of
// the program's own.
func (s *scanner) every(r Range, flags uint64, out []Extent) ([]Extent, error) {
	q := scan{Range: r, flags: flags, wants: pageWritten | pagePresent | pageSwapped | pageFile}
	return s.walk(q, out, func(c uint64) (State, bool) {
		switch {
		case c&pageFile != 0 || c&(pagePresent|pageSwapped) == 0:
			return Absent, true
		case c&pageWritten != 0:
			return Written, true
		}
		return Absent, c&pagePresent == 0 // swapped, or a marker
	})
}

// ask runs a query and appends what it finds.
func (s *scanner) ask(q scan, out []Extent) ([]Extent, error) {
	return s.walk(q, out, func(c uint64) (State, bool) {
		if c&(pagePresent|pageSwapped) != 0 && c&pagePFNZero == 0 {
			return Written, true
		}
		return Absent, true
	})
}

// walk runs a query and appends what state makes of the categories that it finds, if it is to be reported.
func (s *scanner) walk(q scan, out []Extent, state func(categories uint64) (State, bool)) ([]Extent, error) {
	for q.Start < q.End {
		n, next, err := q.run(int(s.pagemap.Fd()), s.regions[:])
		if err != nil {
			return nil, err
		}
		for _, r := range s.regions[:n] {
			if st, report := state(r.categories); report {
				out = append(out, Extent{r.Range, st})
			}
		}
		if next <= q.Start {
			break
		}
		q.Start = next
	}
	return out, nil
}

// fillGaps adds Absent extents between those of r.
func fillGaps(r Range, in []Extent) []Extent {
	out := make([]Extent, 0, 2*len(in)+1)
	at := r.Start
	for _, e := range in {
		if at < e.Start {
			out = append(out, Extent{Range{at, e.Start}, Absent})
		}
		out = append(out, e)
		at = e.End
	}
	if at < r.End {
		out = append(out, Extent{Range{at, r.End}, Absent})
	}
	return out
}

// part is a piece of an area of which all chunks are known, or none.
type part struct {
	Range
	known bool
}

// parts splits an area where pages were sent before from where none were.
func parts(r Range, sent *Digest) []part {
	sent.mu.Lock()
	keys := sent.keys(r)
	sent.mu.Unlock()
	var out []part
	at := r.Start
	for i := 0; i < len(keys); {
		j := i + 1
		for j < len(keys) && keys[j] == keys[j-1]+1 {
			j++
		}
		start, end := max(at, keys[i]*chunkSize), min(r.End, (keys[j-1]+1)*chunkSize)
		if at < start {
			out = append(out, part{Range{at, start}, false})
		}
		out = append(out, part{Range{start, end}, true})
		at, i = end, j
	}
	if at < r.End {
		out = append(out, part{Range{at, r.End}, false})
	}
	return out
}
