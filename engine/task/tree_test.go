package task

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func n(pid, ppid, sid, pgid int) Node { return Node{PID: pid, PPID: ppid, SID: sid, PGID: pgid} }

func TestPlanTree(t *testing.T) {
	for name, c := range map[string]struct {
		tree []Node
		want string
	}{
		"one daemon":        {[]Node{n(5, 0, 5, 5)}, "fork 5 by 1; setsid 5"},
		"one, not a leader": {[]Node{n(5, 0, 0, 0)}, "fork 5 by 1"},
		"a shell pipeline": {[]Node{n(5, 1, 5, 5), n(6, 5, 5, 6), n(7, 5, 5, 6)},
			"fork 5 by 1; setsid 5; fork 6 by 5; fork 7 by 5; setpgid 6 to 6; setpgid 7 to 6"},
		"a child that was born before its parent's setsid": {[]Node{n(4, 1, 4, 4), n(5, 4, 5, 5), n(6, 5, 4, 4)},
			"fork 4 by 1; setsid 4; fork 5 by 4; fork 6 by 5; setsid 5"},
		"the session's leader is gone": {[]Node{n(9, 1, 5, 5), n(10, 9, 5, 5)},
			"fork 5 by 1 helper; setsid 5; fork 9 by 5 sibling; fork 10 by 9; end 5 by 1"},
		"the group's leader is gone": {[]Node{n(5, 1, 5, 5), n(7, 5, 5, 6)},
			"fork 5 by 1; setsid 5; fork 7 by 5; fork 6 by 5 helper; setpgid 6 to 6; setpgid 7 to 6; end 6 by 5"},
		"an orphan of a living session": {[]Node{n(5, 1, 5, 5), n(8, 1, 5, 5)},
			"fork 5 by 1; setsid 5; fork 8 by 5 sibling"},
		"an orphan below a subreaper": {[]Node{n(5, 1, 5, 5), n(7, 5, 6, 6)},
			"fork 5 by 1; setsid 5; fork 6 by 5 helper; setsid 6; fork 7 by 6 sibling; end 6 by 5"},
		"an orphan of a session below": {[]Node{n(5, 1, 5, 5), n(6, 5, 5, 5), n(7, 6, 7, 7), n(8, 5, 7, 7)},
			"fork 5 by 1; setsid 5; fork 6 by 5; fork 7 by 6; setsid 7; fork 8 by 7 orphan of 5"},
	} {
		steps, err := PlanTree(c.tree)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, s := range steps {
			got = append(got, s.String())
		}
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, s, c.want)
		}
	}
}

func TestPlanTreeRefusesByName(t *testing.T) {
	for want, tree := range map[string][]Node{
		"pid 1":                    {n(1, 0, 1, 1)},
		"pid 6: its parent 5":      {n(6, 5, 0, 0), n(5, 1, 0, 0)},
		"pid 7: its group 5":       {n(5, 1, 5, 5), n(7, 5, 0, 5)},
		"pid 6: its group comes":   {n(5, 1, 5, 5), n(6, 5, 5, 0)},
		"pid 5: leads a session":   {n(5, 1, 5, 4)},
		"pid 7: its session 6 car": {n(5, 1, 5, 5), n(6, 5, 5, 5), n(7, 6, 6, 5)},
		"pid 7":                    {n(5, 1, 5, 5), n(6, 5, 5, 5), n(8, 1, 8, 8), n(7, 6, 8, 8)},
	} {
		if _, err := PlanTree(tree); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// world replays system calls by the kernel's rules.
type world map[int]*kproc

// kproc is a process of a world; reaper says that it is a subreaper.
type kproc struct {
	Node
	reaper bool
}

func (w world) do(s Step) error {
	p := w[s.PID]
	switch s.Op {
	case Fork:
		by := w[s.By]
		if by == nil || p != nil || s.Sibling && s.By == 1 {
			return fmt.Errorf("%v: no maker, or it exists", s)
		}
		c := &kproc{Node: Node{PID: s.PID, PPID: s.By, SID: by.SID, PGID: by.PGID}}
		if s.Sibling {
			c.PPID = by.PPID
		}
		w[s.PID] = c
		if s.Orphan {
			up := s.By
			for up != s.Parent {
				if up <= 1 {
					return fmt.Errorf("%v: %d is no descendant of %d", s, s.By, s.Parent)
				}
				up = w[up].PPID
			}
			c.PPID = s.Parent
		}
	case SetSID:
		for _, q := range w {
			if q.PGID == s.PID {
				return fmt.Errorf("%v: EPERM, it leads a group", s)
			}
		}
		p.SID, p.PGID = s.PID, s.PID
	case SetPGID:
		ok := s.PGID == s.PID
		for _, q := range w {
			ok = ok || q.PGID == s.PGID && q.SID == p.SID
		}
		if !ok || p.SID == p.PID {
			return fmt.Errorf("%v: EPERM", s)
		}
		p.PGID = s.PGID
	case End:
		if p.PPID != s.By {
			return fmt.Errorf("%v: ECHILD, its parent is %d", s, p.PPID)
		}
		w.end(s.PID)
	}
	return nil
}

// end lets a process end and gives its children to the nearest subreaper.
func (w world) end(pid int) {
	heir := w[pid].PPID
	for heir != 1 && !w[heir].reaper {
		heir = w[heir].PPID
	}
	for _, q := range w {
		if q.PPID == pid {
			q.PPID = heir
		}
	}
	delete(w, pid)
}

// tree lists the processes, parents first.
func (w world) tree() []Node {
	var out []Node
	for level := []int{1}; len(level) > 0; level = level[1:] {
		for _, pid := range w.pids() {
			if pid != 1 && w[pid].PPID == level[0] {
				out = append(out, w[pid].Node)
				level = append(level, pid)
			}
		}
	}
	return out
}

func (w world) pids() []int {
	var out []int
	for pid := range w {
		out = append(out, pid)
	}
	slices.Sort(out)
	return out
}

// history makes a tree by what programs do: fork, setsid, setpgid, end, become a subreaper.
func history(t *rapid.T, w world, next *int, reapers int) {
	for range rapid.IntRange(1, 25).Draw(t, "steps") {
		pids := w.pids()
		pid := rapid.SampledFrom(pids).Draw(t, "pid")
		switch op := rapid.IntRange(0, 5+reapers).Draw(t, "op"); {
		case op <= 2:
			_ = w.do(Step{Op: Fork, PID: *next, By: pid})
			*next++
		case pid == 1:
		case op == 3:
			_ = w.do(Step{Op: SetSID, PID: pid}) // EPERM is part of life
		case op == 4:
			_ = w.do(Step{Op: SetPGID, PID: pid, PGID: rapid.SampledFrom(append(pids[1:], pid)).Draw(t, "group")})
		case op == 5:
			w.end(pid)
		case op == 6:
			w[pid].reaper = true
		}
	}
}

// play does the steps and compares what comes out.
func (w world) play(t *rapid.T, steps []Step, tree []Node) {
	for _, s := range steps {
		if err := w.do(s); err != nil {
			t.Fatalf("tree %+v\nsteps %v\n%v", tree, steps, err)
		}
	}
	for _, want := range tree {
		want.Built, want.NowSID, want.NowPGID = false, 0, 0
		if have := w[want.PID]; have == nil || have.Node != want {
			t.Fatalf("tree %+v\nsteps %v\npid %d: %+v", tree, steps, want.PID, have)
		}
	}
	if len(w) != len(tree)+1 {
		t.Fatalf("helpers are left: %v", w.pids())
	}
}

// TestPlanTreeByHistory plans trees with orphans of pid 1 alone, all of which can be built.
func TestPlanTreeByHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, next := world{1: {Node: Node{PID: 1}}}, 2
		history(t, w, &next, 0)
		steps, err := PlanTree(w.tree())
		if err != nil {
			t.Fatalf("%v: %+v", err, w.tree())
		}
		world{1: {Node: Node{PID: 1}}}.play(t, steps, w.tree())
	})
}

// TestPlanTreeWithSubreapers has processes become subreapers at any time, which makes some trees that only their own
// history could make again.
func TestPlanTreeWithSubreapers(t *testing.T) {
	planned, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w, next := world{1: {Node: Node{PID: 1}}}, 2
		history(t, w, &next, 1)
		steps, err := PlanTree(w.tree())
		if err != nil {
			refused++
			t.Logf("%v: %+v", err, w.tree())
			return
		}
		planned++
		world{1: {Node: Node{PID: 1}}}.play(t, steps, w.tree())
	})
	t.Logf("%d planned, %d refused", planned, refused)
	if refused*20 > planned {
		t.Errorf("%d planned, %d refused", planned, refused)
	}
}

// TestPlanTreeFollows lets a tree live on after it was built, and builds what is new.
func TestPlanTreeFollows(t *testing.T) {
	planned, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w, next := world{1: {Node: Node{PID: 1}}}, 2
		history(t, w, &next, 0)
		built := world{}
		for pid, p := range w {
			built[pid] = &kproc{Node: p.Node}
		}
		history(t, w, &next, 0)
		for _, pid := range built.pids() { // what has ended ends, and its children fall to pid 1, as they did
			if w[pid] == nil {
				built.end(pid)
			}
		}
		tree := w.tree()
		for i, n := range tree {
			if b := built[n.PID]; b != nil {
				tree[i].Built, tree[i].NowSID, tree[i].NowPGID = true, b.SID, b.PGID
			}
		}
		steps, err := PlanTree(tree)
		if err != nil {
			refused++
			return
		}
		planned++
		built.play(t, steps, tree)
	})
	t.Logf("%d planned, %d refused", planned, refused)
}

func TestPlanTreeOfManyIsQuick(t *testing.T) {
	const many = 30000
	tree := []Node{n(2, 0, 2, 2)}
	for pid := 3; pid < many; pid++ {
		switch pid % 3 {
		case 0:
			tree = append(tree, n(pid, 2, pid, pid))
		case 1:
			tree = append(tree, n(pid, pid-1, pid-1, pid))
		default:
			tree = append(tree, n(pid, 0, many, many))
		}
	}
	began := time.Now()
	if _, err := PlanTree(tree); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("%d processes took %v", many, d)
	}
}
