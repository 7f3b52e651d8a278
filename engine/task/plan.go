package task

import (
	"fmt"
	"slices"
)

// build makes the processes: from the top down those that are born of their parents, then, as long as there is anybody
// who can, those that are not.
func (p *planner) build() error {
	p.enter(p.top, 0, 0)
	waiting := p.below(p.top, nil)
	for len(waiting) > 0 {
		var left []*planned
		for _, n := range waiting {
			if by, sibling, ok := p.maker(n); ok {
				p.fork(n, by, sibling)
				left = p.grow(n, left)
			} else {
				left = append(left, n)
			}
		}
		if len(left) >= len(waiting) && !slices.ContainsFunc(left, func(n *planned) bool { _, _, ok := p.maker(n); return ok }) {
			return p.stuck(left)
		}
		waiting = left
	}
	for _, h := range p.groups {
		members := p.members[h.SID]
		by := members[slices.IndexFunc(members, func(m *planned) bool { return m.session == h.SID })]
		h.by = by.PID
		h.session, h.group = h.SID, by.group
		p.steps = append(p.steps, Step{Op: Fork, PID: h.PID, By: by.PID, Helper: true})
	}
	return nil
}

// below makes the descendants of a process that exists, and returns those that wait for another to make them.
func (p *planner) below(n *planned, waiting []*planned) []*planned {
	todo := []*planned{n}
	for len(todo) > 0 {
		n, todo = todo[len(todo)-1], todo[:len(todo)-1]
		var later []*planned
		for _, c := range n.children {
			switch {
			case c.Built:
				later = append(later, c)
			case c.foreign:
				waiting = append(waiting, c)
			case c.birth == n.session && n.leads() && n.session != n.PID:
				// It was born before its parent became a leader; so what is below it is made at once.
				p.fork(c, n, false)
				waiting = p.grow(c, waiting)
			default:
				later = append(later, c)
			}
		}
		if n.leads() && n.session != n.PID && n != p.top {
			p.enter(n, n.PID, n.PID)
			p.steps = append(p.steps, Step{Op: SetSID, PID: n.PID})
		}
		for _, c := range later {
			if !c.Built {
				p.fork(c, n, false)
			}
		}
		for _, c := range slices.Backward(later) {
			todo = append(todo, c)
		}
	}
	return waiting
}

// grow is below for a process that has just been made.
func (p *planner) grow(n *planned, waiting []*planned) []*planned { return p.below(n, waiting) }

// fork appends the step that makes n.
func (p *planner) fork(n, by *planned, sibling bool) {
	s := Step{Op: Fork, PID: n.PID, By: by.PID, Sibling: sibling, Helper: n.helper}
	if by != n.parent && !sibling {
		s.Orphan, s.Parent = true, n.parent.PID
	}
	n.by = n.parent.PID
	p.steps = append(p.steps, s)
	p.enter(n, by.session, by.group)
}

// maker finds a process that is in the session into which n is to be born, and from which it can come to its parent.
func (p *planner) maker(n *planned) (by *planned, sibling, ok bool) {
	if c := p.child[[2]int{n.parent.PID, n.birth}]; c != nil && c.session == n.birth {
		return c, true, true
	}
	if n.parent.session == n.birth {
		return n.parent, false, true
	}
	for _, m := range p.members[n.birth] {
		if m.session == n.birth && m.depth > n.parent.depth && below(m, n.parent) {
			return m, false, true
		}
	}
	return nil, false, false
}

// below reports whether n is a descendant of ancestor.
func below(n, ancestor *planned) bool {
	for n != nil && n.depth > ancestor.depth {
		n = n.parent
	}
	return n == ancestor
}

// grouping is what joinGroups knows.
type grouping struct {
	*planner
	members map[int]int // of each group, so far
	waiting map[int]int // who are still to join it
}

func (g *grouping) move(n *planned, group int) {
	if n.group == group {
		return
	}
	g.members[n.group]--
	n.group = group
	g.members[group]++
	g.steps = append(g.steps, Step{Op: SetPGID, PID: n.PID, PGID: group})
}

// joinGroups lets the processes whose number a group carries make it, and then the members join. Such a process may have
// moved on into another group itself; it does so when all who are to join its own have.
func (p *planner) joinGroups() error {
	g := &grouping{planner: p, members: map[int]int{}, waiting: map[int]int{}}
	all := slices.Concat(p.order, p.groups)
	var movers []*planned
	for _, n := range all {
		g.members[n.group]++
		if n.PGID != 0 && n.PGID != n.PID && n.group != n.PGID {
			movers = append(movers, n)
			g.waiting[n.PGID]++
		}
	}
	for _, n := range all {
		if n.leads() {
			continue
		}
		switch lead := n.PGID == n.PID && n.group != n.PID; {
		case lead && g.waiting[n.group] > 0 && g.members[n.group] == 1:
			movers = append(movers, n)
			g.waiting[n.PID]++
		case lead || g.waiting[n.PID] > 0 && g.members[n.PID] == 0:
			g.move(n, n.PID)
			if n.PGID != 0 && n.PGID != n.PID && !slices.Contains(movers, n) {
				movers = append(movers, n)
				g.waiting[n.PGID]++
			}
		}
	}
	return g.joinAll(movers)
}

// joinAll lets the members join their groups. Whoever still keeps a group alive for others goes last. It fails where a group
// is to be joined that nobody is in and nobody can make, as that of a process that was built and has moved on since.
func (g *grouping) joinAll(movers []*planned) error {
	keepers := 0
	for len(movers) > 0 {
		var left []*planned
		for _, n := range movers {
			if g.waiting[n.group] > 0 && g.members[n.group] == 1 || n.PGID != n.PID && g.members[n.PGID] == 0 {
				left = append(left, n)
				continue
			}
			g.waiting[n.PGID]--
			g.move(n, n.PGID)
		}
		if len(left) == len(movers) {
			// Each keeps a group alive that another is to join. A helper keeps the first one's.
			i := slices.IndexFunc(left, func(n *planned) bool { return n.PGID == n.PID || g.members[n.PGID] > 0 })
			if i < 0 {
				return fmt.Errorf("pid %d: nobody is in its group %d any more, and nobody can make it again", left[0].PID, left[0].PGID)
			}
			n := left[i]
			keepers++
			g.steps = append(g.steps, Step{Op: Fork, PID: -keepers, By: n.PID, Helper: true})
			g.groups = append(g.groups, &planned{Node: Node{PID: -keepers}, helper: true, by: n.PID, group: n.group})
			g.members[n.group]++
		}
		movers = left
	}
	return nil
}

// endHelpers ends the helpers, the last that was made first.
func (p *planner) endHelpers() {
	for _, s := range slices.Backward(slices.Clone(p.steps)) {
		if s.Op != Fork || !s.Helper {
			continue
		}
		by := s.By
		if n := p.nodes[s.PID]; n != nil {
			by = n.parent.PID
		}
		p.steps = append(p.steps, Step{Op: End, PID: s.PID, By: by})
	}
}
