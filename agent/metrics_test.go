package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"

	agentapi "migrate/agent/api"
	"migrate/agent/move"
	clusterapi "migrate/coordinator/api"
)

// answers is a cluster that answers reports as it is told.
type answers struct {
	move.Cluster
	err   error
	stale bool
}

func (a *answers) Report(context.Context, *clusterapi.ReportRequest, ...grpc.CallOption) (*clusterapi.ReportReply, error) {
	return &clusterapi.ReportReply{Stale: a.stale}, a.err
}

// gathered is the values of metrics by name and labels; of a histogram: how many, and _sum.
func gathered(t *testing.T, list []prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for _, c := range list {
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
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				out[name] = m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				out[name] = m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				out[name], out[name+"_sum"] = float64(m.GetHistogram().GetSampleCount()), m.GetHistogram().GetSampleSum()
			}
		}
	}
	return out
}

// TestMetricsCount: what the cluster has taken counts once, however often it is said.
func TestMetricsCount(t *testing.T) {
	m := newMetrics()
	cluster := &answers{}
	c := counting{cluster, m}
	report := func(migration string, attempt uint32, role agentapi.Role, event any) {
		t.Helper()
		r := &clusterapi.ReportRequest{Ref: &agentapi.Ref{Migration: migration, Attempt: attempt}, Role: role}
		switch e := event.(type) {
		case *clusterapi.Progress:
			r.Event = &clusterapi.ReportRequest_Progress{Progress: e}
		case *clusterapi.Resumed:
			r.Event = &clusterapi.ReportRequest_Resumed{Resumed: e}
		case *clusterapi.Confirmed:
			r.Event = &clusterapi.ReportRequest_Confirmed{Confirmed: e}
		case *clusterapi.AttemptEnded:
			r.Event = &clusterapi.ReportRequest_AttemptEnded{AttemptEnded: e}
		case *clusterapi.LostCopy:
			r.Event = &clusterapi.ReportRequest_LostCopy{LostCopy: e}
		}
		if _, err := c.Report(t.Context(), r); !errors.Is(err, cluster.err) {
			t.Fatal(err)
		}
	}
	source, destination := agentapi.Role_ROLE_SOURCE, agentapi.Role_ROLE_DESTINATION
	rounds := func(n int) []*clusterapi.Round { return make([]*clusterapi.Round, n) }
	report("m1", 0, source, &clusterapi.Progress{Rounds: rounds(1), PagesSent: 10, BytesSent: 1000})
	report("m1", 0, source, &clusterapi.Progress{Rounds: rounds(3), PagesSent: 30, BytesSent: 3000})
	report("m1", 0, source, &clusterapi.Progress{Rounds: rounds(2), PagesSent: 20, BytesSent: 2000}) // overtaken
	for range 2 {
		report("m1", 1, source, &clusterapi.AttemptEnded{FrozenMs: 250})
	}
	report("m1", 2, source, &clusterapi.AttemptEnded{FrozenMs: 250})
	report("m1", 2, source, &clusterapi.Confirmed{})
	for range 2 {
		report("m2", 1, destination, &clusterapi.Resumed{DowntimeMs: 12})
	}
	report("m3", 1, destination, &clusterapi.LostCopy{}) // the source says what became of it
	report("m4", 1, source, &clusterapi.LostCopy{})
	cluster.err = errors.New("silent")
	report("m5", 1, destination, &clusterapi.Resumed{DowntimeMs: 12})
	cluster.err, cluster.stale = nil, true
	report("m6", 1, destination, &clusterapi.Resumed{DowntimeMs: 12})

	got := gathered(t, m.all())
	for name, want := range map[string]float64{"migrate_moves_total moved": 1, "migrate_moves_total source_running": 1, "migrate_moves_total lost": 1,
		"migrate_move_blackout_seconds": 1, "migrate_move_blackout_seconds_sum": 0.012, "migrate_move_frozen_seconds": 2, "migrate_move_frozen_seconds_sum": 0.5,
		"migrate_move_attempts_ended_total": 2, "migrate_move_rounds_total": 3, "migrate_move_sent_pages_total": 30, "migrate_move_sent_bytes_total": 3000} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	cluster.stale = false
	for i := range 2 * migrationsCounted {
		report(fmt.Sprint("n", i), 0, source, &clusterapi.Progress{})
	}
	if len(m.seen) != migrationsCounted || len(m.order) != migrationsCounted {
		t.Errorf("%d migrations are remembered, %d in order", len(m.seen), len(m.order))
	}
}
