//go:build linux

package task

import (
	"errors"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/procfs"
)

// Types of kcmp(2).
const (
	kcmpVM      = 1
	kcmpFiles   = 2
	kcmpFS      = 3
	kcmpSighand = 4
)

var kcmpNames = map[int]string{
	kcmpVM: "address space", kcmpFiles: "descriptor table", kcmpFS: "working directory, root and umask", kcmpSighand: "signal handlers",
}

// kcmp compares an object of two threads: 0 equal, 1 and 2 an order without meaning, 3 not comparable.
func kcmp(a, b, typ int) (int, error) {
	r, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), uintptr(typ), 0, 0, 0)
	if e != 0 {
		return 0, fmt.Errorf("kcmp(%d, %d): %w", a, b, e)
	}
	return int(r), nil
}

// checkShared names threads that do not share with their process what threads share. The ids must be those of this
// program's pid namespace.
func checkShared(c *checker) error {
	var failed error
	for tid := range c.tasks {
		if tid == c.p.PID {
			continue
		}
		for _, typ := range []int{kcmpFiles, kcmpFS} {
			r, err := kcmp(c.p.PID, tid, typ)
			if errors.Is(err, unix.ESRCH) {
				continue // it ended
			}
			if err != nil {
				failed = errors.Join(failed, err)
			} else if r != 0 {
				c.refuse(fmt.Sprintf("thread %d", tid), fmt.Sprintf("it does not share its process's %s (unshare(2))", kcmpNames[typ]), "")
			}
		}
	}
	return failed
}

// sharedBetween names processes of a tree that share what only threads may share. kcmp gives an order, so sorting
// brings equals together, and it takes n log n calls.
func sharedBetween(tree []*engine.Process) ([]engine.Obstacle, error) {
	var found []engine.Obstacle
	for _, typ := range []int{kcmpVM, kcmpFiles, kcmpFS, kcmpSighand} {
		pids := make([]int, len(tree))
		for i, p := range tree {
			pids[i] = p.PID
		}
		var failed error
		compare := func(a, b int) int {
			r, err := kcmp(a, b, typ)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				failed = errors.Join(failed, err)
			}
			return r
		}
		sort.Slice(pids, func(i, j int) bool { return compare(pids[i], pids[j]) == 1 })
		for i := 1; i < len(pids) && failed == nil; i++ {
			// Zombies have given up what they had, and all compare as equal to each other: both have nothing.
			if compare(pids[i-1], pids[i]) != 0 || ended(pids[i]) || ended(pids[i-1]) {
				continue
			}
			found = append(found, engine.Obstacle{PID: pids[i], Kind: "shared-state", Where: "the process",
				Reason: fmt.Sprintf("it shares its %s with pid %d (clone(2), or a vfork that is in progress)", kcmpNames[typ], pids[i-1])})
		}
		if failed != nil {
			return nil, failed
		}
	}
	return found, nil
}

// sharedWithParent names what the root of a tree shares with its parent, which stays behind.
func sharedWithParent(fs procfs.FS, root *engine.Process) ([]engine.Obstacle, error) {
	st, err := fs.Stat(root.PID)
	if err != nil {
		return nil, err
	}
	if st.PPID == 0 || st.State == 'Z' || ended(st.PPID) {
		return nil, nil
	}
	var found []engine.Obstacle
	for _, typ := range []int{kcmpVM, kcmpFiles, kcmpFS, kcmpSighand} {
		r, err := kcmp(root.PID, st.PPID, typ)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPERM) {
			continue // it ended, or is not ours to look at
		}
		if err != nil {
			return nil, err
		}
		if r == 0 {
			found = append(found, engine.Obstacle{PID: root.PID, Kind: "shared-state", Where: "the process",
				Reason: fmt.Sprintf("it shares its %s with its parent, pid %d, which is not part of the tree", kcmpNames[typ], st.PPID)})
		}
	}
	return found, nil
}
