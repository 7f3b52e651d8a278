package coordinator

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
)

var (
	raftLeaderDesc  = prometheus.NewDesc("migrate_raft_leader", "1 if this server leads, else 0.", nil, nil)
	raftHasDesc     = prometheus.NewDesc("migrate_raft_has_leader", "1 if this server knows of a leader, else 0.", nil, nil)
	raftTermDesc    = prometheus.NewDesc("migrate_raft_term", "Term of the log; it goes up with each election.", nil, nil)
	raftAppliedDesc = prometheus.NewDesc("migrate_raft_applied_index", "Last entry of the log that was applied here.", nil, nil)
	raftCommitDesc  = prometheus.NewDesc("migrate_raft_commit_index", "Last entry of the log that this server knows to be decided.", nil, nil)
	raftLastDesc    = prometheus.NewDesc("migrate_raft_last_index", "Last entry of the log on this server's disk.", nil, nil)
	raftVotersDesc  = prometheus.NewDesc("migrate_raft_voters", "Servers whose votes count.", nil, nil)
	eventsDesc      = prometheus.NewDesc("migrate_cluster_events_total", "Events that the log has told; the same on every server.", nil, nil)
	openDesc        = prometheus.NewDesc("migrate_cluster_moves_open", "Moves that are under way, by phase, as this server has applied the log: the same on every server.", []string{"phase"}, nil)
	ownedDesc       = prometheus.NewDesc("migrate_cluster_workloads", "Workloads of the cluster, by state: the same on every server.", []string{"state"}, nil)
	hostsDesc       = prometheus.NewDesc("migrate_cluster_hosts", "Hosts of the cluster, by whether their agents are heard: the same on every server.", []string{"state"}, nil)
	drainedDesc     = prometheus.NewDesc("migrate_cluster_hosts_drained", "Hosts of the cluster that are out of use: the same on every server.", nil, nil)
)

// Metrics is what this server has to say to Prometheus.
func (s *Server) Metrics() []prometheus.Collector { return []prometheus.Collector{serverMetrics{s}} }

type serverMetrics struct{ s *Server }

// Describe is prometheus.Collector's.
func (serverMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{raftLeaderDesc, raftHasDesc, raftTermDesc, raftAppliedDesc, raftCommitDesc, raftLastDesc, raftVotersDesc, eventsDesc, openDesc, ownedDesc, hostsDesc, drainedDesc} {
		out <- d
	}
}

// Collect is prometheus.Collector's. It reads what is here and asks nobody, so that a server without a leader answers, too.
func (m serverMetrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	truth := map[bool]float64{true: 1}
	r := m.s.node.raft
	gauge(raftLeaderDesc, truth[m.s.Leads()])
	gauge(raftHasDesc, truth[m.s.Leader() != ""])
	if term, err := strconv.ParseFloat(r.Stats()["term"], 64); err == nil {
		gauge(raftTermDesc, term)
	}
	gauge(raftAppliedDesc, float64(r.AppliedIndex()))
	gauge(raftCommitDesc, float64(r.CommitIndex()))
	gauge(raftLastDesc, float64(r.LastIndex()))
	voters := 0
	for _, votes := range m.s.node.voters() {
		if votes {
			voters++
		}
	}
	gauge(raftVotersDesc, float64(voters))

	phases := map[string]float64{"copying": 0, "needs_operator": 0}
	states := map[string]float64{"running": 0}
	hosts := map[string]float64{"up": 0, "silent": 0}
	var events uint64
	drained := 0
	m.s.node.store.Read(func(st *fsm.State) {
		events = st.LastEvent
		for _, x := range st.Open() {
			phases[lower(fsm.Phase(fsm.Record(x).Phase).String(), "PHASE_")]++
		}
		for _, w := range st.Workloads {
			if s := w.GetState(); s != clusterapi.WorkloadState_WORKLOAD_STATE_ENDED {
				states[lower(s.String(), "WORKLOAD_STATE_")]++
			}
		}
		for _, n := range st.Nodes {
			if n.GetSilentSinceUnixNs() == 0 {
				hosts["up"]++
			} else {
				hosts["silent"]++
			}
			if n.GetDrain() != nil {
				drained++
			}
		}
	})
	out <- prometheus.MustNewConstMetric(eventsDesc, prometheus.CounterValue, float64(events))
	gauge(drainedDesc, float64(drained))
	for d, by := range map[*prometheus.Desc]map[string]float64{openDesc: phases, ownedDesc: states, hostsDesc: hosts} {
		for _, label := range slices.Sorted(maps.Keys(by)) {
			gauge(d, by[label], label)
		}
	}
}

// lower is the name of a value of an enumeration as a label.
func lower(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
