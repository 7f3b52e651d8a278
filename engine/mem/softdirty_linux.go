package mem

import (
	"context"
	"errors"
	"fmt"
	"os"

	"migrate/engine/procfs"
)

// softDirty tracks writes by the soft-dirty bits of page tables (Documentation/admin-guide/mm/soft-dirty.rst), which
// kernels before 6.7 have. Reading the bits and clearing them are two steps, so the program is stopped between them;
// a write in between would be lost. New mappings are born dirty. Pages that the program gave back are recognised by not being
// present.
type softDirty struct {
	pid     int
	stopped func(ctx context.Context, fn func() error) error
	pagemap *os.File
	clear   *os.File
	program string // what ran when tracking began
}

// NewSoftDirty returns a Tracker by soft-dirty bits. stopped runs fn while no thread of the process runs; it is called by
// Collect, and just runs fn when the process is stopped already.
func NewSoftDirty(pid int, stopped func(ctx context.Context, fn func() error) error) Tracker {
	return &softDirty{pid: pid, stopped: stopped}
}

func (*softDirty) Name() string { return "soft-dirty" }

func (s *softDirty) Start(context.Context) (err error) {
	if err := s.Close(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tracking writes of pid %d: %w", s.pid, err), s.Close())
		}
	}()
	if s.pagemap, err = procfs.Host.Open(s.pid, "pagemap"); err != nil {
		return err
	}
	if s.program, err = programOf(s.pid); err != nil {
		return err
	}
	s.clear, err = os.OpenFile(procfs.Host.Path(s.pid, "clear_refs"), os.O_WRONLY, 0)
	return err
}

// programOf tells one program from the next that the process runs: by where the kernel put its arguments, which is
// random for each exec, and its file.
func programOf(pid int) (string, error) {
	st, err := procfs.Host.Stat(pid)
	if err != nil {
		return "", err
	}
	exe, err := procfs.Host.Link(pid, "exe")
	return fmt.Sprintf("%s %x %x", exe, st.StartStack, st.ArgStart), err
}

func (s *softDirty) Close() error {
	var errs []error
	for _, f := range []*os.File{s.pagemap, s.clear} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	s.pagemap, s.clear = nil, nil
	return errors.Join(errs...)
}

func (s *softDirty) Collect(ctx context.Context, areas []Area, _ *Digest) ([]Extent, error) {
	if s.clear == nil {
		return nil, errors.New("tracking has not been started")
	}
	var out []Extent
	err := s.stopped(ctx, func() error {
		if now, err := programOf(s.pid); err != nil || now != s.program {
			return errors.Join(err, ErrReplaced)
		}
		for _, a := range areas {
			ext, err := population(s.pagemap, a, func(entry uint64) bool { return entry&pmSoftDirty != 0 })
			if err != nil {
				return err
			}
			out = append(out, ext...)
		}
		const softDirtyBits = "4" // CLEAR_REFS_SOFT_DIRTY (fs/proc/task_mmu.c)
		_, err := s.clear.WriteAt([]byte(softDirtyBits), 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pid %d: %w", s.pid, err)
	}
	return out, nil
}
