package move

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"migrate/coordinator/handoff"
)

func TestAMove(t *testing.T) {
	w := newWorld(t)
	w.begin()
	w.awaitPhase(handoff.PhaseReleased)
	if r := w.running(); !slices.Equal(r, []uint64{2}) {
		t.Errorf("copies %v run", r)
	}
	for i, v := range w.trees[2].pages {
		if v == 0 {
			t.Errorf("page 0x%x was not written", i)
		}
	}
	w.await("connected", func(handoff.Record) bool { return slices.Contains(w.trace, "destination open ingress") })
	w.mu.Lock()
	defer w.mu.Unlock()
	inOrder(t, w.trace, "destination build", "source round", "log start-switch", "source arm", "source shut ingress", "source freeze",
		"source final", "source shut egress", "destination neighbours n", "destination finish", "log commit", "destination open egress",
		"destination release", "destination thaw", "log resumed", "source destroy", "log released")
	inOrder(t, w.trace, "destination release", "destination announce", "destination deliver frame", "destination open ingress")
	if d := w.last["Resumed"].GetResumed(); d.GetDowntimeMs() <= 0 || d.GetDowntimeMs() > 2000 || d.GetPid() != 200 || len(d.GetConnections()) != 1 || d.GetConnections()[0].GetRtoDuringMove() != 2 {
		t.Errorf("resumed %v", d)
	}
	p := w.last["Progress"].GetProgress()
	if n := len(p.GetRounds()); n < 3 || !p.GetRounds()[n-1].GetFinal() || p.GetTracker() != "hash" {
		t.Errorf("progress %v", p)
	}
}

// inOrder checks that the lines occur in the trace, in this order.
func inOrder(t *testing.T, trace []string, lines ...string) {
	t.Helper()
	rest := trace
	for _, l := range lines {
		i := slices.Index(rest, l)
		if i < 0 {
			t.Errorf("%q is not in its place in %v", l, trace)
			return
		}
		rest = rest[i:]
	}
}

// Whatever fails before the vote ends with the source running and nothing left at the destination.
func TestFaultsBeforeTheVote(t *testing.T) {
	for _, f := range []struct {
		role handoff.Role
		step string
	}{
		{handoff.RoleSource, "obstacles"}, {handoff.RoleSource, "track"}, {handoff.RoleDestination, "build"}, {handoff.RoleSource, "round"},
		{handoff.RoleDestination, "write"}, {handoff.RoleDestination, "follow"}, {handoff.RoleDestination, "finish"}, {handoff.RoleDestination, "digest"},
	} {
		t.Run(f.role.String()+" "+f.step, func(t *testing.T) {
			w := newWorld(t)
			w.hosts[f.role].fail[f.step] = errors.New("it broke")
			w.begin()
			w.await("over", handoff.Record.Closed)
			if r := w.running(); !slices.Equal(r, []uint64{1}) {
				t.Errorf("copies %v run", r)
			}
			if tr := w.tree(2); tr != nil && !tr.gone && f.step != "build" {
				t.Error("the copy at the destination was left behind")
			}
			said := w.last["AttemptEnded"].GetAttemptEnded().GetReason() + w.last["Failed"].GetFailed().GetReason() + w.last["Declined"].GetDeclined().GetReason()
			if !strings.Contains(said, "it broke") {
				t.Errorf("the reason was not reported: %q", said)
			}
		})
	}
}

// An attempt that fails while the tree is frozen thaws it, gives the frames back, and the next one succeeds.
func TestAFailedAttemptThawsAndIsTriedAgain(t *testing.T) {
	for _, step := range []string{"shut new", "shut ingress", "freeze", "final", "hold", "shut egress"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			h := w.hosts[handoff.RoleSource]
			h.fail[step] = errors.New("it broke")
			ended := make(chan struct{}, 1)
			h.points = func(p string) { // set before anything runs
				if strings.HasPrefix(p, "source.report attempt-ended") && strings.HasSuffix(p, ".before") {
					w.mu.Lock()
					delete(h.fail, step)
					w.mu.Unlock()
					select {
					case ended <- struct{}{}:
					default:
					}
				}
			}
			w.begin()
			<-ended
			if r := w.running(); !slices.Equal(r, []uint64{1}) {
				t.Errorf("after the attempt copies %v run", r)
			}
			w.awaitPhase(handoff.PhaseReleased)
			if step == "shut new" {
				w.mu.Lock()
				defer w.mu.Unlock()
				inOrder(t, w.trace, "source shut new", "source open ingress", "log commit")
			} else if step != "freeze" && step != "shut ingress" {
				w.mu.Lock()
				defer w.mu.Unlock()
				inOrder(t, w.trace, "source shut ingress", "source thaw", "source open egress", "source deliver frame", "source open ingress")
			}
		})
	}
}

func TestCancelWhileCopying(t *testing.T) {
	w := newWorld(t)
	w.trees[1].writes = 20000 // never converges within the bound
	w.begin()
	w.awaitPhase(handoff.PhaseCopying)
	w.feed(handoff.LeaderEvent{Kind: handoff.LeaderCancel})
	w.await("over", handoff.Record.Closed)
	if r := w.running(); !slices.Equal(r, []uint64{1}) {
		t.Errorf("copies %v run", r)
	}
}

// After the vote nothing but the log moves the source: it stays frozen while no server answers.
func TestTheVoteIsKeptWhileTheClusterIsSilent(t *testing.T) {
	w := newWorld(t)
	voted := make(chan struct{})
	var once sync.Once
	w.hosts[handoff.RoleSource].points = func(p string) {
		if strings.HasPrefix(p, "source.report vote") && strings.HasSuffix(p, ".before") {
			once.Do(func() {
				w.mu.Lock()
				w.down = true
				w.mu.Unlock()
				close(voted)
			})
		}
	}
	w.begin()
	<-voted
	time.Sleep(300 * time.Millisecond) // silence is what is tested
	if r := w.running(); len(r) != 0 {
		t.Fatalf("copies %v run while nobody decided", r)
	}
	w.mu.Lock()
	w.down = false
	w.mu.Unlock()
	w.awaitPhase(handoff.PhaseReleased)
	if r := w.running(); !slices.Equal(r, []uint64{2}) {
		t.Errorf("copies %v run", r)
	}
}

// The agents are killed (their loops end, whatever they do) at every point that a move goes through, and started
// again. At most one copy runs at any time, and in the end exactly one.
func TestAgentsRestartAtEveryPoint(t *testing.T) {
	points := map[string]bool{}
	w := newWorld(t)
	for _, h := range w.hosts {
		h.points = func(p string) { w.mu.Lock(); points[p] = true; w.mu.Unlock() }
	}
	w.begin()
	w.awaitPhase(handoff.PhaseReleased)
	w.mu.Lock()
	all := make([]string, 0, len(points))
	for p := range points {
		if !strings.Contains(p, "report converged") {
			all = append(all, p)
		}
	}
	w.mu.Unlock()
	slices.Sort(all)
	for _, point := range all {
		t.Run(point, func(t *testing.T) { restartAt(t, point) })
	}
}

func restartAt(t *testing.T, point string) {
	w := newWorld(t)
	role := handoff.RoleSource
	if strings.HasPrefix(point, "destination.") {
		role = handoff.RoleDestination
	}
	h := w.hosts[role]
	killed := make(chan struct{})
	once := false
	h.points = func(p string) {
		if p != point || once {
			return
		}
		once = true
		h.m.end()
		close(killed)
		select {} // this goroutine ends with the process, as a killed agent's would
	}
	w.begin()
	select {
	case <-killed:
	case <-time.After(10 * time.Second):
		t.Fatal("the point was not reached")
	}
	h.server.Stop()
	_ = h.listen.Close()
	w.mu.Lock()
	tr := w.trees[h.instance()]
	w.mu.Unlock()
	h.tracerDies(tr)
	w.mu.Lock()
	h.points = nil
	w.mu.Unlock()
	h.start()
	for range 1500 {
		w.feed(handoff.LeaderEvent{Kind: handoff.LeaderRedrive})
		w.mu.Lock()
		closed := w.leader.Record.Closed()
		// A source says itself that nothing comes of the switch.
		if p := w.leader.Record.Phase; p == handoff.PhaseSwitching && role == handoff.RoleDestination {
			w.feedLocked(handoff.LeaderEvent{Kind: handoff.LeaderDeadline, Ref: w.leader.Record.Ref(handoff.RoleSource)})
		}
		w.mu.Unlock()
		if closed {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.await("over", handoff.Record.Closed)
	if r := w.running(); len(r) != 1 {
		t.Errorf("copies %v run; trace %v", r, w.trace)
	}
}

func (h *host) instance() uint64 {
	if h.role == handoff.RoleSource {
		return 1
	}
	return 2
}

// tracerDies is what the kernel does when an agent is killed: a source that is not in a frozen cgroup runs, a skeleton that
// is not finished ends.
func (h *host) tracerDies(tr *tree) {
	switch {
	case tr == nil || tr.gone || tr.frozen:
	case h.role == handoff.RoleSource:
		h.w.run(1, true)
	case tr.state == 0:
		tr.gone = true
	}
}

func TestARecordSurvivesATornWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	f, err := create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(path); !errors.Is(err, ErrNoRecord) {
		t.Errorf("an empty file: %v", err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := f.write(&Record{Workload: name}); err != nil {
			t.Fatal(err)
		}
	}
	if _, r, err := open(path); err != nil || r.Workload != "c" {
		t.Fatalf("%+v, %v", r, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[slotSize+slotHeader+5] ^= 1 // c is the third, so in slot 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, r, err := open(path); err != nil || r.Workload != "b" {
		t.Fatalf("after a torn write: %+v, %v", r, err)
	}
}

func FuzzParseSlot(f *testing.F) {
	f.Add([]byte("MGRC\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = parseSlot(b) })
}

// An order whose context ends while it is carried out was not refused: the move goes on.
func TestAnOrderThatNobodyWaitsForGoesOn(t *testing.T) {
	w := newWorld(t)
	h := w.hosts[handoff.RoleDestination]
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.mu.Lock()
	h.points = func(p string) {
		if strings.HasPrefix(p, "destination.persist") {
			once.Do(func() { close(reached); <-goOn })
		}
	}
	w.mu.Unlock()
	ref := handoff.Ref{Incarnation: 1, Migration: "m1", Instance: 2}
	order := w.order(handoff.Action{Kind: handoff.ActOrder, Order: handoff.OrderPrepareDestination, Role: handoff.RoleDestination, Ref: ref})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := h.m.Order(ctx, order); ended <- err }()
	<-reached
	cancel()
	if err := <-ended; err == nil {
		t.Error("an order that nobody waited for was answered")
	}
	close(goOn)
	if r, err := h.m.Order(t.Context(), order); err != nil || !r.GetAccepted() || r.GetReason() != "" {
		t.Errorf("the order again: %v, %v", r, err)
	}
	if p := h.m.phaseOfDestination(ref); p != handoff.DestinationExpecting {
		t.Errorf("the phase is %v", p)
	}
}

// A refused first order leaves neither a move in the table nor anything open.
func TestARefusedOrderLeavesNothing(t *testing.T) {
	w := newWorld(t)
	h := w.hosts[handoff.RoleSource]
	ref := handoff.Ref{Incarnation: 1, Migration: "m1", Instance: 1}
	order := w.order(handoff.Action{Kind: handoff.ActOrder, Order: handoff.OrderCopy, Role: handoff.RoleSource, Ref: ref})
	if r, err := h.m.Order(t.Context(), order); err != nil || r.GetAccepted() {
		t.Errorf("%v, %v", r, err)
	}
	if h.m.find(ref, handoff.RoleSource) != nil {
		t.Error("the move is in the table")
	}
}

func TestARecordThatTheSameOrderLeftIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	ref := handoff.Ref{Incarnation: 1, Migration: "m1", Instance: 1}
	rec := &Record{Role: handoff.RoleSource, Source: handoff.SourceDisk{Stage: handoff.SourceClaimed, Ref: ref}}
	if _, err := create(path); err != nil { // and never written
		t.Fatal(err)
	}
	for range 3 {
		f, err := claim(rec, path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := f.f.Stat(); err != nil || info.Size() != 2*slotSize {
			t.Errorf("%v, %v", info, err)
		}
		if f.seq > 0 {
			rec.Source.Stage = handoff.SourceMayHaveVoted
		}
		if err := f.write(rec); err != nil {
			t.Fatal(err)
		}
		if err := f.f.Close(); err != nil {
			t.Fatal(err)
		}
		if rec.Source.Stage == handoff.SourceMayHaveVoted {
			break
		}
	}
	if _, err := claim(rec, path); err == nil {
		t.Error("a record that a vote may rest on was taken over")
	}
}

// The host that the order names as the source is the only one that may give the destination anything, whatever else it knows.
func TestOnlyTheSourceIsListenedTo(t *testing.T) {
	w := newWorld(t)
	w.caller = "host4"
	w.begin()
	w.await("over", handoff.Record.Closed)
	if r := w.running(); !slices.Equal(r, []uint64{1}) {
		t.Errorf("copies %v run", r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.IndexFunc(w.trace, func(l string) bool {
		return strings.HasPrefix(l, "destination skeleton") || strings.HasPrefix(l, "destination finish")
	}); i >= 0 {
		t.Errorf("the destination did %q", w.trace[i])
	}
	for _, r := range w.last {
		if strings.Contains(protojson.Format(r), "host4 is not the source of migration") {
			return
		}
	}
	t.Errorf("nobody says why: %v", w.last)
}
