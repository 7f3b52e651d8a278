package coordinator

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
)

// TestHostDown: what concerns a host that is down is refused at once, and a stop is made up for when it is back.
func TestHostDown(t *testing.T) {
	w := start(t, true)
	w.run("w")
	w.agents["host1"].goSilent(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	until := func(what string, done func() bool) {
		t.Helper()
		for !done() {
			select {
			case <-ctx.Done():
				t.Fatalf("%s: it never was", what)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	w.awaitDown("host1")
	_, err := w.cluster.Stop(ctx, &clusterapi.StopRequest{Workload: "w"})
	if m := status.Convert(err).Message(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(m, "host1 is down") || !strings.Contains(m, "w will be stopped when it is back") {
		t.Errorf("stop: %v", err)
	}
	logs, err := w.cluster.Logs(ctx, &clusterapi.LogsRequest{Workload: "w", Follow: true})
	var chunk *agentapi.LogsChunk
	if err == nil {
		chunk, err = logs.Recv()
	}
	if m := status.Convert(err).Message(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(m, "host1 is down") {
		t.Errorf("logs: %v, %v", chunk, err)
	}
	if st := w.owner("w").GetState(); st != clusterapi.WorkloadState_WORKLOAD_STATE_STOPPING {
		t.Errorf("meanwhile it is %v", st)
	}
	w.agents["host1"].goSilent(false)
	until("w ended", func() bool { return w.owner("w").GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_ENDED })
}

// awaitDown waits until a host that has gone silent counts as down.
func (w *world) awaitDown(host string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	for {
		r, err := w.cluster.Nodes(ctx, &clusterapi.NodesRequest{})
		for _, n := range r.GetNodes() {
			if n.GetInfo().GetName() == host && !n.GetUp() && time.Since(time.Unix(0, n.GetLastHeardUnixNs())) > w.configs["host1"].Limits.Silence {
				return
			}
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("%s is not down: %v, %v", host, r, err)
		case <-time.After(50 * time.Millisecond): // the API has no event for it
		}
	}
}

// TestSet: new limits are taken over within bounds.
func TestSet(t *testing.T) {
	w := start(t, true)
	w.run("w")
	reached, done := make(chan struct{}), make(chan struct{})
	w.agents["host1"].setHook(holdFirst(reached, done))
	id := w.begin("w", "host2")
	<-reached
	r, err := w.cluster.Retune(t.Context(), &clusterapi.RetuneRequest{Id: id, MaxDowntimeNs: int64(time.Second), BandwidthBytesPerSecond: 1 << 20})
	if o := r.GetMigration().GetOptions(); err != nil || o.GetMaxDowntimeNs() != int64(time.Second) || o.GetHardLimitNs() != int64(10*time.Second) || o.GetBandwidthBytesPerSecond() != 1<<20 {
		t.Errorf("%v, %v", o, err)
	}
	if _, err := w.cluster.Retune(t.Context(), &clusterapi.RetuneRequest{Id: id, MaxDowntimeNs: -1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("below zero: %v", err)
	}
	close(done)
	w.await(id)
}

// holdFirst stops an agent at its first action until done is closed.
func holdFirst(reached, done chan struct{}) func(handoff.Role, handoff.Action) error {
	var once sync.Once
	return func(handoff.Role, handoff.Action) error {
		once.Do(func() { close(reached); <-done })
		return nil
	}
}
