//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// ended calls fn while a process lives in the pid namespace of the tree, and ends it. It has the id vpid, or any other if that
// one is taken.
func (s *Skeleton) ended(ctx context.Context, vpid int, fn func(pid, vpid int) error) (err error) {
	by := s.parent
	if s.isContainer() {
		by = s.procs[1].trap
	}
	args := remote.CloneArgs{}
	if vpid != 0 {
		args.IDs = []int{vpid}
	}
	trap, err := by.Clone(ctx, args)
	if errors.Is(err, unix.EEXIST) {
		trap, err = by.Clone(ctx, remote.CloneArgs{})
	}
	if err != nil {
		return fmt.Errorf("a process that stands for one that has ended: %w", err)
	}
	st, err := procfs.Host.Status(trap.PID())
	if err == nil && len(st.NSPID) == 0 {
		err = fmt.Errorf("process %d: its status tells no id", trap.PID())
	}
	if err == nil {
		vpid = st.NSPID[len(st.NSPID)-1]
		err = fn(trap.PID(), vpid)
	}
	end := unix.Kill(trap.PID(), unix.SIGKILL)
	if end == nil {
		_, end = s.tracer.Wait(ctx, trap.TID())
	}
	return errors.Join(err, end, trap.Close(), reap(ctx, by, vpid))
}
