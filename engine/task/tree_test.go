package task

import (
	"fmt"
	"slices"
	"strings"
	"testing"

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
			"fork 4 by 1; setsid 4; fork 5 by 4; fork 6 by 5; setsid 5; setpgid 6 to 4"},
		"the session's leader is gone": {[]Node{n(9, 1, 5, 5), n(10, 9, 5, 5)},
			"fork 5 by 1 helper; setsid 5; fork 9 by 5 sibling; fork 10 by 9; setpgid 9 to 5; setpgid 10 to 5; end 5 by 1"},
		"the group's leader is gone": {[]Node{n(5, 1, 5, 5), n(7, 5, 5, 6)},
			"fork 5 by 1; setsid 5; fork 6 by 5 helper; fork 7 by 5; setpgid 6 to 6; setpgid 7 to 6; end 6 by 5"},
		"an orphan of a living session": {[]Node{n(5, 1, 5, 5), n(8, 1, 5, 5)},
			"fork 5 by 1; setsid 5; fork 8 by 5 sibling; setpgid 8 to 5"},
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
type world map[int]*Node

func (w world) do(s Step) error {
	p := w[s.PID]
	switch s.Op {
	case Fork:
		by := w[s.By]
		if by == nil || p != nil || s.Sibling && s.By == 1 {
			return fmt.Errorf("%v: no maker, or it exists", s)
		}
		c := &Node{PID: s.PID, PPID: s.By, SID: by.SID, PGID: by.PGID}
		if s.Sibling {
			c.PPID = by.PPID
		}
		w[s.PID] = c
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
		delete(w, s.PID)
	}
	return nil
}

func (w world) pids() []int {
	var out []int
	for pid := range w {
		out = append(out, pid)
	}
	slices.Sort(out)
	return out
}

// history makes a tree by what programs do: fork, setsid, setpgid, end.
func history(t *rapid.T) world {
	w := world{1: {PID: 1}}
	next := 2
	for range rapid.IntRange(1, 25).Draw(t, "steps") {
		pids := w.pids()
		pid := rapid.SampledFrom(pids).Draw(t, "pid")
		switch op := rapid.IntRange(0, 5).Draw(t, "op"); {
		case op <= 2:
			_ = w.do(Step{Op: Fork, PID: next, By: pid})
			next++
		case pid == 1:
		case op == 3:
			_ = w.do(Step{Op: SetSID, PID: pid}) // EPERM is part of life
		case op == 4:
			_ = w.do(Step{Op: SetPGID, PID: pid, PGID: rapid.SampledFrom(append(pids[1:], pid)).Draw(t, "group")})
		case op == 5:
			for _, q := range w {
				if q.PPID == pid {
					q.PPID = 1
				}
			}
			delete(w, pid)
		}
	}
	return w
}

func TestPlanTreeByHistory(t *testing.T) {
	planned, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := history(t)
		var tree []Node
		for _, pid := range w.pids() {
			if pid != 1 {
				tree = append(tree, *w[pid])
			}
		}
		// Parents first: pids grow, and an orphan's parent is 1.
		if len(tree) == 0 {
			return
		}
		steps, err := PlanTree(tree)
		if err != nil {
			refused++
			return
		}
		planned++
		got := world{1: {PID: 1}}
		for _, s := range steps {
			if err := got.do(s); err != nil {
				t.Fatalf("tree %+v\nsteps %v\n%v", tree, steps, err)
			}
		}
		for _, want := range tree {
			if have := got[want.PID]; have == nil || *have != want {
				t.Fatalf("tree %+v\nsteps %v\npid %d: %+v", tree, steps, want.PID, have)
			}
		}
		if len(got) != len(tree)+1 {
			t.Fatalf("helpers are left: %v", got.pids())
		}
	})
	t.Logf("%d planned, %d refused", planned, refused)
}
