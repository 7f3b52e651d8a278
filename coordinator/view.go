package coordinator

import (
	"cmp"
	"slices"
	"time"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

// final says whether a watcher has nothing to wait for. A migration may be final before it is closed: the source runs,
// but the destination has not yet said that its copy is gone, or an operator has to speak.
func final(m *logpb.Migration, now time.Time) bool {
	r := fsm.Record(m)
	since := now.Sub(time.Unix(0, m.GetPhaseUnixNs()))
	switch r.Phase {
	case handoff.PhaseNeedsOperator:
		return true
	case handoff.PhaseConfirmed, handoff.PhaseLost, handoff.PhaseResumed:
		return r.Closed() || since > watchersWait
	}
	return r.Closed()
}

// watchersWait is how long the last acknowledgement of a migration that is decided holds up its watchers.
const watchersWait = 5 * time.Second

// migration is what the leader knows of one: the log, and what a session has heard since.
func (t *term) migration(m *logpb.Migration) *clusterapi.Migration {
	r := fsm.Record(m)
	now := time.Now()
	out := &clusterapi.Migration{Id: r.Migration, Workload: m.GetWorkload(), Source: m.GetSource(), Destination: m.GetDestination(),
		Phase: fsm.Phase(r.Phase), Outcome: fsm.Outcome(r.Phase), Attempt: r.Attempt, Incarnation: r.Incarnation,
		SourceInstance: r.Source, DestinationInstance: r.Destination, Epoch: r.Epoch, Pid: m.GetPid(), DestinationPid: m.GetDestinationPid(),
		Options: withDefaults(m.GetOptions()), BegunUnixNs: m.GetBegunUnixNs(), PhaseUnixNs: m.GetPhaseUnixNs(), EndedUnixNs: m.GetEndedUnixNs(),
		Progress: m.GetProgress(), Connections: m.GetConnections(), DowntimeMs: m.GetDowntimeMs(), FrozenMs: m.GetFrozenMs(),
		PredictedDowntimeMs: m.GetPredictedDowntimeMs(), Error: m.GetError(), Cancelled: r.Cancelled, Final: final(m, now), Steps: m.GetSteps()}
	end := cmp.Or(m.GetEndedUnixNs(), now.UnixNano())
	out.TotalMs = float64(end-m.GetBegunUnixNs()) / 1e6
	t.mu.Lock()
	s := t.sessions[r.Migration]
	t.mu.Unlock()
	if s != nil {
		s.addTo(out)
	}
	if p := out.GetProgress().GetPredictedDowntimeMs(); p > 0 {
		out.PredictedDowntimeMs = p
	}
	out.Steps = slices.SortedStableFunc(slices.Values(slices.Concat(out.GetProgress().GetSteps(), out.Steps)), func(a, b *clusterapi.Step) int {
		return cmp.Compare(a.GetStartMs(), b.GetStartMs())
	})
	return out
}

// addTo adds what only the session knows.
func (s *session) addTo(out *clusterapi.Migration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &s.view
	if v.progress != nil {
		out.Progress = v.progress
	}
	out.Pid = cmp.Or(v.pid, out.Pid)
	out.DestinationPid = cmp.Or(v.destPID, out.DestinationPid)
	out.DowntimeMs = cmp.Or(v.downtimeMS, out.DowntimeMs)
	out.FrozenMs = cmp.Or(v.frozenMS, out.FrozenMs)
	if len(v.connections) > 0 {
		out.Connections = v.connections
	}
	if len(v.steps) > 0 {
		out.Steps = v.steps
	}
	if v.voted && out.Phase == clusterapi.Phase_PHASE_SWITCHING {
		out.Phase = clusterapi.Phase_PHASE_VOTED
	}
	out.WaitingFor = cmp.Or(v.silent[handoff.RoleSource], v.silent[handoff.RoleDestination])
}

// owner is who may run, as the log has it.
func readMigration(st *fsm.State, m *logpb.Migration) *clusterapi.ReadMigrationReply {
	r := fsm.Record(m)
	out := &clusterapi.ReadMigrationReply{Id: r.Migration, Incarnation: r.Incarnation, Phase: fsm.Phase(r.Phase), Attempt: r.Attempt,
		EndedAttempt: r.Ended, Workload: m.GetWorkload(), Source: m.GetSource(), Destination: m.GetDestination(),
		SourceInstance: r.Source, DestinationInstance: r.Destination, Epoch: r.Epoch, Closed: r.Closed(), Reason: m.GetError(),
		LogIndex: st.LastIndex, Outcome: fsm.Outcome(r.Phase), Owner: m.GetSource(), OwnerInstance: r.Source}
	if r.Owner == handoff.RoleDestination {
		out.Owner, out.OwnerInstance = m.GetDestination(), r.Destination
	}
	return out
}

// workload is what the leader knows of one: the log, and what its host said last.
func (t *term) workload(w *logpb.Workload) *clusterapi.Workload {
	out := &clusterapi.Workload{Name: w.GetSpec().GetName(), Host: w.GetHost(), Epoch: w.GetEpoch(), Instance: w.GetInstance(),
		State: w.GetState(), Migration: w.GetMigration(), Spec: w.GetSpec(), CreatedUnixNs: w.GetCreatedUnixNs(), Pid: w.GetPid(),
		WaitStatus: w.GetWaitStatus(), Address: w.GetSpec().GetAddr()}
	if c := t.copyOf(w); c != nil && w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_ENDED {
		out.Pid = cmp.Or(c.GetPid(), out.Pid)
		out.RssBytes, out.Connections, out.StartedUnixNs, out.Command = c.GetRssBytes(), c.GetConnections(), c.GetStartedUnixNs(), c.GetCommand()
		out.Address = cmp.Or(c.GetAddress(), out.Address)
	}
	return out
}
