package restore

import (
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
)

// ErrOrder means that no order of forks, setsid and setpgid calls gives the tree its sessions and groups.
var ErrOrder = errors.New("the sessions or process groups of the tree cannot be rebuilt")

// step is one move in the building of a tree.
type step struct {
	kind stepKind
	pid  int // who does it; for fork: who is born
	arg  int // fork: the parent, 0 for the parent of the roots; setpgid: the group
}

type stepKind uint8

const (
	fork stepKind = iota + 1
	setsid
	setpgid
)

// member is one process of a tree, with its children.
type member struct {
	pid, sid, pgid int
	children       []*member
}

// anySession is what a process needs to inherit if it does not matter.
const anySession = -1

// buildOrder returns the steps by which a tree comes to its parents, sessions and groups. A process has the session
// that its parent had at its birth, unless it leads one itself (setsid(2)), so children that are in the session that
// their parent left are born before it leaves. A session or a group whose leader is outside of the tree is that of
// the parent of the roots. Entries stand with parents before children.
func buildOrder(tree []*pstree.PstreeEntry) ([]step, error) {
	byPID := make(map[int]*member, len(tree))
	var roots []*member
	for _, e := range tree {
		m := &member{pid: int(e.GetPid()), sid: int(e.GetSid()), pgid: int(e.GetPgid())}
		if byPID[m.pid] != nil {
			return nil, fmt.Errorf("%w: process %d stands twice in the tree", ErrOrder, m.pid)
		}
		if parent := byPID[int(e.GetPpid())]; parent != nil {
			parent.children = append(parent.children, m)
		} else {
			roots = append(roots, m)
		}
		byPID[m.pid] = m
	}
	b := &orderer{byPID: byPID}
	for _, r := range roots {
		if err := b.build(r, 0, 0); err != nil {
			return nil, err
		}
	}
	return b.steps, b.groups(tree)
}

type orderer struct {
	byPID map[int]*member
	steps []step
}

// session is the session as far as the tree knows it: 0 if its leader is outside.
func (b *orderer) session(sid int) int {
	if b.byPID[sid] == nil {
		return 0
	}
	return sid
}

// build appends the steps for m, born in session inherited, and for all below it.
func (b *orderer) build(m *member, parent, inherited int) error {
	b.steps = append(b.steps, step{fork, m.pid, parent})
	own := b.session(m.sid)
	if own != m.pid && own != inherited {
		return fmt.Errorf("%w: process %d is in session %d, which its parent %d is not in; its first parent has ended", ErrOrder, m.pid, m.sid, parent)
	}
	var after []*member
	for _, c := range m.children {
		if need := b.needs(c); need == anySession || need == own {
			after = append(after, c)
		} else if err := b.build(c, m.pid, inherited); err != nil {
			return err
		}
	}
	if own == m.pid {
		b.steps = append(b.steps, step{setsid, m.pid, 0})
	}
	for _, c := range after {
		if err := b.build(c, m.pid, own); err != nil {
			return err
		}
	}
	return nil
}

// needs returns the session that m has to be born in, for its own sake or for that of its children.
func (b *orderer) needs(m *member) int {
	if own := b.session(m.sid); own != m.pid {
		return own
	}
	for _, c := range m.children {
		if need := b.needs(c); need != anySession && need != m.pid {
			return need
		}
	}
	return anySession
}

// groups appends the steps that give processes their groups. A group exists once the process of its id has led it, and
// as long as anybody is in it; so all leaders lead first, then others join, and last those leaders leave that have left.
func (b *orderer) groups(tree []*pstree.PstreeEntry) error {
	led := map[int]bool{}
	for _, e := range tree {
		m := b.byPID[int(e.GetPid())]
		if leader := b.byPID[m.pgid]; leader != nil && leader.sid != leader.pid && !led[leader.pid] {
			led[leader.pid] = true
			b.steps = append(b.steps, step{setpgid, leader.pid, leader.pid})
		}
	}
	var leave []step
	for _, e := range tree {
		m := b.byPID[int(e.GetPid())]
		if m.pgid == m.pid || m.pgid == b.born(m) && !led[m.pid] {
			continue
		}
		leader := b.byPID[m.pgid]
		switch {
		case leader == nil && b.session(m.sid) != 0:
			return fmt.Errorf("%w: process %d is in group %d, whose leader has ended", ErrOrder, m.pid, m.pgid)
		case leader == nil:
		case led[m.pid]:
			leave = append(leave, step{setpgid, m.pid, m.pgid})
		default:
			b.steps = append(b.steps, step{setpgid, m.pid, m.pgid})
		}
	}
	b.steps = append(b.steps, leave...)
	return nil
}

// born is the group that a member has by its birth alone, if it is one of a session inside the tree.
func (b *orderer) born(m *member) int {
	if b.session(m.sid) != 0 && m.sid == m.pgid {
		return m.sid
	}
	return 0
}
