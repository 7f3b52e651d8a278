package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

func (v *service) Nodes(context.Context, *clusterapi.NodesRequest) (*clusterapi.NodesReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	out := &clusterapi.NodesReply{Leader: v.s.c.Name}
	count := map[string]uint32{}
	v.s.node.store.Read(func(st *fsm.State) {
		out.Incarnation = st.Incarnation
		for _, n := range st.Nodes {
			out.Nodes = append(out.Nodes, &clusterapi.Node{Info: n.GetInfo(), DrainUnixNs: n.GetDrain().GetBegunUnixNs(), DrainDeadlineUnixNs: n.GetDrain().GetDeadlineUnixNs()})
		}
		for _, w := range st.Workloads {
			if w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_ENDED && w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_LOST {
				count[w.GetHost()]++
			}
		}
	})
	var alive map[string]bool
	if v.s.gossip != nil {
		alive = v.s.gossip.Alive()
	}
	voters := v.s.node.voters()
	for _, n := range out.Nodes {
		name := n.GetInfo().GetName()
		h := t.lastHeard(name)
		n.Voter = voters[name]
		n.Leader = name == v.s.c.Name
		n.Up = t.up(name)
		if gossip, ok := alive[name]; ok && !gossip {
			n.Up = false
		}
		n.LastHeardUnixNs, n.MemoryFreeBytes, n.Workloads = h.at.UnixNano(), h.free, count[name]
	}
	slices.SortFunc(out.Nodes, func(a, b *clusterapi.Node) int {
		return strings.Compare(a.GetInfo().GetName(), b.GetInfo().GetName())
	})
	return out, nil
}

func (v *service) RegisterNode(ctx context.Context, req *clusterapi.RegisterNodeRequest) (*clusterapi.RegisterNodeReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	n := req.GetNode()
	switch {
	case n.GetName() == "" || n.GetBootId() == "" || n.GetControlAddress() == "":
		return nil, status.Error(codes.InvalidArgument, "a node registers with its name, boot id and control address")
	case len(n.GetName()) > 63:
		return nil, status.Error(codes.InvalidArgument, "a node's name has at most 63 characters")
	}
	if err := speaksFor(ctx, n.GetName()); err != nil {
		return nil, err
	}
	if !proto.Equal(t.nodeInfo(n.GetName()), n) {
		if _, err := t.apply(&logpb.Command{Command: &logpb.Command_RegisterNode{RegisterNode: &logpb.RegisterNode{Node: n}}}); err != nil {
			return nil, err
		}
	}
	t.hear(n.GetName(), heard{at: time.Now(), bootID: n.GetBootId()})
	out := &clusterapi.RegisterNodeReply{}
	for _, p := range v.s.peers() {
		out.Servers = append(out.Servers, p.addr(v.s.c.Ports.Control))
	}
	var owned []*logpb.Workload
	v.s.node.store.Read(func(st *fsm.State) {
		out.Incarnation = st.Incarnation
		for _, m := range st.Open() {
			if m.GetSource() == n.GetName() || m.GetDestination() == n.GetName() {
				out.Open = append(out.Open, readMigration(st, m))
			}
		}
		for _, w := range st.Workloads {
			if w.GetHost() == n.GetName() && w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_ENDED && w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_LOST {
				owned = append(owned, w)
			}
		}
	})
	for _, w := range owned {
		out.Workloads = append(out.Workloads, t.workload(w))
	}
	return out, nil
}

func (v *service) Heartbeat(ctx context.Context, req *clusterapi.HeartbeatRequest) (*clusterapi.HeartbeatReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	if err := speaksFor(ctx, req.GetNode()); err != nil {
		return nil, err
	}
	info := t.nodeInfo(req.GetNode())
	out := &clusterapi.HeartbeatReply{Register: info.GetBootId() != req.GetBootId() || info == nil}
	v.s.node.store.Read(func(st *fsm.State) { out.Incarnation = st.Incarnation })
	if out.Register {
		return out, nil
	}
	t.hear(req.GetNode(), heard{at: time.Now(), bootID: req.GetBootId(), free: req.GetMemoryFreeBytes(), copies: req.GetCopies()})
	t.wg.Go(func() { t.promote(req.GetNode()) })
	return out, t.copiesEnded(req)
}

// copiesEnded records programs that ended by themselves, for agents whose report of it got lost.
func (t *term) copiesEnded(req *clusterapi.HeartbeatRequest) error {
	var errs []error
	for _, c := range req.GetCopies() {
		w := t.logged(c.GetWorkload())
		if c.GetState() != agentapi.CopyState_COPY_STATE_ENDED || w.GetInstance() != c.GetInstance() || w.GetMigration() != "" ||
			w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING {
			continue
		}
		_, err := t.apply(&logpb.Command{Command: &logpb.Command_WorkloadEnded{WorkloadEnded: &logpb.WorkloadEnded{
			Name: c.GetWorkload(), Instance: c.GetInstance(), WaitStatus: c.GetWaitStatus()}}})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func refOf(r *agentapi.Ref) handoff.Ref {
	return handoff.Ref{Incarnation: r.GetIncarnation(), Migration: r.GetMigration(), Attempt: r.GetAttempt(), Instance: r.GetInstance()}
}

func roleOf(r agentapi.Role) handoff.Role {
	switch r {
	case agentapi.Role_ROLE_SOURCE:
		return handoff.RoleSource
	case agentapi.Role_ROLE_DESTINATION:
		return handoff.RoleDestination
	}
	return handoff.RoleNone
}

// reportEvent is a report in the machine's words; ReportNone for what only people want to see.
func reportEvent(req *clusterapi.ReportRequest) (handoff.LeaderEvent, string) {
	ev := handoff.LeaderEvent{Kind: handoff.LeaderReported, Role: roleOf(req.GetRole()), Ref: refOf(req.GetRef())}
	reason := ""
	switch e := req.GetEvent().(type) {
	case *clusterapi.ReportRequest_Ready:
		ev.Report = handoff.ReportReady
	case *clusterapi.ReportRequest_Resumed:
		ev.Report = handoff.ReportResumed
	case *clusterapi.ReportRequest_Declined:
		ev.Report, reason = handoff.ReportDeclined, e.Declined.GetReason()
	case *clusterapi.ReportRequest_CopyDestroyed:
		ev.Report = handoff.ReportCopyDestroyed
	case *clusterapi.ReportRequest_Prepared:
		ev.Report = handoff.ReportPrepared
	case *clusterapi.ReportRequest_Converged:
		ev.Report = handoff.ReportConverged
	case *clusterapi.ReportRequest_Vote:
		ev.Report, ev.Hash = handoff.ReportVote, handoff.Hash(e.Vote.GetHash())
	case *clusterapi.ReportRequest_AttemptEnded:
		ev.Report, reason = handoff.ReportAttemptEnded, e.AttemptEnded.GetReason()
		if e.AttemptEnded.GetGiveUp() {
			ev.Report = handoff.ReportFailed
		}
	case *clusterapi.ReportRequest_Confirmed:
		ev.Report = handoff.ReportConfirmed
	case *clusterapi.ReportRequest_Released:
		ev.Report = handoff.ReportReleased
	case *clusterapi.ReportRequest_Failed:
		ev.Report, reason = handoff.ReportFailed, e.Failed.GetReason()
	case *clusterapi.ReportRequest_LostCopy:
		ev.Report, ev.Ran, reason = handoff.ReportLostCopy, e.LostCopy.GetRan(), e.LostCopy.GetReason()
	}
	if reason != "" {
		reason = req.GetNode() + ": " + reason
	}
	return ev, reason
}

func (v *service) Report(ctx context.Context, req *clusterapi.ReportRequest) (*clusterapi.ReportReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	if err := speaksFor(ctx, req.GetNode()); err != nil {
		return nil, err
	}
	if e := req.GetWorkloadEnded(); e != nil {
		return v.workloadEnded(t, req, e)
	}
	id := req.GetRef().GetMigration()
	ev, reason := reportEvent(req)
	var m *logpb.Migration
	v.s.node.store.Read(func(st *fsm.State) { m = st.Migrations[id] })
	if m == nil {
		return nil, status.Errorf(codes.NotFound, "no migration is named %q", id)
	}
	if err := checkRole(m, req, &ev); err != nil {
		return nil, err
	}
	err = errClosed
	if s := t.session(id); s != nil {
		err = s.call(ctx, sessionEvent{ev: ev, report: req, reason: reason})
	}
	var refusal *handoff.Refusal
	out := &clusterapi.ReportReply{}
	switch {
	case errors.As(err, &refusal):
		out.Stale, out.Reason = true, refusal.Error()
	case err != nil && !errors.Is(err, errClosed):
		return nil, err
	}
	if err := v.s.node.raft.VerifyLeader().Error(); err != nil && !progressOnly(req) {
		return nil, status.Errorf(codes.Unavailable, "%s cannot tell whether it still leads: %v", v.s.c.Name, err)
	}
	v.s.node.store.Read(func(st *fsm.State) { out.State = readMigration(st, cmpOr(st.Migrations[id], m)) })
	return out, nil
}

func cmpOr(a, b *logpb.Migration) *logpb.Migration {
	if a != nil {
		return a
	}
	return b
}

func progressOnly(req *clusterapi.ReportRequest) bool {
	return req.GetProgress() != nil || req.GetFrozen() != nil || req.GetVote() != nil
}

// checkRole sees that a host reports for its own side. A source that says it runs on, under another boot than the
// one that the migration began with, has lost the copy whatever it says.
func checkRole(m *logpb.Migration, req *clusterapi.ReportRequest, ev *handoff.LeaderEvent) error {
	host, boot := m.GetSource(), m.GetSourceBootId()
	if req.GetRole() == agentapi.Role_ROLE_DESTINATION {
		host, boot = m.GetDestination(), m.GetDestinationBootId()
	}
	if ev.Role == handoff.RoleNone || host != req.GetNode() {
		return status.Errorf(codes.InvalidArgument, "%s is not the %v of migration %s", req.GetNode(), roleOf(req.GetRole()), m.GetRecord().GetMigration())
	}
	if ev.Report == handoff.ReportConfirmed && req.GetBootId() != boot {
		ev.Report, ev.Ran = handoff.ReportLostCopy, true
	}
	return nil
}

func (v *service) workloadEnded(t *term, req *clusterapi.ReportRequest, e *clusterapi.WorkloadEnded) (*clusterapi.ReportReply, error) {
	if w := t.logged(e.GetWorkload()); w != nil && w.GetHost() != req.GetNode() {
		return &clusterapi.ReportReply{Stale: true, Reason: fmt.Sprintf("workload %q is on %s, not on %s", e.GetWorkload(), w.GetHost(), req.GetNode())}, nil
	}
	_, err := t.apply(&logpb.Command{Command: &logpb.Command_WorkloadEnded{WorkloadEnded: &logpb.WorkloadEnded{
		Name: e.GetWorkload(), Instance: req.GetRef().GetInstance(), WaitStatus: e.GetWaitStatus()}}})
	var conflict *fsm.Conflict
	if errors.As(err, &conflict) {
		return &clusterapi.ReportReply{Stale: true, Reason: conflict.Reason}, nil
	}
	return &clusterapi.ReportReply{}, err
}

func (v *service) RequestCommit(ctx context.Context, req *clusterapi.RequestCommitRequest) (*clusterapi.RequestCommitReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	if err := speaksFor(ctx, req.GetNode()); err != nil {
		return nil, err
	}
	id := req.GetRef().GetMigration()
	var m *logpb.Migration
	v.s.node.store.Read(func(st *fsm.State) { m = st.Migrations[id] })
	if m != nil && m.GetDestination() != req.GetNode() {
		return nil, status.Errorf(codes.PermissionDenied, "%s is not the destination of migration %s", req.GetNode(), id)
	}
	s := t.session(id)
	if s == nil { // closed: the log answers
		if _, err := t.find(id); err != nil {
			return nil, err
		}
		return v.decided(id, req)
	}
	a, err := s.requestCommit(ctx, handoff.LeaderEvent{Kind: handoff.LeaderRequestCommit, Ref: refOf(req.GetRef()), Hash: handoff.Hash(req.GetHash())}, req.GetBootId())
	if errors.Is(err, errClosed) {
		return v.decided(id, req)
	}
	if err != nil {
		return nil, err
	}
	return v.decision(id, a.Order)
}

var decisions = map[handoff.OrderKind]clusterapi.Decision{
	handoff.OrderCommit:     clusterapi.Decision_DECISION_COMMITTED,
	handoff.OrderEndAttempt: clusterapi.Decision_DECISION_ATTEMPT_ENDED,
	handoff.OrderAbort:      clusterapi.Decision_DECISION_ABORTED,
}

func (v *service) decision(id string, d handoff.OrderKind) (*clusterapi.RequestCommitReply, error) {
	out := &clusterapi.RequestCommitReply{Decision: decisions[d]}
	v.s.node.store.Read(func(st *fsm.State) {
		m := st.Migrations[id]
		out.Epoch, out.LogIndex, out.Reason = m.GetRecord().GetEpoch(), st.LastIndex, m.GetError()
	})
	return out, nil
}

// decided answers a request about a migration that is closed.
func (v *service) decided(id string, req *clusterapi.RequestCommitRequest) (*clusterapi.RequestCommitReply, error) {
	if _, err := v.read(); err != nil {
		return nil, err
	}
	var m *logpb.Migration
	v.s.node.store.Read(func(st *fsm.State) { m = st.Migrations[id] })
	_, actions, err := handoff.Leader{Record: fsm.Record(m)}.Step(handoff.LeaderEvent{Kind: handoff.LeaderRequestCommit,
		Ref: refOf(req.GetRef()), Hash: handoff.Hash(req.GetHash())})
	if err != nil {
		return nil, err
	}
	for _, a := range actions {
		if a.Kind == handoff.ActAnswer {
			return v.decision(id, a.Order)
		}
	}
	return nil, status.Error(codes.Unavailable, "not decided")
}

func (v *service) ReadMigration(_ context.Context, req *clusterapi.ReadMigrationRequest) (*clusterapi.ReadMigrationReply, error) {
	if _, err := v.read(); err != nil {
		return nil, err
	}
	var out *clusterapi.ReadMigrationReply
	v.s.node.store.Read(func(st *fsm.State) {
		if m := st.Migrations[req.GetId()]; m != nil {
			out = readMigration(st, m)
		}
	})
	if out == nil {
		return nil, status.Errorf(codes.NotFound, "no migration is named %q", req.GetId())
	}
	return out, nil
}
