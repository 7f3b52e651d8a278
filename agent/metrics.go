package agent

import (
	"context"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	agentapi "migrate/agent/api"
	"migrate/agent/move"
	clusterapi "migrate/coordinator/api"
)

// metrics counts what this host's agent says of its moves to the cluster: each report once, when it was answered.
type metrics struct {
	moves         *prometheus.CounterVec
	blackout      prometheus.Histogram
	frozen        prometheus.Histogram
	attempts      prometheus.Counter
	rounds        prometheus.Counter
	pages, bytes  prometheus.Counter
	lastHeartbeat prometheus.Gauge

	mu    sync.Mutex
	seen  map[string]*counted // by migration
	order []string            // of seen, oldest first
}

// counted is what was counted of a migration.
type counted struct {
	rounds, attempt uint32
	pages, bytes    uint64
	ended           bool
}

// migrationsCounted is how many migrations are remembered: more than one host can have under way.
const migrationsCounted = 1024

// seconds are the buckets of times in which a program stood still: 1 ms to 16 s.
var seconds = prometheus.ExponentialBuckets(0.001, 2, 15)

func newMetrics() *metrics {
	m := &metrics{
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "migrate_moves_total",
			Help: "Moves that have ended, by outcome. Each is counted on one host: moved by its destination, source_running and lost by who says so."}, []string{"outcome"}),
		blackout: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "migrate_move_blackout_seconds", Buckets: seconds,
			Help: "From the stop of the first thread at the source until the last one could run here."}),
		frozen: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "migrate_move_frozen_seconds", Buckets: seconds,
			Help: "How long a program of this host stood still for a switch that did not come about."}),
		attempts: prometheus.NewCounter(prometheus.CounterOpts{Name: "migrate_move_attempts_ended_total",
			Help: "Switches of programs of this host that were begun and given up before a vote."}),
		rounds: prometheus.NewCounter(prometheus.CounterOpts{Name: "migrate_move_rounds_total", Help: "Rounds of copying that this host has sent."}),
		pages:  prometheus.NewCounter(prometheus.CounterOpts{Name: "migrate_move_sent_pages_total", Help: "Pages of memory that this host has sent."}),
		bytes:  prometheus.NewCounter(prometheus.CounterOpts{Name: "migrate_move_sent_bytes_total", Help: "Bytes that this host has sent on page streams, as they were on the wire."}),
		lastHeartbeat: prometheus.NewGauge(prometheus.GaugeOpts{Name: "migrate_agent_last_heartbeat_timestamp_seconds",
			Help: "When the cluster has last answered this agent; 0: never."}),
		seen: map[string]*counted{},
	}
	for _, outcome := range []string{"moved", "source_running", "lost"} {
		m.moves.WithLabelValues(outcome)
	}
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.moves, m.blackout, m.frozen, m.attempts, m.rounds, m.pages, m.bytes, m.lastHeartbeat}
}

// answered counts a report that the cluster has taken. It may be said again: a leader that has not heard of it asks.
func (m *metrics) answered(r *clusterapi.ReportRequest) {
	id := r.GetRef().GetMigration()
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.seen[id]
	if c == nil {
		c = &counted{}
		m.seen[id] = c
		if m.order = append(m.order, id); len(m.order) > migrationsCounted {
			delete(m.seen, m.order[0])
			m.order = m.order[1:]
		}
	}
	switch e := r.GetEvent().(type) {
	case *clusterapi.ReportRequest_Progress:
		m.progress(c, e.Progress)
	case *clusterapi.ReportRequest_Resumed:
		if ms := e.Resumed.GetDowntimeMs(); !c.ended && ms > 0 { // unknown after a restart of the agent
			m.blackout.Observe(ms / 1000)
		}
		m.end(c, "moved")
	case *clusterapi.ReportRequest_Confirmed:
		if !c.ended {
			m.stoodStill(e.Confirmed.GetFrozenMs())
		}
		m.end(c, "source_running")
	case *clusterapi.ReportRequest_AttemptEnded:
		if attempt := r.GetRef().GetAttempt(); attempt > c.attempt {
			c.attempt = attempt
			m.attempts.Inc()
			m.stoodStill(e.AttemptEnded.GetFrozenMs())
		}
	case *clusterapi.ReportRequest_LostCopy:
		if r.GetRole() == agentapi.Role_ROLE_SOURCE {
			m.end(c, "lost")
		}
	}
}

func (m *metrics) end(c *counted, outcome string) {
	if !c.ended {
		c.ended = true
		m.moves.WithLabelValues(outcome).Inc()
	}
}

func (m *metrics) stoodStill(ms float64) {
	if ms > 0 {
		m.frozen.Observe(ms / 1000)
	}
}

// progress adds what is new: the figures of a migration only go up, but reports may overtake each other.
func (m *metrics) progress(c *counted, p *clusterapi.Progress) {
	was := *c
	c.rounds, c.pages, c.bytes = max(was.rounds, uint32(len(p.GetRounds()))), max(was.pages, p.GetPagesSent()), max(was.bytes, p.GetBytesSent())
	m.rounds.Add(float64(c.rounds - was.rounds))
	m.pages.Add(float64(c.pages - was.pages))
	m.bytes.Add(float64(c.bytes - was.bytes))
}

// counting is a cluster whose answers to reports are counted.
type counting struct {
	move.Cluster
	m *metrics
}

// Report is move.Cluster's.
func (c counting) Report(ctx context.Context, in *clusterapi.ReportRequest, opts ...grpc.CallOption) (*clusterapi.ReportReply, error) {
	out, err := c.Cluster.Report(ctx, in, opts...)
	if err == nil && !out.GetStale() {
		c.m.answered(in)
	}
	return out, err
}

var (
	workloadsDesc = prometheus.NewDesc("migrate_workloads", "Copies of workloads on this host, by state.", []string{"state"}, nil)
	residentDesc  = prometheus.NewDesc("migrate_workloads_resident_memory_bytes", "Memory of this host that its workloads take.", nil, nil)
	memoryDesc    = prometheus.NewDesc("migrate_host_memory_bytes", "Memory of this host.", nil, nil)
	freeDesc      = prometheus.NewDesc("migrate_host_memory_available_bytes", "Memory that a workload could take without swapping (MemAvailable of proc(5)).", nil, nil)
	buildDesc     = prometheus.NewDesc("migrate_build_info", "1; which version runs here, and on which host.", []string{"version", "host"}, nil)
)

// Metrics is what this host's agent has to say to Prometheus. It is asked for while the agent runs.
func (a *Agent) Metrics() []prometheus.Collector { return append(a.metrics.all(), hostMetrics{a}) }

// hostMetrics are looked at when they are asked for.
type hostMetrics struct{ a *Agent }

// Describe is prometheus.Collector's.
func (hostMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{workloadsDesc, residentDesc, memoryDesc, freeDesc, buildDesc} {
		out <- d
	}
}

// Collect is prometheus.Collector's.
func (h hostMetrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := map[agentapi.CopyState]int{agentapi.CopyState_COPY_STATE_RUNNING: 0}
	var resident uint64
	for _, c := range h.a.copies() {
		count[c.GetState()]++
		resident += c.GetRssBytes()
	}
	for state, n := range count {
		gauge(workloadsDesc, float64(n), strings.ToLower(strings.TrimPrefix(state.String(), "COPY_STATE_")))
	}
	gauge(residentDesc, float64(resident))
	gauge(memoryDesc, float64(h.a.node.GetMemoryBytes()))
	if free, err := meminfo("MemAvailable"); err == nil {
		gauge(freeDesc, float64(free))
	}
	gauge(buildDesc, 1, h.a.cfg.Version, h.a.cfg.Name)
}
