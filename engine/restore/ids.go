//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// reapTime bounds how long a restore waits for ids of processes that have ended and are not reaped yet. The processes of
// a tree that was dumped are orphans, and some systems' pid 1 takes its time.
const reapTime = 15 * time.Second

// awaitIDs returns once the ids that the tree is to have are free in the pid namespace of this process. Those of a process
// that runs never get free; those of one that has ended do when its parent reaps it.
func awaitIDs(ctx context.Context, cp *images.Checkpoint) error {
	ctx, cancel := context.WithTimeoutCause(ctx, reapTime, fmt.Errorf("its parent has not reaped it within %v", reapTime))
	defer cancel()
	if cp.Header.GetNamespaces().GetOwn()&unix.CLONE_NEWPID != 0 { // all ids inside are free; that of the root outside need not be
		if root := int(cp.Header.GetNamespaces().GetRootPid()); root > 0 {
			_ = awaitID(ctx, root)
		}
		return nil
	}
	for _, e := range cp.Tree {
		if err := awaitID(ctx, int(e.GetPid())); err != nil {
			return fmt.Errorf("process %d: the id is taken: %w", e.GetPid(), err)
		}
	}
	return nil
}

func awaitID(ctx context.Context, pid int) error {
	if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
		return nil
	}
	st, err := procfs.Host.Stat(pid)
	if errors.Is(err, procfs.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.State != 'Z' && st.State != 'X' {
		return fmt.Errorf("%q runs under it; end that, or restore into a pid namespace of its own (--pid-namespace new)", st.Comm)
	}
	return ns.AwaitReaped(ctx, pid)
}
