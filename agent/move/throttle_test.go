package move

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	"migrate/coordinator/handoff"
)

// writing is a world with a program whose rounds have 600 pages as long as it runs at full speed: 0.12 s of the link, where the bound is 0.1 s.
func writing(t *testing.T, most uint32) (*world, *tree) {
	w := newWorld(t)
	w.options = &agentapi.MoveOptions{MaxDowntimeNs: int64(100 * time.Millisecond), Streams: 1, Compress: "off", BandwidthBytesPerSecond: 5000 * 4096,
		ThrottleMaxPercent: proto.Uint32(most)}
	tr := w.trees[1]
	tr.writes = 600
	return w, tr
}

// awaitMove returns when the test's condition holds, which it must within half a minute.
func (w *world) awaitMove(what string, is func() bool) {
	w.t.Helper()
	for range 3000 {
		w.mu.Lock()
		ok := is()
		w.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("%s: not within half a minute", what)
}

// reason is the last one that the cluster was told.
func (w *world) reason() string { return w.last["Progress"].GetProgress().GetReason() }

func TestAProgramThatWritesTooFastIsSlowedDown(t *testing.T) {
	w, tr := writing(t, 95)
	w.begin()
	w.awaitPhase(handoff.PhaseReleased)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(tr.limits) < 2 || tr.limit != 0 {
		t.Fatalf("its limits were %v", tr.limits)
	}
	used, last := tr.limits[0]/0.8, tr.limits[0]
	for _, l := range tr.limits {
		if l == 0 { // for a freeze
			continue
		}
		if l < 0.05*used || l > last {
			t.Errorf("its limits were %v, of %v that it used", tr.limits, used)
		}
		last = l
	}
	p := w.last["Progress"].GetProgress()
	if p.GetThrottlePercent() < 20 || p.GetThrottlePercent() > 95 || !strings.Contains(p.GetReason(), "slowed down by") {
		t.Errorf("%d %%: %s", p.GetThrottlePercent(), p.GetReason())
	}
}

func TestNoProgramIsSlowedDownUnasked(t *testing.T) {
	w, tr := writing(t, 0)
	w.begin()
	w.awaitMove("hopeless", func() bool { return strings.Contains(w.reason(), "or a quieter program") })
	w.feed(handoff.LeaderEvent{Kind: handoff.LeaderCancel})
	w.await("over", handoff.Record.Closed)
	if len(tr.limits) != 0 {
		t.Errorf("its limits were %v", tr.limits)
	}
}

// However a copy ends whose program stays, the program has its processor time again, and nobody was slowed down by more than was allowed.
func TestTheLimitGoesWithTheCopy(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, w *world, h *host){
		"cancel": func(_ *testing.T, w *world, _ *host) {
			w.feed(handoff.LeaderEvent{Kind: handoff.LeaderCancel})
			w.await("over", handoff.Record.Closed)
		},
		"a round fails": func(_ *testing.T, w *world, h *host) {
			w.mu.Lock()
			h.fail["round"] = errors.New("it broke")
			w.mu.Unlock()
			w.await("over", handoff.Record.Closed)
		},
		"the agent ends": func(_ *testing.T, w *world, h *host) {
			h.stop()
			t := w.trees[1]
			if l := t.limited(); l != 0 {
				w.t.Errorf("it is left with a limit of %v", l)
			}
			h.start()
		},
		"no more is allowed": func(t *testing.T, w *world, h *host) {
			w.mu.Lock()
			id := w.leader.Record.Ref(handoff.RoleSource)
			w.mu.Unlock()
			if err := h.m.retune(id, &agentapi.MoveOptions{ThrottleMaxPercent: proto.Uint32(0)}); err != nil {
				t.Error(err)
			}
			w.awaitMove("let go", func() bool { return w.trees[1].limit == 0 })
			w.feed(handoff.LeaderEvent{Kind: handoff.LeaderCancel})
			w.await("over", handoff.Record.Closed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, tr := writing(t, 30) // too little
			w.begin()
			w.awaitMove("slowed down by 30 %", func() bool { return strings.Contains(w.reason(), "slowed down by 30 %") })
			end(t, w, w.hosts[handoff.RoleSource])
			if l := tr.limited(); l != 0 {
				t.Errorf("it is left with a limit of %v", l)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			used := tr.limits[0] / 0.8
			if least := slices.MinFunc(tr.limits, func(a, b float64) int {
				return int(1e6 * (orMany(a) - orMany(b)))
			}); least < 0.699*used {
				t.Errorf("its limits were %v, of %v that it used", tr.limits, used)
			}
		})
	}
}

// A limit that stays, because its file cannot be written, does not keep a stopped tree still, and is tried again until it is gone.
func TestAProgramRunsOnThoughItsLimitStays(t *testing.T) {
	w := newWorld(t)
	h := w.hosts[handoff.RoleSource]
	h.fail["hold"] = errors.New("it broke")
	asked := 0
	h.hook = func(step string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case step == "hold" && asked == 0:
			h.fail["throttle"] = errors.New("its file cannot be written")
		case step == "throttle" && h.fail["throttle"] != nil:
			asked++
		}
	}
	w.begin()
	w.awaitMove("asked to take the limit away, again and again", func() bool { return asked > 2 })
	if r := w.running(); !slices.Equal(r, []uint64{1}) {
		t.Errorf("copies %v run", r)
	}
	w.mu.Lock()
	delete(h.fail, "throttle")
	delete(h.fail, "hold")
	w.mu.Unlock()
	w.awaitPhase(handoff.PhaseReleased)
}

// orMany is a limit where 0 means none.
func orMany(l float64) float64 {
	if l == 0 {
		return 1000
	}
	return l
}

// A host that cannot slow a program down says so, and the move goes on without.
func TestAHostThatCannotSlowDown(t *testing.T) {
	w, tr := writing(t, 80)
	w.hosts[handoff.RoleSource].fail["throttle"] = errors.New("there is no controller")
	w.begin()
	w.awaitMove("it says so", func() bool { return strings.Contains(w.reason(), "cannot be slowed down: there is no controller") })
	w.mu.Lock()
	delete(w.hosts[handoff.RoleSource].fail, "throttle")
	w.mu.Unlock()
	w.feed(handoff.LeaderEvent{Kind: handoff.LeaderCancel})
	w.await("over", handoff.Record.Closed)
	if len(tr.limits) != 0 {
		t.Errorf("its limits were %v", tr.limits)
	}
}
