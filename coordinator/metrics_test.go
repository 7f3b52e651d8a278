package coordinator

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// measured is the values of a server's metrics by name and label.
func measured(t *testing.T, s *Server) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for _, c := range s.Metrics() {
		if err := reg.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

// TestMetrics: every server answers, of itself and of the cluster.
func TestMetrics(t *testing.T) {
	w := start(t, true)
	w.run("w")
	w.await(w.begin("w", "host2"))
	w.run("v")
	leaders := 0.0
	for _, s := range w.servers {
		got := measured(t, s)
		leaders += got["migrate_raft_leader"]
		if got["migrate_raft_has_leader"] != 1 || got["migrate_raft_voters"] != 3 || got["migrate_raft_term"] < 1 || got["migrate_raft_applied_index"] < 5 || got["migrate_raft_last_index"] < 5 {
			t.Errorf("%s: %v", s.c.Name, got)
		}
		if !s.Leads() {
			continue
		}
		if got["migrate_cluster_workloads running"] != 2 || got["migrate_cluster_hosts up"] != 3 || got["migrate_cluster_hosts silent"] != 0 || got["migrate_cluster_moves_open needs_operator"] != 0 ||
			got["migrate_cluster_events_total"] < 10 || got["migrate_cluster_hosts_drained"] != 0 {
			t.Errorf("the leader: %v", got)
		}
	}
	if leaders != 1 {
		t.Errorf("%v lead", leaders)
	}
}
