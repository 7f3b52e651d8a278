package restore

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func entry(pid, ppid, pgid, sid uint32) *pstree.PstreeEntry {
	return &pstree.PstreeEntry{Pid: proto.Uint32(pid), Ppid: proto.Uint32(ppid), Pgid: proto.Uint32(pgid), Sid: proto.Uint32(sid)}
}

func TestBuildOrder(t *testing.T) {
	for name, c := range map[string]struct {
		tree []*pstree.PstreeEntry
		want string
	}{
		"one that leads its session":  {[]*pstree.PstreeEntry{entry(5, 1, 5, 5)}, "fork 5 of 0, setsid 5"},
		"one in a session outside":    {[]*pstree.PstreeEntry{entry(5, 1, 3, 2)}, "fork 5 of 0"},
		"a group of its own":          {[]*pstree.PstreeEntry{entry(5, 1, 5, 2)}, "fork 5 of 0, setpgid 5 5"},
		"a child born before setsid":  {[]*pstree.PstreeEntry{entry(5, 1, 5, 5), entry(6, 5, 7, 2)}, "fork 5 of 0, fork 6 of 5, setsid 5"},
		"a pipeline in a job":         {[]*pstree.PstreeEntry{entry(5, 1, 5, 5), entry(6, 5, 6, 5), entry(7, 5, 6, 5)}, "fork 5 of 0, setsid 5, fork 6 of 5, fork 7 of 5, setpgid 6 6, setpgid 7 6"},
		"a session inside a session":  {[]*pstree.PstreeEntry{entry(5, 1, 5, 5), entry(6, 5, 6, 6), entry(7, 6, 6, 6)}, "fork 5 of 0, setsid 5, fork 6 of 5, setsid 6, fork 7 of 6"},
		"a grandchild that needs it":  {[]*pstree.PstreeEntry{entry(5, 1, 5, 5), entry(6, 5, 6, 6), entry(7, 6, 3, 2)}, "fork 5 of 0, fork 6 of 5, fork 7 of 6, setsid 6, setsid 5"},
		"a session nobody can give":   {[]*pstree.PstreeEntry{entry(5, 1, 5, 5), entry(6, 1, 5, 5)}, "error"},
		"a group without its leader":  {[]*pstree.PstreeEntry{entry(5, 1, 5, 5), entry(6, 5, 9, 5)}, "error"},
		"a process that stands twice": {[]*pstree.PstreeEntry{entry(5, 1, 5, 5), entry(5, 5, 5, 5)}, "error"},
	} {
		steps, err := buildOrder(c.tree)
		var got []string
		for _, s := range steps {
			switch s.kind {
			case fork:
				got = append(got, fmt.Sprintf("fork %d of %d", s.pid, s.arg))
			case setsid:
				got = append(got, fmt.Sprintf("setsid %d", s.pid))
			case setpgid:
				got = append(got, fmt.Sprintf("setpgid %d %d", s.pid, s.arg))
			}
		}
		if text := strings.Join(got, ", "); err == nil && text != c.want || (err != nil) != (c.want == "error") {
			t.Errorf("%s: %s, %v; want %s", name, text, err, c.want)
		}
		if err != nil && !errors.Is(err, ErrOrder) {
			t.Errorf("%s: %v is not ErrOrder", name, err)
		}
	}
}

// TestBuildOrderGivesBackWhatForksMade plays a random program that forks and leads sessions and groups, and checks that
// the steps, played by the same rules, lead to the same tree.
func TestBuildOrderGivesBackWhatForksMade(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world{1000: {pid: 1000, sid: 1000, pgid: 1000, ppid: 1}}
		pids := []int{1000}
		for next := 1001; next < 1012; next++ {
			p := rapid.SampledFrom(pids).Draw(t, "who")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				w.setsid(p)
			case 1:
				w.setpgid(p, p)
			case 2:
				w.setpgid(p, rapid.SampledFrom(pids).Draw(t, "group"))
			default:
				w.fork(p, next)
				pids = append(pids, next)
			}
		}
		var tree []*pstree.PstreeEntry
		for _, pid := range pids {
			x := w[pid]
			tree = append(tree, entry(uint32(x.pid), uint32(x.ppid), uint32(x.pgid), uint32(x.sid)))
		}
		steps, err := buildOrder(tree)
		if err != nil {
			t.Fatalf("%v for %v", err, tree)
		}
		got := world{0: {pid: 0, sid: 0, pgid: 0}}
		for _, s := range steps {
			switch s.kind {
			case fork:
				got.fork(s.arg, s.pid)
			case setsid:
				got.setsid(s.pid)
			case setpgid:
				if !got.setpgid(s.pid, s.arg) {
					t.Fatalf("setpgid(%d, %d) is refused in %v", s.pid, s.arg, steps)
				}
			}
		}
		for _, pid := range pids {
			a, b := w[pid], got[pid]
			if a.sid != b.sid || a.pgid != b.pgid || pid != 1000 && a.ppid != b.ppid {
				t.Fatalf("process %d: %+v, want %+v by %v", pid, b, a, steps)
			}
		}
	})
}

// world is a kernel's view of processes, sessions and groups.
type world map[int]*node

type node struct{ pid, ppid, sid, pgid int }

func (w world) fork(parent, pid int) {
	p := w[parent]
	w[pid] = &node{pid: pid, ppid: parent, sid: p.sid, pgid: p.pgid}
}

func (w world) setsid(pid int) {
	for _, t := range w {
		if t.pgid == pid {
			return // EPERM: it leads a group
		}
	}
	w[pid].sid, w[pid].pgid = pid, pid
}

func (w world) setpgid(pid, group int) bool {
	p := w[pid]
	if p.sid == pid {
		return p.pgid == group
	}
	ok := group == pid
	for _, t := range w {
		ok = ok || t.pgid == group && t.sid == p.sid
	}
	if ok {
		p.pgid = group
	}
	return ok
}
