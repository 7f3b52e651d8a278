package fsm

import (
	"cmp"

	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

// dispatch is the table: one apply function for each kind of command.
func dispatch(s *State, c *logpb.Command) Result {
	now := c.GetUnixNs()
	switch k := c.GetCommand().(type) {
	case *logpb.Command_SetIncarnation:
		return s.setIncarnation(k.SetIncarnation)
	case *logpb.Command_RegisterNode:
		return s.registerNode(k.RegisterNode, now)
	case *logpb.Command_CreateWorkload:
		return s.createWorkload(k.CreateWorkload, now)
	case *logpb.Command_WorkloadStarted:
		return s.workloadStarted(k.WorkloadStarted)
	case *logpb.Command_StopWorkload:
		return s.stopWorkload(k.StopWorkload)
	case *logpb.Command_WorkloadEnded:
		return s.workloadEnded(k.WorkloadEnded)
	case *logpb.Command_BeginMigration:
		return s.beginMigration(k.BeginMigration, now)
	case *logpb.Command_MigrationEntry:
		return s.migrationEntry(k.MigrationEntry, now)
	case *logpb.Command_Retune:
		return s.retune(k.Retune)
	case *logpb.Command_SetDrain:
		return s.setDrain(k.SetDrain)
	case *logpb.Command_NodeHeard:
		return s.nodeHeard(k.NodeHeard)
	case *logpb.Command_CreateToken:
		return s.createToken(k.CreateToken, now)
	case *logpb.Command_RedeemToken:
		return s.redeemToken(k.RedeemToken, now)
	}
	return Result{Err: conflict(Refused, "a command of an unknown kind")}
}

func (s *State) setIncarnation(c *logpb.SetIncarnation) Result {
	if c.GetIncarnation() <= s.Incarnation {
		return Result{Err: conflict(Refused, "incarnation %d is not above %d", c.GetIncarnation(), s.Incarnation)}
	}
	s.Incarnation = c.GetIncarnation()
	return Result{}
}

// registerNode also says that a host with a new boot id holds no copy from before: what it owned outside of a
// migration is lost. What it holds inside of one is the business of the handoff.
func (s *State) registerNode(c *logpb.RegisterNode, now int64) Result {
	name := c.GetNode().GetName()
	if name == "" || c.GetNode().GetBootId() == "" {
		return Result{Err: conflict(Refused, "a node without name or boot id cannot register")}
	}
	s.Nodes[name] = &logpb.Node{Info: c.GetNode(), RegisteredUnixNs: now, Drain: s.Nodes[name].GetDrain()}
	for wname, w := range s.Workloads {
		if w.Host == name && w.BootId != c.GetNode().GetBootId() && w.Migration == "" && alive(w.State) {
			n := proto.CloneOf(w)
			n.State, n.Error = clusterapi.WorkloadState_WORKLOAD_STATE_LOST, "its host "+name+" started again without it"
			s.Workloads[wname] = n
		}
	}
	return Result{}
}

// nodeHeard keeps since when an agent is silent, for people.
func (s *State) nodeHeard(c *logpb.NodeHeard) Result {
	n := s.Nodes[c.GetNode()]
	if n == nil {
		return Result{Err: conflict(NotFound, "no host is named %q", c.GetNode())}
	}
	if n.GetInfo().GetBootId() != c.GetBootId() {
		return Result{Err: conflict(Refused, "%s has started again since", c.GetNode())}
	}
	n = proto.CloneOf(n)
	n.SilentSinceUnixNs = c.GetSilentSinceUnixNs()
	s.Nodes[c.GetNode()] = n
	return Result{}
}

func alive(st clusterapi.WorkloadState) bool {
	return st != clusterapi.WorkloadState_WORKLOAD_STATE_ENDED && st != clusterapi.WorkloadState_WORKLOAD_STATE_LOST
}

func (s *State) createWorkload(c *logpb.CreateWorkload, now int64) Result {
	name := c.GetSpec().GetName()
	node := s.Nodes[c.GetHost()]
	old := s.Workloads[name]
	switch {
	case name == "":
		return Result{Err: conflict(Refused, "a workload needs a name")}
	case node == nil:
		return Result{Err: conflict(NotFound, "no host is named %q", c.GetHost())}
	case old != nil && c.GetRequestId() != "" && old.RequestId == c.GetRequestId():
		return Result{Workload: old}
	case node.GetDrain() != nil && !c.GetSpec().GetBare(): // a bare one is there already
		return Result{Err: Drained(c.GetHost())}
	case old != nil && (alive(old.State) || old.Migration != ""):
		return Result{Err: conflict(Exists, "workload %q exists already, on %s; give another --name or stop it first", name, old.Host)}
	}
	if err := s.addressFree(c); err != nil {
		return Result{Err: err}
	}
	s.LastInstance++
	w := &logpb.Workload{Spec: c.GetSpec(), Host: c.GetHost(), BootId: node.GetInfo().GetBootId(), Epoch: 1, Instance: s.LastInstance,
		State: clusterapi.WorkloadState_WORKLOAD_STATE_STARTING, CreatedUnixNs: now, RequestId: c.GetRequestId()}
	if old != nil { // epochs of a name never go back
		w.Epoch = old.Epoch + 1
	}
	if c.GetSpec().GetBare() {
		w.State, w.Pid = clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING, c.GetSpec().GetPid()
	}
	s.Workloads[name] = w
	return Result{Workload: w}
}

// workload is the one that is meant, if this copy of it is still the one that counts.
func (s *State) workload(name string, instance uint64) (*logpb.Workload, error) {
	w := s.Workloads[name]
	if w == nil {
		return nil, conflict(NotFound, "no workload is named %q", name)
	}
	if w.Instance != instance {
		return nil, conflict(Refused, "workload %q is copy %d now, not %d", name, w.Instance, instance)
	}
	return w, nil
}

func (s *State) workloadStarted(c *logpb.WorkloadStarted) Result {
	w, err := s.workload(c.GetName(), c.GetInstance())
	if err != nil {
		return Result{Err: err}
	}
	if w.State != clusterapi.WorkloadState_WORKLOAD_STATE_STARTING {
		return Result{Workload: w}
	}
	w = proto.CloneOf(w)
	w.State, w.Pid = clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING, c.GetPid()
	s.Workloads[c.GetName()] = w
	return Result{Workload: w}
}

func (s *State) stopWorkload(c *logpb.StopWorkload) Result {
	w := s.Workloads[c.GetName()]
	switch {
	case w == nil:
		return Result{Err: conflict(NotFound, "no workload is named %q", c.GetName())}
	case w.Migration != "":
		return Result{Err: conflict(Refused, "workload %q is moving (migration %s); cancel that first", c.GetName(), w.Migration)}
	case !alive(w.State):
		return Result{Workload: w}
	}
	w = proto.CloneOf(w)
	w.State = clusterapi.WorkloadState_WORKLOAD_STATE_STOPPING
	s.Workloads[c.GetName()] = w
	return Result{Workload: w}
}

func (s *State) workloadEnded(c *logpb.WorkloadEnded) Result {
	w, err := s.workload(c.GetName(), c.GetInstance())
	if err != nil {
		return Result{Err: err}
	}
	if !alive(w.State) {
		return Result{Workload: w}
	}
	w = proto.CloneOf(w)
	w.State, w.WaitStatus, w.Error = clusterapi.WorkloadState_WORKLOAD_STATE_ENDED, c.GetWaitStatus(), c.GetError()
	if c.GetLost() {
		w.State = clusterapi.WorkloadState_WORKLOAD_STATE_LOST
	}
	s.Workloads[c.GetName()] = w
	return Result{Workload: w}
}

// beginMigration is exclusive: until both sides have acknowledged the end of one, there is no other.
func (s *State) beginMigration(c *logpb.BeginMigration, now int64) Result {
	if m := s.Migrations[c.GetId()]; m != nil {
		if c.GetRequestId() != "" && m.RequestId == c.GetRequestId() {
			return Result{Migration: m}
		}
		return Result{Err: conflict(Exists, "migration %s exists already", c.GetId())}
	}
	w, dst := s.Workloads[c.GetWorkload()], s.Nodes[c.GetDestination()]
	switch {
	case c.GetId() == "" || s.Incarnation == 0:
		return Result{Err: conflict(Refused, "a migration needs an id, and the cluster an incarnation")}
	case w == nil:
		return Result{Err: conflict(NotFound, "no workload is named %q", c.GetWorkload())}
	case dst == nil:
		return Result{Err: conflict(NotFound, "no host is named %q", c.GetDestination())}
	case dst.GetDrain() != nil:
		return Result{Err: Drained(c.GetDestination())}
	case w.Migration != "":
		return Result{Err: conflict(Refused, "workload %q is moving already (migration %s)", c.GetWorkload(), w.Migration)}
	case w.State != clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING:
		return Result{Err: conflict(Refused, "workload %q does not run", c.GetWorkload())}
	case w.Host == c.GetDestination():
		return Result{Err: conflict(Refused, "workload %q is on %s already", c.GetWorkload(), w.Host)}
	case w.Epoch != c.GetEpoch():
		return Result{Err: conflict(Refused, "workload %q has moved since this was planned; plan again", c.GetWorkload())}
	}
	s.LastInstance++
	m := &logpb.Migration{Workload: c.GetWorkload(), Source: w.Host, Destination: c.GetDestination(), SourceBootId: w.BootId,
		DestinationBootId: dst.GetInfo().GetBootId(), Options: c.GetOptions(), RequestId: c.GetRequestId(), BegunUnixNs: now, PhaseUnixNs: now,
		Pid: w.Pid, PredictedDowntimeMs: c.GetPredictedDowntimeMs(),
		Record: recordPB(handoff.Begin(s.Incarnation, c.GetId(), w.Instance, s.LastInstance, w.Epoch))}
	s.Migrations[c.GetId()] = m
	s.order = append(s.order, c.GetId())
	s.forget()
	n := proto.CloneOf(w)
	n.Migration, n.State = c.GetId(), clusterapi.WorkloadState_WORKLOAD_STATE_MOVING
	s.Workloads[c.GetWorkload()] = n
	return Result{Migration: m, Workload: n}
}

// migrationEntry is a step of a handoff, with what it means for the workload.
func (s *State) migrationEntry(c *logpb.MigrationEntry, now int64) Result {
	m := s.Migrations[c.GetId()]
	if m == nil {
		return Result{Err: conflict(NotFound, "no migration is named %q", c.GetId())}
	}
	before := Record(m)
	after, err := before.Apply(entryOf(c))
	if err != nil {
		return Result{Err: err, Migration: m}
	}
	m = proto.CloneOf(m)
	m.Record = recordPB(after)
	if after.Phase != before.Phase {
		m.PhaseUnixNs = now
	}
	if after.Closed() {
		m.EndedUnixNs = now
	}
	known(m, c)
	if after.Owner != before.Owner && after.Owner == handoff.RoleDestination {
		m.DestinationBootId = cmp.Or(c.GetDestinationBootId(), m.DestinationBootId) // it may have been started anew since the migration began
	}
	m.Error = why(m.Error, before, after, c)
	s.Migrations[c.GetId()] = m
	w := s.own(m, before, after)
	return Result{Migration: m, Workload: w}
}

// known takes over what the entry brings for the result: the newest word counts, silence changes nothing.
func known(m *logpb.Migration, c *logpb.MigrationEntry) {
	if c.GetProgress() != nil {
		m.Progress = c.GetProgress()
	}
	m.Pid = cmp.Or(c.GetPid(), m.Pid)
	m.DestinationPid = cmp.Or(c.GetDestinationPid(), m.DestinationPid)
	m.DowntimeMs = cmp.Or(c.GetDowntimeMs(), m.DowntimeMs)
	m.FrozenMs = cmp.Or(c.GetFrozenMs(), m.FrozenMs)
	if len(c.GetConnections()) > 0 {
		m.Connections = c.GetConnections()
	}
	if len(c.GetSteps()) > 0 {
		m.Steps = c.GetSteps()
	}
}

// why is what people read as the reason of the state that the entry leads to. What happens while the outcome is open
// replaces what was said before; of what follows from a decision, the first word is the reason and the rest its consequence.
func why(said string, before, after handoff.Record, c *logpb.MigrationEntry) string {
	switch {
	case after.Phase == handoff.PhaseResumed, handoff.EntryKind(c.GetKind()) == handoff.EntryStartSwitch:
		return ""
	case before.Phase.BeforeCommit():
		return cmp.Or(c.GetReason(), said)
	}
	return cmp.Or(said, c.GetReason())
}

// own changes the owner of the workload as the record says, and lets go of it when the migration is closed.
func (s *State) own(m *logpb.Migration, before, after handoff.Record) *logpb.Workload {
	w := s.Workloads[m.Workload]
	if w == nil || w.Migration != after.Migration {
		return w
	}
	w = proto.CloneOf(w)
	if after.Owner != before.Owner {
		w.Host, w.Instance, w.BootId, w.Epoch, w.Pid = m.Source, after.Source, m.SourceBootId, after.Epoch, m.Pid
		if after.Owner == handoff.RoleDestination {
			w.Host, w.Instance, w.BootId, w.Pid = m.Destination, after.Destination, m.DestinationBootId, 0
		}
	}
	if after.Owner == handoff.RoleDestination && m.DestinationPid != 0 {
		w.Pid = m.DestinationPid
	}
	if after.Closed() {
		w.Migration = ""
		if alive(w.State) {
			w.State = clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING
		}
	}
	if n := s.Nodes[w.Host]; after.Phase == handoff.PhaseLost || after.Closed() && alive(w.State) && n.GetInfo().GetBootId() != w.BootId {
		w.State = clusterapi.WorkloadState_WORKLOAD_STATE_LOST
	}
	s.Workloads[m.Workload] = w
	return w
}

func (s *State) retune(c *logpb.Retune) Result {
	m := s.Migrations[c.GetId()]
	if m == nil {
		return Result{Err: conflict(NotFound, "no migration is named %q", c.GetId())}
	}
	if !Record(m).Phase.BeforeCommit() {
		return Result{Err: conflict(Refused, "migration %s is past its switch", c.GetId()), Migration: m}
	}
	m = proto.CloneOf(m)
	if m.Options == nil {
		m.Options = &agentapi.MoveOptions{}
	}
	m.Options.MaxDowntimeNs = cmp.Or(c.GetMaxDowntimeNs(), m.Options.MaxDowntimeNs)
	m.Options.BandwidthBytesPerSecond = cmp.Or(c.GetBandwidthBytesPerSecond(), m.Options.BandwidthBytesPerSecond)
	if c.ThrottleMaxPercent != nil {
		m.Options.ThrottleMaxPercent = c.ThrottleMaxPercent
	}
	s.Migrations[c.GetId()] = m
	return Result{Migration: m}
}
