//go:build linux

package dump

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"migrate/engine"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// Errors of finding a tree; match with errors.Is.
var (
	ErrNoProcess    = errors.New("there is no such process")
	ErrKernelThread = errors.New("it is a kernel thread")
	ErrEnded        = errors.New("it has ended, and its parent has not waited for it")
	ErrSelf         = errors.New("it is this program or an ancestor of it")
	ErrEmptyTree    = errors.New("no process is left in the workload")
)

// errEnding means that a process has no memory any more and is no zombie yet, or is just being reaped. It matches procfs.ErrGone.
var errEnding = fmt.Errorf("the process is ending: %w", procfs.ErrGone)

// maxTree bounds the processes of one tree.
const maxTree = 1 << 16

// Target names the tree to be dumped: a process with all its descendants or, when Init is set, everything that runs
// under that pid 1 of a pid namespace, orphans included, but not the pid 1 itself.
type Target struct {
	PID  int
	Init int
}

// findTree lists the processes of the tree, parents before their children, children in the order of their birth. On a
// running tree the answer is a snapshot; on a stopped one it is exact, if none of those that were left out is ending: their parents
// still have them as children.
func findTree(fs procfs.FS, t Target) (tree []*engine.Process, ending []int, err error) {
	roots, parent := []int{t.PID}, 0
	if t.Init != 0 {
		var err error
		parent = 1
		roots, err = children(fs, t.Init)
		if errors.Is(err, procfs.ErrGone) {
			err = ErrEmptyTree
		}
		if err != nil {
			return nil, nil, fmt.Errorf("pid 1 of the workload (pid %d): %w", t.Init, err)
		}
		if len(roots) == 0 {
			return nil, nil, fmt.Errorf("pid 1 of the workload (pid %d): %w", t.Init, ErrEmptyTree)
		}
	}
	for _, root := range roots {
		sub, left, err := subtree(fs, root, parent)
		if t.Init == 0 && err == nil && len(sub) == 0 {
			err = fmt.Errorf("pid %d: %w", root, ErrNoProcess)
		}
		if t.Init == 0 && err == nil && sub[0].EndedLeader == 0 {
			if st, gone := fs.Status(root); gone != nil || st.State == 'Z' {
				err = fmt.Errorf("pid %d: %w", root, ErrEnded)
			}
		}
		if err != nil {
			return nil, nil, err
		}
		tree, ending = append(tree, sub...), append(ending, left...)
	}
	if len(tree) == 0 { // orphans that have ended meanwhile
		return nil, nil, fmt.Errorf("pid 1 of the workload (pid %d): %w", t.Init, ErrEmptyTree)
	}
	return tree, ending, nil
}

// find lists the tree. One that is to have a terminal of its own is described as if its root had begun a session: a session whose
// leader stays behind can have no terminal (disassociate_ctty in drivers/tty/tty_jobctrl.c).
func (s *Source) find() (tree []*engine.Process, ending []int, err error) {
	tree, ending, err = findTree(s.fs, s.target)
	if err != nil || !s.opts.NewTerminals || s.target.Init != 0 {
		return tree, ending, err
	}
	root := *tree[0]
	led := slices.ContainsFunc(tree, func(p *engine.Process) bool { return p.VPID == root.VSID })
	inside := slices.ContainsFunc(tree, func(p *engine.Process) bool { return p.VPID == root.VPGID })
	if led {
		return tree, ending, nil
	}
	for _, p := range tree {
		if p.VSID != root.VSID {
			continue
		}
		p.VSID = root.VPID
		if p.VPGID == root.VPGID && !inside || p.PID == root.PID {
			p.VPGID = root.VPID
		}
	}
	return tree, ending, nil
}

// subtree is a process with all its descendants but those that have ended or are ending, and so may be empty; rootParent is what the
// process itself sees as its parent.
func subtree(fs procfs.FS, root, rootParent int) (tree []*engine.Process, ending []int, err error) {
	type task struct{ pid, vppid int }
	for queue := []task{{root, rootParent}}; len(queue) > 0; queue = queue[1:] {
		pid := queue[0].pid
		p, err := describe(fs, pid)
		if errors.Is(err, procfs.ErrGone) {
			if errors.Is(err, errEnding) {
				ending = append(ending, pid)
			}
			continue // else it ended between the listing and now
		}
		if err != nil {
			return nil, nil, err
		}
		below, err := children(fs, pid)
		if err != nil && !errors.Is(err, procfs.ErrGone) {
			return nil, nil, err
		}
		p.VPPID = queue[0].vppid
		tree = append(tree, p)
		for _, c := range below {
			queue = append(queue, task{c, p.VPID})
		}
		if len(tree)+len(queue) > maxTree {
			return nil, nil, fmt.Errorf("pid %d: the tree has more than %d processes", root, maxTree)
		}
	}
	return tree, ending, nil
}

// children lists the children of all threads of a process.
func children(fs procfs.FS, pid int) ([]int, error) {
	tids, err := fs.Tasks(pid)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, tid := range tids {
		c, err := fs.Children(pid, tid)
		if err != nil && !errors.Is(err, procfs.ErrGone) {
			return nil, err
		}
		all = append(all, c...)
	}
	return all, nil
}

// describe reads a process's ids, as its own pid namespace knows them, and its threads, the leader first.
func describe(fs procfs.FS, pid int) (*engine.Process, error) {
	st, err := fs.Status(pid)
	if err != nil {
		return nil, err
	}
	if st.VMSize == 0 && st.State != 'Z' {
		stat, err := fs.Stat(pid)
		if err != nil {
			return nil, err
		}
		if st.KThread || stat.Flags&procfs.FlagKThread != 0 {
			return nil, fmt.Errorf("pid %d (%s): %w", pid, st.Name, ErrKernelThread)
		}
		return nil, fmt.Errorf("pid %d (%s): %w", pid, st.Name, errEnding)
	}
	p := &engine.Process{PID: pid, VPID: last(st.NSTGID, pid), VPGID: last(st.NSPGID, 0), VSID: last(st.NSSID, 0)}
	return p, listThreads(fs, p, st.State == 'Z')
}

// listThreads fills in the threads of a process, whose leader has ended or not.
func listThreads(fs procfs.FS, p *engine.Process, ended bool) error {
	tids, err := fs.Tasks(p.PID)
	if err != nil {
		return err
	}
	leader := -1
	for _, tid := range tids {
		vtid := p.VPID
		if tid == p.PID {
			leader = len(p.Threads)
		} else {
			ts, err := fs.ThreadStatus(p.PID, tid)
			if errors.Is(err, procfs.ErrGone) {
				continue
			}
			if err != nil {
				return err
			}
			vtid = last(ts.NSPID, tid)
		}
		p.Threads = append(p.Threads, engine.Thread{TID: tid, VTID: vtid})
	}
	if leader < 0 {
		return fmt.Errorf("pid %d: %w", p.PID, procfs.ErrGone)
	}
	p.Threads[0], p.Threads[leader] = p.Threads[leader], p.Threads[0]
	if ended && len(p.Threads) > 1 {
		p.Threads = p.Threads[1:]
		p.EndedLeader, p.PID = p.PID, p.Threads[0].TID
	}
	return nil
}

// last is the innermost id of a list of NSpid and the like.
func last(ids []int, otherwise int) int {
	if len(ids) == 0 {
		return otherwise
	}
	return ids[len(ids)-1]
}

// minAge is how old a process must be to be copied while its tree runs. A shell's commands are born and gone within one
// round; those that live when the tree is stopped are copied then.
const minAge = 200 * time.Millisecond

// clockTick is the unit of times in /proc/PID/stat (USER_HZ, proc_pid_stat(5)), the same on all processors that are supported.
const clockTick = 10 * time.Millisecond

// young tells a process that is not old enough, or has ended.
func (s *Source) young(p *engine.Process) bool {
	_, now, err := ns.Clocks()
	st, err2 := s.fs.Stat(p.PID)
	return p.VPPID > 1 && err == nil && (err2 != nil || tooYoung(st, now))
}

// tooYoung compares a process's birth with the time since boot.
func tooYoung(st *procfs.Stat, now time.Duration) bool {
	return now-time.Duration(st.StartTime)*clockTick < minAge
}

// leaveOutYoung takes the youngest processes, and what they have born, from the list of the tree. Its roots stay.
func (s *Source) leaveOutYoung() error {
	_, now, err := ns.Clocks()
	if err != nil {
		return err
	}
	here := map[int]bool{}
	var kept []*engine.Process
	for _, p := range s.procs {
		root := p.VPPID <= 1
		if !root && !here[p.VPPID] {
			continue
		}
		st, err := s.fs.Stat(p.PID)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return err
		}
		if root || !tooYoung(st, now) {
			kept = append(kept, p)
			here[p.VPID] = true
		}
	}
	s.procs = kept
	return nil
}
