package handoff

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// class is what a move is: a step that has to come in the end; one that may come at any time, such as a cancel, and
// that may be needed to get to an end; or a fault, which never is.
type class uint8

const (
	progress class = iota
	rare
	fault
)

// moves calls f with each state that can follow from w, what happened, and of what class
// it was. An error is a broken rule.
func (x *explorer) moves(w world, f func(next world, what func() string, c class, err error)) {
	x.deliveries(w, f)
	x.agents(w, f)
	x.faults(w, f)
	for i, e := range w.inflight {
		if e.Kind == EntryNone {
			continue
		}
		n := w
		copy(n.inflight[i:], n.inflight[i+1:])
		n.inflight[inflightLen-1] = Entry{}
		if r, err := x.apply(n.record, e); err == nil {
			n.record = r
			x.leaderStep(&n, LeaderEvent{Kind: LeaderApplied, Record: r})
		}
		f(n, func() string { return "applied " + e.String() }, progress, n.check())
	}
	x.timers(w, f)
}

// timers: what a caller does because something takes too long. They may strike at any time and prove nothing.
func (x *explorer) timers(w world, f func(world, func() string, class, error)) {
	for _, ev := range []LeaderEvent{{Kind: LeaderRedrive}, {Kind: LeaderCancel}, {Kind: LeaderDeadline, Ref: w.record.Ref(RoleSource)}} {
		n := w
		x.leaderStep(&n, ev)
		f(n, func() string { return ev.String() }, rare, nil)
	}
	if !w.source.down && w.source.queue == 0 {
		n := w
		if x.sourceStep(&n, SourceEvent{Kind: SourceFault}) {
			f(n, func() string { return "fault at the source" }, rare, nil)
		}
	}
}

func (x *explorer) deliveries(w world, f func(world, func() string, class, error)) {
	for i, m := range x.list {
		if w.net[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		n := w
		switch m.to {
		case toLeader:
			x.leaderStep(&n, m.leader)
		case toSource:
			if w.source.down || w.source.queue != 0 || !x.sourceStep(&n, m.source) {
				continue
			}
		case toDestination:
			if w.dest.down || w.dest.queue != 0 {
				continue
			}
			ev := m.dest
			if m.finish > 0 {
				ref := w.record.Ref(RoleDestination)
				ref.Attempt = m.finish
				ev = DestinationEvent{Kind: DestinationFinished, Ref: ref, Hash: Hash(rune('0' + m.finish))}
			}
			if !x.destStep(&n, ev) {
				continue
			}
		}
		f(n, func() string {
			return fmt.Sprintf("delivered %v", [...]string{m.leader.String(), m.source.String(), m.dest.String() + fmt.Sprint(m.finish)}[m.to])
		}, progress, nil)
	}
}

// agents: the actions of both, what happens inside them, and their reads of the log.
func (x *explorer) agents(w world, f func(world, func() string, class, error)) {
	if h := w.source; !h.down && h.queue != 0 {
		n := w
		err := x.sourceAct(&n)
		if err == nil {
			err = n.check()
		}
		f(n, func() string { return "source: " + x.items.list[h.queue].act.String() }, progress, err)
	} else if !h.down {
		events := []SourceEvent{}
		if kind, ref := OrderFor(RoleSource, w.record); kind != OrderNone && h.state.Phase != SourceIdle {
			events = append(events, SourceEvent{Kind: SourceOrdered, Order: kind, Ref: ref})
		}
		if h.state.Phase == SourcePreparing && w.dest.copy == copySkeleton {
			events = append(events, SourceEvent{Kind: SourceSkeleton})
		}
		if h.state.Phase == SourceCopying && w.record.Attempt < x.attempts && w.record.Attempt == h.state.Ref.Attempt {
			events = append(events, SourceEvent{Kind: SourceConverged})
		}
		for _, ev := range events {
			n := w
			if x.sourceStep(&n, ev) {
				f(n, func() string { return "source reads or does: " + ev.String() }, progress, nil)
			}
		}
	}
	if h := w.dest; !h.down && h.queue != 0 {
		n := w
		err := x.destAct(&n)
		if err == nil {
			err = n.check()
		}
		f(n, func() string { return "destination: " + x.items.list[h.queue].act.String() }, progress, err)
	} else if !h.down {
		events := []DestinationEvent{}
		if kind, ref := OrderFor(RoleDestination, w.record); kind != OrderNone && h.state.Phase != DestinationIdle {
			events = append(events, DestinationEvent{Kind: DestinationOrdered, Order: kind, Ref: ref})
		}
		if h.state.Phase == DestinationResuming && h.copy == copyRunning {
			events = append(events, DestinationEvent{Kind: DestinationRan})
		}
		for _, ev := range events {
			n := w
			if x.destStep(&n, ev) {
				f(n, func() string { return "destination reads or does: " + ev.String() }, progress, nil)
			}
		}
	}
	x.restarts(w, f)
}

// restarts: an agent that is down comes back, always.
func (x *explorer) restarts(w world, f func(world, func() string, class, error)) {
	if h := w.source; h.down {
		n := w
		n.source.down = false
		ev := SourceEvent{Kind: SourceRecovered, Disk: h.disk, Frozen: h.copy == copyStopped}
		if h.copy == copyGone && h.boot {
			ev.Kind = SourceRebooted
		}
		x.sourceStep(&n, ev)
		f(n, func() string { return "source starts again: " + ev.String() }, progress, nil)
	}
	if h := w.dest; h.down {
		n := w
		n.dest.down = false
		ev := DestinationEvent{Kind: DestinationRecovered, Disk: h.disk, Whole: h.copy == copyStopped || h.copy == copyRunning}
		if h.boot {
			ev.Kind = DestinationRebooted
		}
		x.destStep(&n, ev)
		f(n, func() string { return "destination starts again: " + ev.String() }, progress, nil)
	}
}

// faults: crashes, reboots, a new leader, lost proposals, wishes.
func (x *explorer) faults(w world, f func(world, func() string, class, error)) {
	do := func(left *uint8, n *world, what string, change func()) {
		if *left > 0 {
			*left--
			change()
			f(*n, func() string { return what }, fault, n.check())
		}
	}
	n := w
	if !w.source.down {
		do(&n.left.sourceCrash, &n, "source's agent dies", func() { n.source.down, n.source.state, n.source.queue = true, Source{}, 0 })
	}
	n = w
	if w.source.disk.Stage != SourceNone { // before the claim it is no matter of the migration
		do(&n.left.sourceBoot, &n, "source reboots", func() {
			n.source = sourceHost{disk: w.source.disk, copy: copyGone, down: true, boot: true}
		})
	}
	n = w
	if !w.dest.down {
		do(&n.left.destCrash, &n, "destination's agent dies", func() {
			n.dest.down, n.dest.state, n.dest.queue = true, Destination{}, 0
			if n.dest.copy == copySkeleton { // traced with EXITKILL
				n.dest.copy = copyNone
			}
		})
	}
	n = w
	do(&n.left.destBoot, &n, "destination reboots", func() {
		n.dest = destHost{disk: w.dest.disk, copy: copyGone, down: true, boot: true}
	})
	n = w
	do(&n.left.leader, &n, "new leader", func() {
		n.inflight = [inflightLen]Entry{}
		n.leader = Leader{}
		x.leaderStep(&n, LeaderEvent{Kind: LeaderApplied, Record: n.record})
	})
	n = w
	if !w.dest.down && w.dest.queue == 0 && w.dest.copy != copyRunning && w.dest.state.Phase != DestinationResuming {
		do(&n.left.broken, &n, "copy breaks", func() {
			if x.destStep(&n, DestinationEvent{Kind: DestinationBroken}) {
				n.dest.copy = copyGone
			}
		})
	}
	if w.leader.Waiting { // its connection broke; not counted, it only takes away
		n = w
		x.leaderStep(&n, LeaderEvent{Kind: LeaderRequestGone})
		f(n, func() string { return "request gone" }, fault, nil)
	}
}

// key is a state in few words.
type key struct {
	record, leader, inflight, source, dest uint32
	net                                    [2]uint64
	left                                   budget
	stale                                  uint32
	ran                                    bool
}

type interner[T comparable] struct {
	ids  map[T]uint32
	list []T
}

func (in *interner[T]) id(v T) uint32 {
	if id, ok := in.ids[v]; ok {
		return id
	}
	if in.ids == nil {
		in.ids = map[T]uint32{}
	}
	id := uint32(len(in.list))
	in.ids[v] = id
	in.list = append(in.list, v)
	return id
}

type space struct {
	records  interner[Record]
	leaders  interner[Leader]
	inflight interner[[inflightLen]Entry]
	sources  interner[sourceHost]
	dests    interner[destHost]
}

func (s *space) pack(w world) key {
	return key{s.records.id(w.record), s.leaders.id(w.leader), s.inflight.id(w.inflight), s.sources.id(w.source),
		s.dests.id(w.dest), w.net, w.left, w.stale, w.ran}
}

func (s *space) unpack(k key) world {
	return world{s.records.list[k.record], s.leaders.list[k.leader], s.inflight.list[k.inflight], s.sources.list[k.source],
		s.dests.list[k.dest], k.net, k.left, k.stale, k.ran}
}

type result struct {
	states   int
	complete bool // all states were seen, none left for want of time
	err      error
	trace    []string
	stuck    int
	phases   map[Phase]int
}

// explore walks breadth first from w. The time bounds it; without a bound reached it also looks for stuck states:
// those from which no end can be reached without further faults.
func (x *explorer) explore(w world, bound time.Duration) result {
	x.msgs = map[message]int{}
	x.items.id(item{}) // 0 is the empty queue
	x.leaderStep(&w, LeaderEvent{Kind: LeaderApplied, Record: w.record})
	var s space
	ids := map[key]int32{}
	var keys []key
	var parent []int32
	back := [][]int32{} // edges that are no faults, backwards
	add := func(w world, from int32) int32 {
		k := s.pack(w)
		id, ok := ids[k]
		if !ok {
			id = int32(len(keys))
			ids[k] = id
			keys, parent, back = append(keys, k), append(parent, from), append(back, nil)
		}
		return id
	}
	res := result{complete: true, phases: map[Phase]int{}}
	add(w, -1)
	begin := time.Now()
	for i := int32(0); int(i) < len(keys); i++ {
		if i%1024 == 0 && time.Since(begin) > bound {
			res.complete = false
			break
		}
		w := s.unpack(keys[i])
		res.phases[w.record.Phase]++
		if w.done() && w.source.queue == 0 && w.dest.queue == 0 && !w.source.down && !w.dest.down && w.left == (budget{}) {
			continue
		}
		x.moves(w, func(n world, what func() string, c class, err error) {
			if err != nil && res.err == nil {
				res.err = err
				res.trace = x.trace(&s, keys, parent, i, what()+" => "+err.Error())
			}
			if res.err != nil {
				return
			}
			if id := add(n, i); c != fault && id != i {
				back[id] = append(back[id], i)
			}
		})
		if res.err != nil {
			break
		}
	}
	res.states = len(keys)
	if res.complete && res.err == nil {
		res.stuck, res.trace = x.stuck(&s, keys, parent, back)
	}
	return res
}

// stuck counts the states from which no end can be reached, with the way to the first of them.
func (x *explorer) stuck(s *space, keys []key, parent []int32, back [][]int32) (int, []string) {
	ok := make([]bool, len(keys))
	var todo []int32
	for i, k := range keys {
		if w := s.unpack(k); w.done() {
			ok[i] = true
			todo = append(todo, int32(i))
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, p := range back[i] {
			if !ok[p] {
				ok[p] = true
				todo = append(todo, p)
			}
		}
	}
	n, trace := 0, []string(nil)
	for i := range keys {
		if !ok[i] {
			if n == 0 {
				trace = x.trace(s, keys, parent, int32(i), "stuck")
			}
			n++
		}
	}
	return n, trace
}

// trace is the way from the start to state i, one line a move.
func (x *explorer) trace(s *space, keys []key, parent []int32, i int32, last string) []string {
	var out []string
	for c := i; parent[c] >= 0; c = parent[c] {
		p := s.unpack(keys[parent[c]])
		line := "?"
		x.moves(p, func(n world, what func() string, _ class, _ error) {
			if line == "?" && s.pack(n) == keys[c] {
				line = what()
			}
		})
		w := s.unpack(keys[c])
		out = append(out, fmt.Sprintf("%-70s log %v | %v copy %d | %v copy %d", line, w.record, w.source.state, w.source.copy, w.dest.state, w.dest.copy))
	}
	for a, b := 0, len(out)-1; a < b; a, b = a+1, b-1 {
		out[a], out[b] = out[b], out[a]
	}
	return append(out, last)
}

// bound is for one world of TestExplore; MIGRATE_EXPLORE=10m makes it longer, to see all states.
func bound(t *testing.T) time.Duration {
	if v := os.Getenv("MIGRATE_EXPLORE"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	return 1500 * time.Millisecond
}

// TestExplore walks small worlds breadth first, each with other kinds of bad luck, exhaustively if time allows.
func TestExplore(t *testing.T) {
	worlds := []struct {
		name     string
		attempts uint32
		left     budget
	}{
		{"one attempt, no crash", 1, budget{}},
		{"new leader", 1, budget{leader: 1}},
		{"both agents die", 1, budget{sourceCrash: 1, destCrash: 1}},
		{"both hosts reboot", 1, budget{sourceBoot: 1, destBoot: 1}},
		{"a copy breaks, new leader", 1, budget{broken: 1, leader: 1}},
		{"two attempts", 2, budget{}},
	}
	for _, c := range worlds {
		t.Run(c.name, func(t *testing.T) {
			x := &explorer{attempts: c.attempts}
			begin := time.Now()
			res := x.explore(start(c.left), bound(t))
			t.Logf("%d states, complete %v, %d messages, %v, phases %v", res.states, res.complete, len(x.list), time.Since(begin).Round(time.Millisecond), res.phases)
			if res.err != nil {
				t.Fatalf("%v\n%s", res.err, strings.Join(res.trace, "\n"))
			}
			if res.stuck > 0 {
				t.Fatalf("%d states are stuck, the first:\n%s", res.stuck, strings.Join(res.trace, "\n"))
			}
		})
	}
}

// walk goes one random way through a world, to the end or for so many moves. Wishes and faults are rarer than progress, so that
// most ways come far. The trace is made only by a second walk with the same seed.
func (x *explorer) walk(seed uint64, w world, steps int, trace *[]string) (world, error) {
	x.msgs, x.list = map[message]int{}, nil
	x.items = interner[item]{}
	x.items.id(item{})
	x.leaderStep(&w, LeaderEvent{Kind: LeaderApplied, Record: w.record})
	rnd := rand.New(rand.NewPCG(seed, 0))
	weights := map[class]int{progress: 300, rare: []int{2, 20, 60}[rnd.IntN(3)], fault: []int{4, 20, 60}[rnd.IntN(3)]}
	for range steps {
		if w.done() && w.source.queue == 0 && w.dest.queue == 0 && !w.source.down && !w.dest.down {
			return w, nil
		}
		var next world
		var what func() string
		var bad error
		total := 0
		x.moves(w, func(n world, desc func() string, c class, err error) {
			if n == w && err == nil {
				return
			}
			weight := weights[c]
			total += weight
			if rnd.IntN(total) < weight {
				next, what, bad = n, desc, err
			}
		})
		if total == 0 {
			return w, nil
		}
		if trace != nil {
			*trace = append(*trace, fmt.Sprintf("%-70s log %v | %v copy %d | %v copy %d", what(), next.record, next.source.state, next.source.copy, next.dest.state, next.dest.copy))
		}
		if bad != nil {
			return next, bad
		}
		w = next
	}
	return w, nil
}

// TestWalk goes many random ways through a world with every kind of bad luck at once, far deeper than TestExplore
// comes within its time. A failure prints its seed and its trace.
func TestWalk(t *testing.T) {
	budgets := []budget{
		{sourceCrash: 2, destCrash: 2, leader: 2},
		{leader: 2, broken: 1, destBoot: 1},
		{sourceCrash: 1, sourceBoot: 1, leader: 1},
		{sourceCrash: 2, destCrash: 2, sourceBoot: 1, destBoot: 1, leader: 2, broken: 1},
	}
	x := &explorer{attempts: 2}
	ends := map[string]int{}
	begin := time.Now()
	n := uint64(0)
	for ; time.Since(begin) < 2*bound(t); n++ {
		first := start(budgets[n%uint64(len(budgets))])
		w, err := x.walk(n, first, 400, nil)
		if err != nil {
			var trace []string
			_, _ = x.walk(n, first, 400, &trace)
			t.Fatalf("seed %d: %v\n%s", n, err, strings.Join(trace, "\n"))
		}
		key := w.record.Phase.String()
		if w.record.Phase == PhaseReleased && w.source.boot {
			key += " after salvage or a late reboot"
		}
		ends[key]++
	}
	t.Logf("%d ways, ends: %v", n, ends)
	for _, p := range []Phase{PhaseReleased, PhaseConfirmed, PhaseLost} {
		if ends[p.String()] == 0 && p != PhaseLost {
			t.Errorf("no way ended %v: the walks do not come far enough", p)
		}
	}
}
