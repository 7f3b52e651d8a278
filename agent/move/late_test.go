package move

import (
	"context"
	"slices"
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
	w.feed(handoff.LeaderEvent{Kind: handoff.LeaderCancel})
	w.await("over", handoff.Record.Closed)
	if err := <-answer; status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Prepare says %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.trace, "destination destroy"); slices.Contains(w.trace[i:], "destination build") {
		t.Errorf("a copy was built late: %v", w.trace)
	}
}
