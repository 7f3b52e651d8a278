//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/files"
	"migrate/engine/remote"
)

// caller makes calls in a process of the skeleton.
func (s *Skeleton) caller(vpid int) remote.Caller {
	if p := s.procs[vpid]; p != nil {
		return p.trap
	}
	return nil
}

// helper makes a process that has an id of one that has ended, beside the tree's first process, whose memory it shares. The
// kernel remembers ids of processes in places such as SO_PEERCRED.
func (s *Skeleton) helper(ctx context.Context, vpid int) (files.Helper, error) {
	first := s.procs[s.order[0]]
	trap, err := first.trap.Clone(ctx, remote.CloneArgs{Flags: unix.CLONE_VM, IDs: []int{vpid}})
	if err != nil {
		return files.Helper{}, err
	}
	end := func() error {
		var leave, reap remote.Batch
		leave.Call(unix.SYS_EXIT, 0)
		if err := trap.Run(ctx, &leave); err != nil && !errors.Is(err, remote.ErrGone) {
			return fmt.Errorf("ending the process in the place of process %d: %w", vpid, err)
		}
		reap.Call(unix.SYS_WAIT4, vpid, 0, unix.WALL, 0)
		return errors.Join(trap.Close(), first.trap.Run(ctx, &reap))
	}
	return files.Helper{Caller: trap, End: end}, nil
}
