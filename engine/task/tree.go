package task

import (
	"fmt"
	"slices"
	"strings"
)

// Node is a process of a tree that is to be built, with ids as the tree sees them.
type Node struct {
	PID, PPID int // PPID is 0 or 1 for a child of whoever bears the roots, which is not part of the tree
	// SID and PGID are the session and the process group. 0 and 1 stand for those of whoever bears the roots.
	SID, PGID int
	// Built says that the process exists already, in the session NowSID and the group NowPGID, as a child of PPID.
	Built           bool
	NowSID, NowPGID int
}

// Op is what a Step does.
type Op uint8

const (
	// Fork: By makes the process PID. With Sibling it does so by CLONE_PARENT, so that the new process becomes a child
	// of By's own parent. With Orphan it makes a helper of any number, which makes the process and ends, so that it
	// falls to Parent, an ancestor of By that is a subreaper meanwhile; nothing between the two may be one.
	Fork Op = iota + 1
	// SetSID: PID calls setsid(2).
	SetSID
	// SetPGID: PID moves itself into the process group PGID, which may be its own.
	SetPGID
	// End: the helper PID ends, and By waits for it.
	End
)

// A Step is one thing to do while a tree is built. Steps are to be done one after another.
type Step struct {
	Op      Op
	PID     int // of a helper that may have any number: negative, and unique
	By      int // of Fork and End: a process, or 1 for whoever bears the roots
	Sibling bool
	Orphan  bool
	Parent  int // of Fork with Orphan
	PGID    int
	// Helper marks a process that is no part of the tree: it stands for a leader of a session or a process group that
	// has ended, keeps its number while the members are born, and ends.
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
		if s.Orphan {
			out += fmt.Sprintf(" orphan of %d", s.Parent)
		}
		if s.Helper {
			out += " helper"
		}
		return out
	case SetSID:
		return fmt.Sprintf("setsid %d", s.PID)
	case SetPGID:
		return fmt.Sprintf("setpgid %d to %d", s.PID, s.PGID)
	case End:
		return fmt.Sprintf("end %d by %d", s.PID, s.By)
	}
	return "unknown"
}

// anySession is the birth of a process that may be born into any session.
const anySession = -1

// planned is a node with what is known of it while the plan is made.
type planned struct {
	Node
	parent   *planned
	children []*planned
	depth    int
	helper   bool
	birth    int  // the session that it must be born into; anySession if it does not matter
	foreign  bool // its parent is never in that session: it was born of another, as a sibling or as an orphan
	session  int  // so far
	group    int  // so far
	by       int  // whose child a helper is
}

// leads reports whether it is to lead a session.
func (n *planned) leads() bool { return n.SID == n.PID }

// planner is one run of PlanTree.
type planner struct {
	top     *planned // whoever bears the roots
	nodes   map[int]*planned
	order   []*planned // parents before children; helpers of sessions among them
	groups  []*planned // helpers for groups, which may be anybody's children
	members map[int][]*planned
	child   map[[2]int]*planned // one child of a parent that is in a session
	steps   []Step
}

// PlanTree finds an order in which a tree can be built: who makes whom, before or after which setsid, and who joins
// which group. The rules are the kernel's: a session is inherited at birth, and left only by becoming the leader of
// a new one; a group can be joined only in one's own session while it has a member; a parent is the maker, or with
// CLONE_PARENT the maker's parent, or the nearest subreaper when the maker has ended. Parents must stand before their
// children. The error names a process that cannot be built and why. The plan takes time in proportion to the tree.
func PlanTree(tree []Node) ([]Step, error) {
	p := &planner{top: &planned{Node: Node{PID: 1, Built: true}, birth: 0}, nodes: map[int]*planned{}, members: map[int][]*planned{}, child: map[[2]int]*planned{}}
	if err := p.add(tree); err != nil {
		return nil, err
	}
	if err := p.checkLeaders(); err != nil {
		return nil, err
	}
	p.births()
	p.addLeaders(p.places())
	if err := p.build(); err != nil {
		return nil, err
	}
	if err := p.joinGroups(); err != nil {
		return nil, err
	}
	p.endHelpers()
	return p.steps, nil
}

func (p *planner) add(tree []Node) error {
	for _, n := range tree {
		for _, id := range []*int{&n.PPID, &n.SID, &n.PGID} {
			if *id == 1 {
				*id = 0
			}
		}
		switch {
		case n.PID <= 1:
			return fmt.Errorf("pid %d: it cannot be part of a tree that is built under a pid 1", n.PID)
		case p.nodes[n.PID] != nil:
			return fmt.Errorf("pid %d: stands twice in the tree", n.PID)
		case n.PPID != 0 && p.nodes[n.PPID] == nil:
			return fmt.Errorf("pid %d: its parent %d is not in the tree before it", n.PID, n.PPID)
		case n.SID == n.PID && n.PGID != n.PID:
			return fmt.Errorf("pid %d: leads a session but not its own process group", n.PID)
		case n.SID < 0 || n.PGID < 0:
			return fmt.Errorf("pid %d: session %d and group %d", n.PID, n.SID, n.PGID)
		case n.Built && n.NowSID != n.SID && n.SID != n.PID:
			return fmt.Errorf("pid %d: it was built in session %d and cannot come into session %d", n.PID, n.NowSID, n.SID)
		}
		p.insert(&planned{Node: n}, n.PPID)
	}
	return nil
}

// insert puts a node below its parent.
func (p *planner) insert(n *planned, ppid int) {
	n.birth, n.parent = anySession, p.top
	if ppid != 0 {
		n.parent = p.nodes[ppid]
	}
	n.depth = n.parent.depth + 1
	n.parent.children = append(n.parent.children, n)
	p.nodes[n.PID] = n
	p.order = append(p.order, n)
	if n.Built {
		p.enter(n, n.NowSID, n.NowPGID)
	}
}

// enter notes that a process is in a session and a group now.
func (p *planner) enter(n *planned, session, group int) {
	n.session, n.group = session, group
	p.members[session] = append(p.members[session], n)
	if n.parent != nil {
		p.child[[2]int{n.parent.PID, session}] = n
	}
}

// checkLeaders checks what the kernel sees to: that the number of a session or group is not that of a stranger.
func (p *planner) checkLeaders() error {
	for _, n := range p.order {
		if l := p.nodes[n.group]; n.Built && l != nil && l.Built && l.leads() && l.session != l.PID {
			return fmt.Errorf("pid %d: it was built as the leader of a group, which process %d is in, and can lead no session", l.PID, n.PID)
		}
	}
	groups := map[int]int{} // session of each
	for _, n := range p.order {
		if l := p.nodes[n.SID]; l != nil && !l.leads() {
			return fmt.Errorf("pid %d: its session %d carries the number of a process that has since joined session %d", n.PID, n.SID, l.SID)
		}
		if n.PGID == 0 {
			if n.SID != 0 {
				return fmt.Errorf("pid %d: its group comes from outside the pid namespace and its session %d does not", n.PID, n.SID)
			}
			continue
		}
		if l := p.nodes[n.PGID]; l != nil {
			groups[n.PGID] = l.SID
		}
		if s, ok := groups[n.PGID]; ok && s != n.SID {
			return fmt.Errorf("pid %d: its group %d belongs to session %d, and itself to session %d", n.PID, n.PGID, s, n.SID)
		}
		groups[n.PGID] = n.SID
	}
	return nil
}

// births finds the session that each process must be born into. For a session's leader it is the one that those of its
// children need which were born before it became the leader. From the leaves up, since a leader's need may be its
// parent's.
func (p *planner) births() {
	for _, n := range slices.Backward(p.order) {
		if !n.leads() {
			n.birth = n.SID
		}
		if n.Built || n.birth == anySession || n.parent.SID == n.birth {
			continue
		}
		if n.parent.leads() && p.canInherit(n.parent, n.birth) {
			n.parent.birth = n.birth
		} else {
			n.foreign = true
		}
	}
}

// canInherit reports whether a leader can have been born into a session.
func (p *planner) canInherit(l *planned, session int) bool {
	for ; ; l = l.parent {
		switch {
		case l == p.top:
			return session == 0
		case l.Built:
			return l.session == session
		case l.birth != anySession:
			return l.birth == session
		case l.parent.SID == session || slices.ContainsFunc(l.parent.children, func(s *planned) bool { return s.SID == session }):
			return true
		case !l.parent.leads():
			return false
		}
	}
}

// places says below whom the helpers for sessions that have lost their leader stand: below the deepest process that has
// an orphan of it, from where its own helpers' orphans fall to those above. An orphan's parent that is not above was
// born into the session itself, and led its own later.
func (p *planner) places() map[int]*planned {
	deepest := map[int]*planned{}
	var foreign []*planned
	for _, n := range p.order {
		if n.foreign {
			foreign = append(foreign, n)
		}
	}
	slices.SortStableFunc(foreign, func(a, b *planned) int { return b.depth - a.depth })
	for len(foreign) > 0 {
		n := foreign[0]
		foreign = foreign[1:]
		at := deepest[n.birth]
		if at == nil {
			if at = p.nodes[n.birth]; at == nil {
				at = n.parent
			}
			deepest[n.birth] = at
		}
		parent := n.parent
		if below(at, parent) || parent == p.top || parent.Built || !parent.leads() || parent.birth != anySession {
			continue
		}
		parent.birth, n.foreign = n.birth, false
		if parent.parent.SID != n.birth {
			parent.foreign = true
			i, _ := slices.BinarySearchFunc(foreign, parent.depth, func(f *planned, depth int) int { return depth - f.depth })
			foreign = slices.Insert(foreign, i, parent)
		}
	}
	return deepest
}

// addLeaders adds a helper for each session and group that has lost its leader and has no member yet.
func (p *planner) addLeaders(place map[int]*planned) {
	var sessions []int
	seen := map[int]bool{}
	for _, n := range p.order {
		if n.birth > 0 && n.foreign && !seen[n.birth] && p.nodes[n.birth] == nil && len(p.members[n.birth]) == 0 {
			seen[n.birth] = true
			sessions = append(sessions, n.birth)
		}
	}
	groups := map[int]bool{}
	for _, n := range p.order {
		groups[n.group] = groups[n.group] || n.Built && !(n.leads() && n.session != n.PID)
	}
	for _, n := range p.order {
		if n.PGID != 0 && n.PGID != n.SID && p.nodes[n.PGID] == nil && !groups[n.PGID] {
			groups[n.PGID] = true
			p.groups = append(p.groups, &planned{Node: Node{PID: n.PGID, SID: n.SID, PGID: n.PGID}, helper: true, birth: n.SID})
		}
	}
	for _, s := range sessions {
		at := place[s]
		ppid := at.PID
		if at == p.top {
			ppid = 0
		}
		p.insert(&planned{Node: Node{PID: s, PPID: ppid, SID: s, PGID: s}, helper: true}, ppid)
	}
}

func (p *planner) stuck(waiting []*planned) error {
	var names []string
	for _, n := range waiting {
		if len(names) == 10 {
			names = append(names, fmt.Sprintf("%d more", len(waiting)-10))
			break
		}
		names = append(names, fmt.Sprintf("pid %d (child of %d, session %d, group %d)", n.PID, n.PPID, n.SID, n.PGID))
	}
	return fmt.Errorf("no process could have given birth to these in their sessions: %s", strings.Join(names, ", "))
}
