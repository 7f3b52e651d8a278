package mem

import (
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/remote"
)

// adviceGuardInstall is MADV_GUARD_INSTALL (include/uapi/asm-generic/mman-common.h).
const adviceGuardInstall = 102

// RestoreMarks gives the mappings of a process that is being built what they must not have before: their content, their
// names and their place are final, and the process still has the capabilities with which it was born. In order:
//
//   - NUMA policies, before a lock fills the memory;
//   - protection keys, because they keep the process's own calls out as well;
//   - guard pages, whose content goes away;
//   - locks, which take no guard pages afterwards;
//   - seals, after which nothing can be changed;
//   - the lock of future mappings, so that none of those before was one.
func RestoreMarks(ctx context.Context, c remote.Caller, img *images.Process) error {
	m := &marker{ctx: ctx, caller: c, batch: &remote.Batch{}}
	for _, step := range []func(*images.Process) error{m.policies, m.keys, m.guards, m.locks, m.seals, m.future} {
		if err := step(img); err != nil {
			return err
		}
	}
	return m.flush()
}

// marker collects calls into batches.
type marker struct {
	ctx    context.Context
	caller remote.Caller
	batch  *remote.Batch
	checks []func() error
}

// call adds a call; check says what is wrong with its result. When it is nil, every error is.
func (m *marker) call(check func(*remote.Result) error, what string, nr int, args ...any) error {
	r := m.batch.Try(nr, args...)
	m.checks = append(m.checks, func() error {
		err := r.Err()
		if check != nil {
			err = check(r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
	if m.batch.Len() < maxMarks {
		return nil
	}
	return m.flush()
}

// maxMarks bounds the calls of a batch, so that it fits into the stub's scratch memory.
const maxMarks = 1000

func (m *marker) flush() error {
	if m.batch.Len() == 0 {
		return nil
	}
	err := m.caller.Run(m.ctx, m.batch)
	for i := 0; i < len(m.checks) && err == nil; i++ {
		err = m.checks[i]()
	}
	m.batch, m.checks = &remote.Batch{}, nil
	return err
}

// keys restores protection keys (pkeys(7)). The kernel hands out the lowest free one, also when memory is made executable
// only; so all are taken in order, and those that were free are given back.
func (m *marker) keys(img *images.Process) error {
	allocated := img.Extra.GetPkeys() &^ 1
	used, execOnly := keysInUse(img)
	var executable []*vma.VmaEntry // only
	for _, v := range img.MM.GetVmas() {
		if v.GetProt() == unix.PROT_EXEC && !kernelOwned(v) {
			executable = append(executable, v)
		}
	}
	protect := func(v *vma.VmaEntry) error {
		return m.call(nil, fmt.Sprintf("execute-only memory at 0x%x", v.GetStart()), unix.SYS_MPROTECT, v.GetStart(), v.GetEnd()-v.GetStart(), unix.PROT_EXEC)
	}
	taken := allocated | used
	for key := uint32(1); taken>>key != 0; key++ {
		if key == execOnly {
			if err := protect(executable[0]); err != nil {
				return err
			}
			continue
		}
		expect := func(r *remote.Result) error {
			got, err := r.Value()
			if err != nil {
				return fmt.Errorf("this processor or kernel has too few: %w", err)
			}
			if got != uint64(key) {
				return fmt.Errorf("the kernel gave %d", got)
			}
			return nil
		}
		if err := m.call(expect, fmt.Sprintf("protection key %d", key), unix.SYS_PKEY_ALLOC, 0, 0); err != nil {
			return err
		}
	}
	for _, v := range executable {
		if err := protect(v); err != nil {
			return err
		}
	}
	if err := m.keyed(img, execOnly); err != nil {
		return err
	}
	for key := uint32(1); taken>>key != 0; key++ {
		if allocated>>key&1 == 0 && key != execOnly {
			if err := m.call(nil, fmt.Sprintf("freeing protection key %d", key), unix.SYS_PKEY_FREE, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// keysInUse returns the keys that mappings have, as bits, and the one that the kernel itself has taken for memory that may only
// be executed, or 0: no program can allocate it, so it does not count as allocated.
func keysInUse(img *images.Process) (used, execOnly uint32) {
	eachMarked(img, func(v *vma.VmaEntry, m *imagespb.VmaMark, _ Range) {
		used |= 1 << m.GetPkey()
		if v.GetProt() == unix.PROT_EXEC && img.Extra.GetPkeys()>>m.GetPkey()&1 == 0 {
			execOnly = m.GetPkey()
		}
	})
	return used &^ 1, execOnly
}

// keyed gives mappings their protection keys.
func (m *marker) keyed(img *images.Process, execOnly uint32) (err error) {
	eachMarked(img, func(v *vma.VmaEntry, mark *imagespb.VmaMark, r Range) {
		if err == nil && mark.GetPkey() != 0 && mark.GetPkey() != execOnly {
			err = m.call(nil, fmt.Sprintf("protection key %d of %v", mark.GetPkey(), r), unix.SYS_PKEY_MPROTECT, r.Start, r.Size(), v.GetProt(), mark.GetPkey())
		}
	})
	return err
}

// eachMarked calls fn for the parts of mappings that have marks.
func eachMarked(img *images.Process, fn func(*vma.VmaEntry, *imagespb.VmaMark, Range)) {
	vmas := img.MM.GetVmas()
	i := 0
	for _, mark := range img.Extra.GetVmaMarks() {
		for i < len(vmas) && vmas[i].GetEnd() <= mark.GetStart() {
			i++
		}
		for _, v := range vmas[i:] {
			if v.GetStart() >= mark.GetEnd() {
				break
			}
			fn(v, mark, Range{max(v.GetStart(), mark.GetStart()), min(v.GetEnd(), mark.GetEnd())})
		}
	}
}

func (m *marker) guards(img *images.Process) error {
	for _, g := range img.Extra.GetGuards() {
		what := fmt.Sprintf("guard pages at 0x%x (MADV_GUARD_INSTALL; in shared memory and files since Linux 6.15)", g.GetStart())
		if err := m.call(nil, what, unix.SYS_MADVISE, g.GetStart(), g.GetEnd()-g.GetStart(), adviceGuardInstall); err != nil {
			return err
		}
	}
	return nil
}

// locks locks memory. The lock is set before the memory is faulted in, and stays when not all of it can be: where there is
// no access, a guard page or no file, as it was at the source.
func (m *marker) locks(img *images.Process) error {
	lock := func(r Range, flags int, check func(*remote.Result) error) error {
		return m.call(check, fmt.Sprintf("locking memory at %v (mlock)", r), unix.SYS_MLOCK2, r.Start, r.Size(), flags)
	}
	for _, r := range lockedRanges(img) {
		if err := lock(r, unix.MLOCK_ONFAULT, nil); err != nil {
			return err
		}
	}
	for _, r := range withoutOnFault(img, lockedRanges(img)) {
		err := lock(r, 0, func(r *remote.Result) error {
			if err := r.Err(); !errors.Is(err, unix.ENOMEM) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lockedRanges lists the memory that is locked, adjacent mappings as one.
func lockedRanges(img *images.Process) []Range {
	var out rangeSet
	for _, v := range img.MM.GetVmas() {
		if v.GetFlags()&mapLocked != 0 && !kernelOwned(v) {
			out.append(rangeOf(v))
		}
	}
	return out
}

// withoutOnFault returns the part of the locked memory that was locked as a whole.
func withoutOnFault(img *images.Process, locked []Range) []Range {
	var onFault []Range
	for _, m := range img.Extra.GetVmaMarks() {
		if m.GetLockOnFault() {
			onFault = append(onFault, Range{m.GetStart(), m.GetEnd()})
		}
	}
	return without(locked, onFault)
}

func (m *marker) seals(img *images.Process) error {
	for _, mark := range img.Extra.GetVmaMarks() {
		if !mark.GetSealed() {
			continue
		}
		what := fmt.Sprintf("sealing memory at 0x%x (mseal, since Linux 6.10)", mark.GetStart())
		if err := m.call(nil, what, unix.SYS_MSEAL, mark.GetStart(), mark.GetEnd()-mark.GetStart(), 0); err != nil {
			return err
		}
	}
	return nil
}

// future makes the mappings that are yet to come locked, by mlockall(2).
func (m *marker) future(img *images.Process) error {
	if flags := img.Extra.GetLockFuture(); flags != 0 {
		return m.call(nil, "locking of future mappings (mlockall)", unix.SYS_MLOCKALL, flags)
	}
	return nil
}
