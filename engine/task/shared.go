//go:build linux

package task

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images/imagespb"
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
		for _, typ := range []int{kcmpFiles} {
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

// FindShared notes what the processes of a tree share. kcmp gives an order, so sorting brings equals together, and it
// takes n log n calls.
func FindShared(tree []*engine.Process) error {
	place := make(map[int]int, len(tree))
	for i, p := range tree {
		place[p.PID] = i
		p.Shared = engine.Shared{}
	}
	sorted := slices.Clone(tree)
	for _, typ := range []int{kcmpVM, kcmpFiles, kcmpFS, kcmpSighand} {
		for {
			groups, gone, err := groupByShared(sorted, typ)
			if err != nil {
				return err
			}
			if len(gone) == 0 {
				for _, g := range groups {
					noteShared(g, place, typ)
				}
				break
			}
			// Ended, and reaped, since the tree was listed: what was compared with them says nothing.
			sorted = slices.DeleteFunc(sorted, func(p *engine.Process) bool { return gone[p] })
		}
	}
	return nil
}

// groupByShared sorts processes and cuts them into groups that share a thing. gone are those that could not be compared, because
// they are no more; if there are any, the groups are worth nothing.
func groupByShared(procs []*engine.Process, typ int) (groups [][]*engine.Process, gone map[*engine.Process]bool, failed error) {
	gone = map[*engine.Process]bool{}
	compare := func(a, b *engine.Process) int {
		if a == b {
			return 0
		}
		r, err := kcmp(a.PID, b.PID, typ)
		if errors.Is(err, unix.ESRCH) {
			noteGone(gone, a, b)
			return 0
		}
		if err != nil {
			failed = errors.Join(failed, err)
		}
		return []int{0, -1, 1, 0}[r&3]
	}
	slices.SortStableFunc(procs, compare)
	for from := 0; from < len(procs) && failed == nil; {
		to := from + 1
		for to < len(procs) && compare(procs[from], procs[to]) == 0 {
			to++
		}
		groups = append(groups, procs[from:to])
		from = to
	}
	return groups, gone, failed
}

// noteGone notes which of two processes that could not be compared is gone.
func noteGone(gone map[*engine.Process]bool, both ...*engine.Process) {
	for _, p := range both {
		if errors.Is(unix.Kill(p.PID, 0), unix.ESRCH) {
			gone[p] = true
		}
	}
}

// noteShared notes that processes share a thing. Zombies have given up what they had, and all compare as equal to each
// other: they have nothing.
func noteShared(group []*engine.Process, place map[int]int, typ int) {
	if len(group) < 2 || ended(group[0].PID) {
		return
	}
	first := slices.MinFunc(group, func(a, b *engine.Process) int { return place[a.PID] - place[b.PID] })
	for _, p := range group {
		*sharedID(&p.Shared, typ) = first.VPID
	}
}

func sharedID(s *engine.Shared, typ int) *int {
	return map[int]*int{kcmpVM: &s.VM, kcmpFiles: &s.Files, kcmpFS: &s.FS, kcmpSighand: &s.Sighand}[typ]
}

// SharedStates are the records of what FindShared has noted.
func SharedStates(tree []*engine.Process) []*imagespb.SharedState {
	var out []*imagespb.SharedState
	for _, p := range tree {
		if p.Shared != (engine.Shared{}) {
			out = append(out, &imagespb.SharedState{Pid: uint32(p.VPID), Vm: uint32(p.Shared.VM), Files: uint32(p.Shared.Files),
				Fs: uint32(p.Shared.FS), Sighand: uint32(p.Shared.Sighand)})
		}
	}
	return out
}

// ReadShared is the inverse of SharedStates.
func ReadShared(h *imagespb.Header) map[int]engine.Shared {
	out := make(map[int]engine.Shared, len(h.GetShared()))
	for _, s := range h.GetShared() {
		out[int(s.GetPid())] = engine.Shared{VM: int(s.GetVm()), Files: int(s.GetFiles()), FS: int(s.GetFs()), Sighand: int(s.GetSighand())}
	}
	return out
}

// sharedBetween names what is shared in a way that cannot be made again: a thing is shared by birth alone, so a process
// has it from its parent. It also names what waitingInVfork does.
func sharedBetween(fs procfs.FS, tree []*engine.Process) ([]engine.Obstacle, error) {
	if err := FindShared(tree); err != nil {
		return nil, err
	}
	var found []engine.Obstacle
	byID := make(map[int]*engine.Process, len(tree))
	for _, p := range tree {
		byID[p.VPID] = p
		for _, typ := range []int{kcmpVM, kcmpFiles, kcmpFS, kcmpSighand} {
			first := *sharedID(&p.Shared, typ)
			if !p.Second(first) {
				continue
			}
			parent := byID[p.VPPID]
			switch {
			case parent == nil || *sharedID(&parent.Shared, typ) != first:
				found = append(found, engine.Obstacle{PID: p.PID, Kind: "shared-state", Where: "the process",
					Reason: fmt.Sprintf("it shares its %s with pid %d, which is not its parent", kcmpNames[typ], byID[first].PID)})
			}
		}
	}
	return append(found, waitingInVfork(fs, tree)...), nil
}

// waitingInVfork names processes that wait for a child in vfork(2), or in clone(2) with CLONE_VFORK, which need not share
// memory with it: no tracer can stop them there.
func waitingInVfork(fs procfs.FS, tree []*engine.Process) []engine.Obstacle {
	children := map[int][]*engine.Process{}
	for _, p := range tree {
		children[p.VPPID] = append(children[p.VPPID], p)
	}
	var found []engine.Obstacle
	for _, p := range tree {
		if len(children[p.VPID]) == 0 || !vforking(fs, p) {
			continue
		}
		child := "a child of it"
		if len(children[p.VPID]) == 1 {
			child = fmt.Sprintf("pid %d", children[p.VPID][0].PID)
		}
		found = append(found, engine.Obstacle{PID: p.PID, Kind: "shared-state", Where: "the process",
			Reason: fmt.Sprintf("it waits in vfork(2) until %s executes a program or ends", child), Remedy: "try again when it has", Passing: true})
	}
	return found
}

// vforking reports whether a thread of a process is in the uninterruptible part of a clone(2) or vfork(2).
func vforking(fs procfs.FS, p *engine.Process) bool {
	for _, th := range p.Threads {
		st, err := fs.ThreadStat(p.PID, th.TID)
		if err != nil || st.State != 'D' {
			continue
		}
		call, err := fs.Bytes(p.PID, "task", th.TID, "syscall")
		if err != nil {
			continue
		}
		nr, _, _ := strings.Cut(string(call), " ")
		if n, err := strconv.Atoi(nr); err == nil && slices.Contains(vforkCalls, n) {
			return true
		}
	}
	return false
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
