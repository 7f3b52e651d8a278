package coordinator

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

// drained watches the drain of host1 to its end and returns it with the most moves seen at a time.
func (w *world) drained(seen func(*clusterapi.DrainStatus)) (*clusterapi.DrainStatus, int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	most := 0
	last, err := client.WatchDrain(ctx, w.cluster, "host1", func(s *clusterapi.DrainStatus) error {
		moving := 0
		for _, i := range s.GetItems() {
			if i.GetState() == clusterapi.DrainState_DRAIN_STATE_MOVING {
				moving++
			}
		}
		most = max(most, moving)
		if seen != nil {
			seen(s)
		}
		return nil
	})
	if err != nil {
		w.t.Fatalf("%v after %v", err, last)
	}
	return last, most
}

func (w *world) drain(limit uint32, deadline time.Duration) {
	w.t.Helper()
	if _, err := w.cluster.Drain(w.t.Context(), &clusterapi.DrainRequest{Node: "host1", MaxParallel: limit, DeadlineNs: int64(deadline)}); err != nil {
		w.t.Fatal(err)
	}
}

func refusedWith(t *testing.T, what string, err error, text string) {
	t.Helper()
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("%s: %v, want a refusal with %q", what, err, text)
	}
}

// TestDrain empties a host but for a program that no other takes, and puts it back into use.
func TestDrain(t *testing.T) {
	w := start(t, true)
	for i := range 5 {
		w.run(fmt.Sprint("w", i))
	}
	for _, h := range []string{"host2", "host3"} {
		w.agents[h].refuses = []string{"w3"}
	}
	w.drain(2, 0)
	last, most := w.drained(nil)
	if most < 1 || most > 2 {
		t.Errorf("%d moved at a time", most)
	}
	if len(last.GetItems()) != 5 || last.GetExpired() {
		t.Errorf("in the end: %v", last)
	}
	went := map[string]int{}
	for _, i := range last.GetItems() {
		if i.GetWorkload() == "w3" {
			if i.GetState() != clusterapi.DrainState_DRAIN_STATE_STUCK || i.GetReason() != "host2: /srv/data: host2 does not have it; host3: /srv/data: host3 does not have it" {
				t.Errorf("w3: %v", i)
			}
			continue
		}
		if i.GetState() != clusterapi.DrainState_DRAIN_STATE_MOVED || w.owner(i.GetWorkload()).GetHost() != i.GetDestination() {
			t.Errorf("%v, and it is on %s", i, w.owner(i.GetWorkload()).GetHost())
		}
		m, err := w.cluster.GetMigration(t.Context(), &clusterapi.GetMigrationRequest{Id: i.GetMigration()})
		if m.GetPhase() != clusterapi.Phase_PHASE_RELEASED { // the host would still have the copy that was stopped
			t.Errorf("%v, and its migration is %v, %v", i, m.GetPhase(), err)
		}
		went[i.GetDestination()]++
	}
	if went["host2"] != 2 || went["host3"] != 2 {
		t.Errorf("they went to %v", went)
	}

	_, err := w.cluster.Run(t.Context(), &clusterapi.RunRequest{Host: "host1", Spec: &agentapi.WorkloadSpec{Name: "new", Argv: []string{"prog"}}})
	refusedWith(t, "run there", err, "host1 is drained")
	for i := range 4 {
		r, err := w.cluster.Run(t.Context(), &clusterapi.RunRequest{Spec: &agentapi.WorkloadSpec{Name: fmt.Sprint("any", i), Argv: []string{"prog"}}})
		if err != nil || r.GetWorkload().GetHost() == "host1" {
			t.Errorf("run anywhere: %v, %v", r, err)
		}
	}
	back := &clusterapi.MoveRequest{Target: &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: "w0"}}, Destination: "host1"}
	_, err = w.cluster.Move(t.Context(), back)
	refusedWith(t, "move there", err, "`migrate undrain host1`")
	nodes, err := w.cluster.Nodes(t.Context(), &clusterapi.NodesRequest{})
	for _, n := range nodes.GetNodes() {
		if (n.GetDrainUnixNs() != 0) != (n.GetInfo().GetName() == "host1") {
			t.Errorf("%v, %v", n, err)
		}
	}

	if _, err := w.cluster.Undrain(t.Context(), &clusterapi.UndrainRequest{Node: "host1"}); err != nil {
		t.Fatal(err)
	}
	if m, said := w.await(w.begin("w0", "host1")); m.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED {
		t.Errorf("back: %v, %v", m, said)
	}
	err = func() error {
		st, err := w.cluster.WatchDrain(t.Context(), &clusterapi.WatchDrainRequest{Node: "host1"})
		if err == nil {
			_, err = st.Recv()
		}
		return err
	}()
	refusedWith(t, "watch", err, "host1 is not drained")
	if _, err := w.cluster.Drain(t.Context(), &clusterapi.DrainRequest{Node: "host9"}); status.Code(err) != codes.NotFound {
		t.Errorf("drain of no host: %v", err)
	}
}

// TestDrainOutlivesLeader ends the leader in the middle of a drain.
func TestDrainOutlivesLeader(t *testing.T) {
	w := start(t, true)
	for i := range 6 {
		w.run(fmt.Sprint("w", i))
	}
	w.drain(1, 0)
	killed := false
	last, _ := w.drained(func(s *clusterapi.DrainStatus) {
		for _, i := range s.GetItems() {
			if i.GetState() == clusterapi.DrainState_DRAIN_STATE_MOVED && !killed {
				killed = true
				w.stopServer(w.leader())
			}
		}
	})
	if !killed {
		t.Error("it was over before a leader could be ended")
	}
	for _, i := range last.GetItems() {
		if i.GetState() != clusterapi.DrainState_DRAIN_STATE_MOVED {
			t.Errorf("%v", i)
		}
	}
}

// TestDrainDeadline: after it nothing is begun, and what remains is named.
func TestDrainDeadline(t *testing.T) {
	w := start(t, true)
	w.run("w")
	for _, h := range []string{"host2", "host3"} {
		w.agents[h].refuses = []string{"w"}
	}
	w.drain(0, 200*time.Millisecond)
	var last *clusterapi.DrainStatus
	for end := time.Now().Add(10 * time.Second); !last.GetExpired() && time.Now().Before(end); {
		last, _ = w.drained(nil)
	}
	if !last.GetExpired() || len(last.GetItems()) != 1 || last.GetItems()[0].GetState() != clusterapi.DrainState_DRAIN_STATE_STUCK || last.GetMaxParallel() != defaultParallel {
		t.Errorf("in the end: %v", last)
	}
	// Again, with another limit: it is the same drain.
	w.drain(5, 0)
	if again, _ := w.drained(nil); again.GetExpired() || again.GetMaxParallel() != 5 || again.GetBegunUnixNs() != last.GetBegunUnixNs() {
		t.Errorf("again: %v", again)
	}
	if _, err := w.cluster.Drain(t.Context(), &clusterapi.DrainRequest{Node: "host1", DeadlineNs: -1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a deadline in the past: %v", err)
	}
	if _, err := w.cluster.Drain(t.Context(), &clusterapi.DrainRequest{Node: "host1", DeadlineNs: math.MaxInt64}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a deadline without end: %v", err)
	}
}
