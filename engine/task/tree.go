package task

import (
	"fmt"
	"slices"
	"strings"
)

// Node is a process of a tree that is to be built, with ids as the tree sees them.
type Node struct {
	PID, PPID int // PPID is 0 or 1 for a child of the pid namespace's pid 1, which is not part of the tree
	SID, PGID int // 0: that of pid 1, from outside the pid namespace
	Zombie    bool
}

// Op is what a Step does.
type Op uint8

const (
	// Fork: By makes the process PID. With Sibling it does so by CLONE_PARENT, so that the new process becomes a child
	// of By's own parent.
	Fork Op = iota + 1
	// SetSID: PID calls setsid(2).
	SetSID
	// SetPGID: PID moves itself into the process group PGID, which may be its own.
	SetPGID
	// End: the helper PID ends, and By waits for it.
	End
)

func (o Op) String() string {
	names := [...]string{"none", "fork", "setsid", "setpgid", "end"}
	if int(o) < len(names) {
		return names[o]
	}
	return "unknown"
}

// A Step is one thing to do while a tree is built. Steps are to be done one after another.
type Step struct {
	Op      Op
	PID     int
	By      int // of Fork and End: a process, or 1 for the pid namespace's pid 1
	Sibling bool
	PGID    int
	// Helper marks a process that is no part of the tree: it stands for a leader of a session or a process group that
	// has ended, keeps its number while the members are born, and ends. It is forked without an exit signal.
	Helper bool
}

// String prints the step as golden files hold it, such as "fork 7 by 3 sibling".
func (s Step) String() string {
	switch s.Op {
	case Fork:
		out := fmt.Sprintf("fork %d by %d", s.PID, s.By)
		if s.Sibling {
			out += " sibling"
		}
		if s.Helper {
			out += " helper"
		}
		return out
	case SetPGID:
		return fmt.Sprintf("setpgid %d to %d", s.PID, s.PGID)
	case End:
		return fmt.Sprintf("end %d by %d", s.PID, s.By)
	}
	return fmt.Sprintf("%v %d", s.Op, s.PID)
}

// planner is one run of PlanTree.
type planner struct {
	nodes map[int]*planned
	order []int // as given, helpers first
	steps []Step
}

// planned is a node with what is known of it while the plan is made.
type planned struct {
	Node
	helper bool
	birth  int // the session that it must be born into; anySession if it does not matter
	now    int // its session so far
	built  bool
	by     int
}

const anySession = -1

// PlanTree finds an order in which a tree can be built: who makes whom, before or after which setsid, and who joins
// which group. The rules are the kernel's: a session is inherited at birth, and left only by becoming the leader of
// a new one; a group can be joined only in one's own session while it has a member; a parent is the maker, or with
// CLONE_PARENT the maker's parent, but pid 1 has no siblings. Parents must stand before their children. The error
// names a process that cannot be built and why.
func PlanTree(tree []Node) ([]Step, error) {
	p := &planner{nodes: map[int]*planned{}}
	if err := p.add(tree); err != nil {
		return nil, err
	}
	if err := p.addLeaders(tree); err != nil {
		return nil, err
	}
	if err := p.births(); err != nil {
		return nil, err
	}
	if err := p.build(); err != nil {
		return nil, err
	}
	p.groups()
	p.endHelpers()
	return p.steps, nil
}

func (p *planner) add(tree []Node) error {
	for _, n := range tree {
		if n.PPID == 0 {
			n.PPID = 1
		}
		switch {
		case n.PID <= 1:
			return fmt.Errorf("pid %d: it cannot be part of a tree that is built under a pid 1", n.PID)
		case p.nodes[n.PID] != nil:
			return fmt.Errorf("pid %d: stands twice in the tree", n.PID)
		case n.PPID != 1 && p.nodes[n.PPID] == nil:
			return fmt.Errorf("pid %d: its parent %d is not in the tree before it", n.PID, n.PPID)
		case n.SID == n.PID && n.PGID != n.PID:
			return fmt.Errorf("pid %d: leads a session but not its own process group", n.PID)
		case n.SID < 0 || n.PGID < 0 || n.SID == 1 || n.PGID == 1:
			return fmt.Errorf("pid %d: session %d and group %d: pid 1 leads neither", n.PID, n.SID, n.PGID)
		}
		p.nodes[n.PID] = &planned{Node: n, birth: anySession}
		p.order = append(p.order, n.PID)
	}
	return nil
}

// addLeaders adds a helper for each session and group whose leader is not in the tree.
func (p *planner) addLeaders(tree []Node) error {
	var helpers []int
	helper := func(n Node) {
		p.nodes[n.PID] = &planned{Node: n, helper: true, birth: anySession}
		helpers = append(helpers, n.PID)
	}
	for _, n := range tree {
		if n.SID != 0 && p.nodes[n.SID] == nil {
			helper(Node{PID: n.SID, PPID: 1, SID: n.SID, PGID: n.SID})
		}
	}
	for _, n := range tree {
		if n.SID != 0 && p.nodes[n.SID].SID != n.SID {
			return fmt.Errorf("pid %d: its session %d carries the number of a process that has since joined session %d", n.PID, n.SID, p.nodes[n.SID].SID)
		}
		if n.PGID == 0 {
			if n.SID != 0 {
				return fmt.Errorf("pid %d: its group comes from outside the pid namespace and its session %d does not", n.PID, n.SID)
			}
			continue
		}
		if p.nodes[n.PGID] == nil {
			// It is a child of whoever can make it; by PPID 0 it says that it does not care.
			helper(Node{PID: n.PGID, PPID: 0, SID: n.SID, PGID: n.PGID})
		}
		if l := p.nodes[n.PGID]; l.SID != n.SID {
			return fmt.Errorf("pid %d: its group %d belongs to session %d, and itself to session %d", n.PID, n.PGID, l.SID, n.SID)
		}
	}
	p.order = append(helpers, p.order...)
	return nil
}

// births finds the session that each process must be born into. For a session's leader it is the one that those of its
// children need which were born before it became the leader.
func (p *planner) births() error {
	for _, pid := range p.order {
		if n := p.nodes[pid]; n.SID != pid {
			n.birth = n.SID
		}
	}
	// From the leaves up, since a leader's need may be its parent's.
	for _, pid := range slices.Backward(p.order) {
		n := p.nodes[pid]
		parent := p.nodes[n.PPID]
		if parent == nil || n.birth == anySession || n.birth == parent.SID || parent.SID != parent.PID {
			continue
		}
		if p.sibling(n) != nil {
			continue // it may be made by one of its siblings
		}
		if parent.birth != anySession && parent.birth != n.birth {
			return fmt.Errorf("pid %d: its session %d is neither its parent's (%d) nor, like that of another child, the one in which its parent was born (%d)", pid, n.birth, parent.SID, parent.birth)
		}
		parent.birth = n.birth
	}
	return nil
}

// sibling finds another child of the same parent that will be in the session into which n must be born.
func (p *planner) sibling(n *planned) *planned {
	if n.PPID == 1 && n.birth == 0 {
		return nil
	}
	for _, pid := range p.order {
		if s := p.nodes[pid]; s != n && s.PPID == n.PPID && s.SID == n.birth {
			return s
		}
	}
	return nil
}

// build forks whatever can be forked; only when nothing can, a leader becomes one.
func (p *planner) build() error {
	for left := len(p.order); left > 0; {
		progress := false
		for _, pid := range p.order {
			n := p.nodes[pid]
			if n.built {
				continue
			}
			by, sibling, ok := p.maker(n)
			if !ok {
				continue
			}
			n.built, n.by, progress = true, by, true
			n.now = p.session(by)
			if sibling {
				n.by = n.PPID
			}
			left--
			p.steps = append(p.steps, Step{Op: Fork, PID: pid, By: by, Sibling: sibling, Helper: n.helper})
		}
		if !progress && !p.lead() {
			return p.stuck()
		}
	}
	for p.lead() {
	}
	return nil
}

// session is the session that a process is in so far; that of pid 1 is 0.
func (p *planner) session(pid int) int {
	if n := p.nodes[pid]; n != nil {
		return n.now
	}
	return 0
}

// maker finds who can make a process now.
func (p *planner) maker(n *planned) (by int, sibling, ok bool) {
	fits := func(pid int) bool { return n.birth == anySession || p.session(pid) == n.birth }
	parent := p.nodes[n.PPID]
	if n.PPID != 0 && (parent == nil || parent.built) && fits(n.PPID) {
		return n.PPID, false, true
	}
	for _, pid := range p.order {
		m := p.nodes[pid]
		if m == n || !m.built || !fits(pid) || m.Zombie && n.PPID == 0 {
			continue
		}
		switch {
		case n.PPID == 0: // a helper, which may be anybody's child
			return pid, false, true
		case m.PPID == n.PPID:
			return pid, true, true
		}
	}
	return 0, false, false
}

// lead makes one process that is built the leader of its session and reports whether there was one to be made.
func (p *planner) lead() bool {
	for _, pid := range p.order {
		if n := p.nodes[pid]; n.built && n.SID == pid && n.now != pid {
			n.now = pid
			p.steps = append(p.steps, Step{Op: SetSID, PID: pid})
			return true
		}
	}
	return false
}

func (p *planner) stuck() error {
	var names []string
	for _, pid := range p.order {
		if n := p.nodes[pid]; !n.built {
			names = append(names, fmt.Sprintf("pid %d (child of %d, session %d, group %d)", pid, n.PPID, n.SID, n.PGID))
		}
	}
	return fmt.Errorf("no process could have given birth to these in their sessions: %s", strings.Join(names, ", "))
}

// groups lets the processes whose number a group carries make it, and then the members join. Such a process may have
// moved on into another group itself; it does so when all who are to join its own have.
func (p *planner) groups() {
	members := map[int]int{} // of each group, so far
	waiting := map[int]int{} // who are still to join it
	where := map[int]int{}   // group of each process, so far, as far as it was set here
	move := func(pid, group int) {
		if old, ok := where[pid]; ok {
			members[old]--
		}
		where[pid] = group
		members[group]++
		p.steps = append(p.steps, Step{Op: SetPGID, PID: pid, PGID: group})
	}
	var movers []int
	for _, pid := range p.order {
		n := p.nodes[pid]
		if n.SID == pid {
			members[pid]++
		}
		if n.PGID != 0 && n.SID != pid && n.PGID != pid {
			movers = append(movers, pid)
			waiting[n.PGID]++
		}
	}
	for _, pid := range p.order {
		if n := p.nodes[pid]; n.SID != pid && (n.PGID == pid || waiting[pid] > 0) {
			move(pid, pid)
		}
	}
	for len(movers) > 0 {
		// Whoever still keeps a group alive for others goes last.
		i := slices.IndexFunc(movers, func(pid int) bool { return where[pid] != pid || waiting[pid] == 0 || members[pid] > 1 })
		i = max(i, 0)
		pid := movers[i]
		waiting[p.nodes[pid].PGID]--
		move(pid, p.nodes[pid].PGID)
		movers = slices.Delete(movers, i, i+1)
	}
}

// endHelpers ends the helpers, those that were made by another first.
func (p *planner) endHelpers() {
	for _, s := range slices.Backward(slices.Clone(p.steps)) {
		if s.Op == Fork && s.Helper {
			p.steps = append(p.steps, Step{Op: End, PID: s.PID, By: p.nodes[s.PID].by})
		}
	}
}
