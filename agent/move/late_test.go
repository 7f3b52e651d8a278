package move

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/coordinator/handoff"
)

// Frames of an attempt that has ended were given back to the program: they are not delivered after another attempt.
func TestFramesOfAnEndedAttemptAreForgotten(t *testing.T) {
	f := newFrames()
	add := func(attempt uint32, text string) error {
		_, err := f.add(attempt, [][]byte{[]byte(text)})
		return err
	}
	if err := add(1, "old"); err != nil {
		t.Fatal(err)
	}
	if err := add(2, "new"); err != nil {
		t.Fatal(err)
	}
	if err := add(1, "late"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a late frame: %v", err)
	}
	if list := f.take(); len(list) != 1 || string(list[0]) != "new" {
		t.Errorf("frames %q", list)
	}
}

// While a copy is being destroyed the table still shows the phase before: a Prepare that comes late must not build another.
func TestNothingIsBuiltWhileACopyIsDestroyed(t *testing.T) {
	w := newWorld(t)
	w.trees[1].writes = 20000 // never converges within the bound
	h := w.hosts[handoff.RoleDestination]
	var once sync.Once
	answer := make(chan error, 1)
	w.mu.Lock()
	h.hook = func(step string) {
		if step != "destroy" {
			return
		}
		once.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_, err := h.m.Peer().Prepare(ctx, &agentapi.PrepareRequest{Extra: []byte("{}"), Session: &agentapi.Session{
				Incarnation: 1, Migration: "m1", SourceInstance: 1, DestinationInstance: 2}})
			answer <- err
		})
	}
	w.mu.Unlock()
	w.begin()
	w.awaitPhase(handoff.PhaseCopying)
	ref := handoff.Ref{Incarnation: 1, Migration: "m1", Instance: 2}
	destroy := w.order(handoff.Action{Kind: handoff.ActOrder, Order: handoff.OrderDestroyCopy, Role: handoff.RoleDestination, Ref: ref})
	if r, err := h.m.Order(t.Context(), destroy); err != nil || !r.GetAccepted() {
		t.Fatalf("%v, %v", r, err)
	}
	if err := <-answer; status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Prepare says %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.trace, "destination destroy"); slices.Contains(w.trace[i:], "destination build") {
		t.Errorf("a copy was built late: %v", w.trace)
	}
}

// A destination that does not know yet that an attempt is over refuses to build another copy. Asking it again neither opens
// another connection nor starts to track the tree a second time.
func TestAskingForAnotherCopyAgain(t *testing.T) {
	w := newWorld(t)
	h, d := w.hosts[handoff.RoleSource], w.hosts[handoff.RoleDestination]
	h.fail["hold"] = errBroke
	asked := make(chan struct{})
	var clocks, tracked int
	w.mu.Lock()
	h.hook = func(step string) {
		for step == "hold" && d.m.phaseOfDestination(handoff.Ref{Incarnation: 1, Migration: "m1"}) == handoff.DestinationSkeleton {
			time.Sleep(time.Millisecond) // its phase wakes nobody
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		switch step {
		case "thaw":
			delete(h.fail, "hold")
		case "track":
			tracked++
		case "clocks":
			if clocks++; clocks == 4 { // the first copy, and three tries
				close(asked)
			}
		}
	}
	d.points = func(p string) {
		if strings.HasPrefix(p, "destination.rewind") && strings.HasSuffix(p, ".before") {
			<-asked
		}
	}
	w.mu.Unlock()
	w.begin()
	w.awaitPhase(handoff.PhaseReleased)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n, open := h.dialled.Load(), h.open.Load(); n != 2 || open != 0 {
		t.Errorf("the peer was dialled %d times, and %d connections are open", n, open)
	}
	if tracked != 2 {
		t.Errorf("the tree was tracked %d times", tracked)
	}
}

// Frames that the port could not be given yet are kept for the next try.
func TestFramesAreKeptUntilThePortIsOpen(t *testing.T) {
	w := newWorld(t)
	h := w.hosts[handoff.RoleSource]
	h.fail["open egress"] = errBroke
	s := &source{log: slog.New(slog.DiscardHandler), port: &fakePort{h: h}, owed: [][]byte{[]byte("kept")}, shut: true}
	if err := s.reopen(); !errors.Is(err, errBroke) {
		t.Errorf("the error is %v", err)
	}
	delete(h.fail, "open egress")
	if err := s.reopen(); err != nil || s.shut || len(s.owed) > 0 {
		t.Errorf("%v, shut %v, frames %q", err, s.shut, s.owed)
	}
	inOrder(t, w.trace, "source open egress", "source open egress", "source deliver kept", "source open ingress")
}

// An agent that dies right after a move has the record of a copy that was let run. By the next start that copy may have gone on to
// another host: there is nothing to resume, and the record goes.
func TestACopyThatHasGoneOnIsNotResumed(t *testing.T) {
	w := newWorld(t)
	w.begin()
	w.awaitPhase(handoff.PhaseReleased)
	h := w.hosts[handoff.RoleDestination]
	h.stop()
	w.run(2, false)
	w.mu.Lock()
	w.trees[2].gone = true
	w.mu.Unlock()
	h.start()
	ref := handoff.Ref{Incarnation: 1, Migration: "m1", Instance: 2}
	h.m.mu.Lock()
	mv := h.m.moves[keyOf(ref, handoff.RoleDestination)]
	h.m.mu.Unlock()
	if mv == nil {
		t.Fatal("the record was removed before the agent died: the test shows nothing")
	}
	select {
	case <-mv.destination.loop.ended: // retired
	case <-time.After(10 * time.Second):
		t.Errorf("the destination is %v; trace %v", h.m.phaseOfDestination(ref), w.trace)
	}
	if r := w.running(); len(r) != 0 {
		t.Errorf("copies %v run", r)
	}
}
