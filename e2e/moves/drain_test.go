//go:build linux

package moves

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/demo"
)

// TestDrain empties a host of a server in use and of three other programs; one that has a file open which only that host has stays, and is named.
func TestDrain(t *testing.T) {
	s := begin(t, 3*time.Minute)
	const endpoint = "10.77.0.63:6379"
	s.Workload("drained-redis", "10.77.0.63/24", redisCommand(t)...)
	for i := range 3 {
		s.Workload(fmt.Sprint("drained-", i), "", "sh", "-c", "while :; do sleep 0.1; done")
	}
	const only = "/srv/only-here"
	if err := cluster.Hosts.Host("host1").WriteFile(s.Ctx, only, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Workload("stays", "", "sh", "-c", "exec 7<"+only+"; while :; do sleep 1; done")
	s.AwaitListener(endpoint)
	clients, err := demo.StartClients(s.Ctx, 8, cluster.Dialer(endpoint))
	if err != nil {
		t.Fatal(err)
	}
	defer clients.Stop()
	s.progress(clients, 50)
	t.Cleanup(func() { // the cluster is that of other tests, too
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if out, err := cluster.Hosts.Host("host1").Exec(ctx, cluster.Migrate, "undrain", "host1"); err != nil {
			t.Errorf("undrain: %v\n%s", err, out)
		}
	})
	out := s.Fails(1, "host1", cluster.Migrate, "drain", "host1", "-o", "json")
	var r struct {
		Empty     bool
		Workloads []struct{ Workload, State, Destination, Reason string }
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&r); err != nil { // what follows is the progress
		t.Fatalf("%v in\n%s", err, out)
	}
	moved := 0
	for _, w := range r.Workloads {
		switch {
		case w.State == "moved" && w.Workload != "stays" && w.Destination != "host1":
			moved++
		case w.State == "stuck" && w.Workload == "stays" && strings.Contains(w.Reason, only):
		default:
			t.Errorf("%+v", w)
		}
	}
	if moved != 4 || r.Empty {
		t.Errorf("%d moved:\n%s", moved, out)
	}
	drainEvents(t, s.On("host2", cluster.Migrate, "events", "-o", "json"))
	s.progress(clients, clients.Report().Increments+50)
	clients.Stop()
	if wrong, err := clients.Verify(s.Ctx, cluster.Dialer(endpoint)); err != nil || wrong != 0 {
		t.Errorf("%d increments are wrong, %v", wrong, err)
	}
}

// drainEvents: what happened is told, with what a script needs of it.
func drainEvents(t *testing.T, out string) {
	t.Helper()
	kinds, last := map[string]int{}, 0
	dec := json.NewDecoder(strings.NewReader(out))
	for dec.More() {
		var e struct {
			Index                          int
			Kind, Workload, Outcome, State string
			Downtime                       float64 `json:"downtime_ms"`
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if last != 0 && e.Index != last+1 {
			t.Errorf("event %d comes after %d", e.Index, last)
		}
		last = e.Index
		if strings.HasPrefix(e.Workload, "drained-") || strings.HasPrefix(e.Kind, "drain_") {
			kinds[e.Kind]++
		}
		if e.Workload == "drained-redis" && e.Kind == "move_ended" && (e.Outcome != "moved" || e.State != "released" || e.Downtime <= 0) {
			t.Errorf("%+v", e)
		}
	}
	for kind, least := range map[string]int{"workload_started": 4, "move_begun": 4, "move_committed": 4, "move_ended": 4, "drain_begun": 1, "drain_progress": 4} {
		if kinds[kind] < least {
			t.Errorf("%d events are %s, want %d:\n%s", kinds[kind], kind, least, out)
		}
	}
}
