package coordinator

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

var errSeen = errors.New("seen")

// TestEvents: one who follows has each event once and in order, through the death of the leader, and hears of hosts that come and go.
func TestEvents(t *testing.T) {
	w := start(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	req := &clusterapi.EventsRequest{Follow: true}
	var all []*clusterapi.Event
	until := func(kind clusterapi.EventKind, about string) {
		t.Helper()
		err := client.Events(ctx, w.cluster, req, func(e *clusterapi.Event) error {
			if want := uint64(len(all) + 1); e.GetIndex() != want {
				t.Errorf("event %d came where %d was to come: %v", e.GetIndex(), want, e)
			}
			all = append(all, e)
			if e.GetKind() == kind && strings.Contains(e.GetText(), about) {
				req.After = e.GetIndex()
				return errSeen
			}
			return nil
		})
		if !errors.Is(err, errSeen) {
			t.Fatalf("waiting for %v of %s: %v; seen: %v", kind, about, err, all)
		}
	}
	w.run("w")
	until(clusterapi.EventKind_EVENT_KIND_WORKLOAD_STARTED, "w")
	w.await(w.begin("w", "host2"))
	until(clusterapi.EventKind_EVENT_KIND_MOVE_ENDED, "w has moved to host2")

	// A follower that is waiting when the leader dies goes on at the next one.
	waiting := make(chan error, 1)
	go func() {
		r := &clusterapi.EventsRequest{Follow: true, After: uint64(len(all))}
		next := r.After
		waiting <- client.Events(ctx, w.cluster, r, func(e *clusterapi.Event) error {
			if next++; e.GetIndex() != next {
				t.Errorf("the waiting one had %v after %d", e, next-1)
			}
			if e.GetKind() == clusterapi.EventKind_EVENT_KIND_WORKLOAD_STARTED && e.GetWorkload() == "x" {
				return errSeen
			}
			return nil
		})
	}()
	dead := w.leader()
	w.stopServer(dead)
	w.run("x")
	if err := <-waiting; !errors.Is(err, errSeen) {
		t.Fatal(err)
	}
	w.startServer(t, dead)
	until(clusterapi.EventKind_EVENT_KIND_WORKLOAD_STARTED, "x")

	w.agents["host3"].goSilent(true)
	until(clusterapi.EventKind_EVENT_KIND_HOST_LOST, "host3")
	w.agents["host3"].goSilent(false)
	until(clusterapi.EventKind_EVENT_KIND_HOST_BACK, "host3")

	again := 0
	if err := client.Events(ctx, w.cluster, &clusterapi.EventsRequest{After: 2}, func(e *clusterapi.Event) error { again++; return nil }); err != nil || again < len(all)-2 {
		t.Errorf("all but two, once more: %d of %d, %v", again, len(all), err)
	}
	err := client.Events(ctx, w.cluster, &clusterapi.EventsRequest{After: 1 << 40}, func(e *clusterapi.Event) error { return nil })
	if status.Code(err) != codes.OutOfRange {
		t.Errorf("after an event that is not there: %v", err)
	}
}
