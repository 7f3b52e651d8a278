package coordinator

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

// service is the gRPC face of the leader: each call finds the term, does one thing and answers.
type service struct {
	clusterapi.UnimplementedClusterServer
	s *Server
}

// term is the present one. Register has seen to it that the call is on the leader; it may have lost since.
func (v *service) term() (*term, error) {
	t := v.s.term()
	if t == nil {
		return nil, status.Errorf(codes.Unavailable, "%s does not lead any more", v.s.c.Name)
	}
	return t, nil
}

// asStatus gives every error of this package its gRPC code.
func asStatus(err error) error {
	var conflict *fsm.Conflict
	var refusal *handoff.Refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &conflict):
		code := map[fsm.ConflictKind]codes.Code{fsm.NotFound: codes.NotFound, fsm.Exists: codes.AlreadyExists, fsm.Refused: codes.FailedPrecondition}[conflict.Kind]
		return status.Error(code, conflict.Reason)
	case errors.As(err, &refusal):
		return status.Error(codes.FailedPrecondition, refusal.Error())
	case errors.Is(err, errUnknown), errors.Is(err, errClosed):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}

func (v *service) Run(ctx context.Context, req *clusterapi.RunRequest) (*clusterapi.RunReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	w, err := t.launch(ctx, req)
	if err != nil {
		return nil, err
	}
	return &clusterapi.RunReply{Workload: t.workload(w)}, nil
}

func (v *service) Stop(ctx context.Context, req *clusterapi.StopRequest) (*clusterapi.StopReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	w, err := t.stopByName(ctx, req)
	if err != nil {
		return nil, err
	}
	return &clusterapi.StopReply{WaitStatus: w.GetWaitStatus()}, nil
}

func (v *service) Workloads(_ context.Context, req *clusterapi.WorkloadsRequest) (*clusterapi.WorkloadsReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	var all []*logpb.Workload
	v.s.node.store.Read(func(st *fsm.State) {
		for _, w := range st.Workloads {
			ended := w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_ENDED || w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_LOST
			if req.GetAll() || !ended {
				all = append(all, w)
			}
		}
	})
	slices.SortFunc(all, func(a, b *logpb.Workload) int { return strings.Compare(a.GetSpec().GetName(), b.GetSpec().GetName()) })
	out := &clusterapi.WorkloadsReply{}
	for _, w := range all {
		out.Workloads = append(out.Workloads, t.workload(w))
	}
	return out, nil
}

// read makes what follows a linearizable read: nobody else leads, and all that was decided before this term is
// applied here (see establish); what this term has decided was applied before it was answered.
func (v *service) read() (*term, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	if err := v.s.node.raft.VerifyLeader().Error(); err != nil {
		return nil, status.Errorf(codes.Unavailable, "%s cannot tell whether it still leads: %v", v.s.c.Name, err)
	}
	return t, nil
}

func (v *service) Logs(req *clusterapi.LogsRequest, out grpc.ServerStreamingServer[agentapi.LogsChunk]) error {
	t, err := v.term()
	if err != nil {
		return err
	}
	w := t.logged(req.GetWorkload())
	if w == nil {
		return status.Errorf(codes.NotFound, "no workload is named %q; see `migrate ps`", req.GetWorkload())
	}
	agent, err := v.s.agents.agent(t.nodeInfo(w.GetHost()))
	if err != nil {
		return err
	}
	ctx, cancel := t.whileUp(out.Context(), w.GetHost())
	defer cancel()
	in, err := agent.Logs(ctx, &agentapi.LogsRequest{Workload: req.GetWorkload(), Follow: req.GetFollow(), TailBytes: req.GetTailBytes()}, grpc.WaitForReady(true))
	for {
		var chunk *agentapi.LogsChunk
		if err == nil {
			chunk, err = in.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if down := errDown(ctx); err != nil && down != nil {
			return status.Errorf(codes.FailedPrecondition, "%s; the output is kept there and can be read when it is back", status.Convert(down).Message())
		}
		if err != nil {
			return unreachable(w.GetHost(), err)
		}
		if err := out.Send(chunk); err != nil {
			return err
		}
	}
}

func (v *service) Plan(ctx context.Context, req *clusterapi.PlanRequest) (*clusterapi.PlanReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	tg, err := t.resolve(req.GetTarget(), req.GetDestination())
	if err != nil {
		return nil, err
	}
	reply, obstacles, err := t.plan(ctx, tg, req.GetOptions())
	if err != nil {
		return nil, err
	}
	return &clusterapi.PlanReply{Obstacles: obstacles, Figures: reply.GetFigures(), Workload: tg.workload.GetSpec().GetName(),
		Source: tg.source.GetName(), Destination: tg.dest.GetName(), Pid: reply.GetPid(), Command: reply.GetCommand()}, nil
}

func (v *service) Move(ctx context.Context, req *clusterapi.MoveRequest) (*clusterapi.MoveReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	return t.move(ctx, req)
}

// find is a migration by its id or by an unambiguous beginning of it.
func (t *term) find(id string) (*logpb.Migration, error) {
	var found []*logpb.Migration
	t.s.node.store.Read(func(st *fsm.State) {
		if m := st.Migrations[id]; m != nil {
			found = []*logpb.Migration{m}
			return
		}
		for _, m := range st.MigrationsInOrder() {
			if id != "" && strings.HasPrefix(m.GetRecord().GetMigration(), id) {
				found = append(found, m)
			}
		}
	})
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, status.Errorf(codes.NotFound, "no migration is named %q; see `migrate history`", id)
	}
	return nil, status.Errorf(codes.InvalidArgument, "%d migrations begin with %q", len(found), id)
}

func (v *service) GetMigration(_ context.Context, req *clusterapi.GetMigrationRequest) (*clusterapi.Migration, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	m, err := t.find(req.GetId())
	if err != nil {
		return nil, err
	}
	return t.migration(m), nil
}

func (v *service) ListMigrations(_ context.Context, req *clusterapi.ListMigrationsRequest) (*clusterapi.ListMigrationsReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	var all []*logpb.Migration
	v.s.node.store.Read(func(st *fsm.State) {
		if all = st.Open(); req.GetAll() {
			all = st.MigrationsInOrder()
		}
	})
	out := &clusterapi.ListMigrationsReply{}
	for _, m := range all {
		out.Migrations = append(out.Migrations, t.migration(m))
	}
	return out, nil
}

// watchEvery bounds how often a watcher hears of mere progress.
const watchEvery = 50 * time.Millisecond

func (v *service) WatchMigration(req *clusterapi.WatchMigrationRequest, out grpc.ServerStreamingServer[clusterapi.MigrationEvent]) error {
	t, err := v.read()
	if err != nil {
		return err
	}
	m, err := t.find(req.GetId())
	if err != nil {
		return err
	}
	id := m.GetRecord().GetMigration() // the beginning of one may come to mean several
	var last *clusterapi.Migration
	tick := time.NewTicker(time.Second) // a migration also becomes final by the passing of time
	defer tick.Stop()
	for {
		logged, touched := v.s.node.store.Changed(), t.touched()
		if m, err = t.find(id); err != nil {
			return err
		}
		now := t.migration(m)
		shown := proto.CloneOf(now)
		shown.TotalMs = last.GetTotalMs()
		if !proto.Equal(shown, last) {
			ev := &clusterapi.MigrationEvent{Migration: now, UnixNs: time.Now().UnixNano()}
			if now.GetPhase() != last.GetPhase() || now.GetAttempt() != last.GetAttempt() {
				ev.Message = headline(now)
			}
			if err := out.Send(ev); err != nil {
				return err
			}
			last = now
		}
		if now.GetFinal() {
			return nil
		}
		if err := t.awaitChange(out.Context(), logged, touched, tick.C); err != nil {
			return err
		}
	}
}

// awaitChange returns when a watcher is to look again: something has changed, or time has passed, but not before watchEvery.
func (t *term) awaitChange(ctx context.Context, logged, touched <-chan struct{}, tick <-chan time.Time) error {
	over := status.Error(codes.Unavailable, "the leader has changed; watch again")
	select {
	case <-time.After(watchEvery):
	case <-ctx.Done():
		return ctx.Err()
	case <-t.ctx.Done():
		return over
	}
	select {
	case <-logged:
	case <-touched:
	case <-tick:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.ctx.Done():
		return over
	}
	return nil
}

// headline is the phase in words.
func headline(m *clusterapi.Migration) string {
	switch m.GetPhase() {
	case clusterapi.Phase_PHASE_PREPARING:
		return "preparing " + m.GetDestination()
	case clusterapi.Phase_PHASE_COPYING:
		if m.GetAttempt() > 0 {
			return "the switch was ended, copying on: " + m.GetError()
		}
		return "copying"
	case clusterapi.Phase_PHASE_SWITCHING, clusterapi.Phase_PHASE_VOTED:
		return "switching"
	case clusterapi.Phase_PHASE_COMMITTED:
		return m.GetDestination() + " owns it"
	case clusterapi.Phase_PHASE_RESUMED:
		return "it runs on " + m.GetDestination()
	case clusterapi.Phase_PHASE_RELEASED:
		return "moved"
	case clusterapi.Phase_PHASE_ABORTED:
		return "aborted: " + m.GetError()
	case clusterapi.Phase_PHASE_REVERTED:
		return m.GetDestination() + " declined, going back: " + m.GetError()
	case clusterapi.Phase_PHASE_CONFIRMED:
		return "it runs on " + m.GetSource() + ": " + m.GetError()
	case clusterapi.Phase_PHASE_NEEDS_OPERATOR:
		return "an operator must decide: switch one of " + m.GetSource() + " and " + m.GetDestination() + " off for good, then `migrate resolve " + m.GetId() + " --run-at` the other"
	case clusterapi.Phase_PHASE_LOST:
		return "lost: " + m.GetError()
	}
	return ""
}

func (v *service) Cancel(ctx context.Context, req *clusterapi.CancelRequest) (*clusterapi.CancelReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	m, err := t.find(req.GetId())
	if err != nil {
		return nil, err
	}
	id := m.GetRecord().GetMigration()
	err = errClosed
	if s := t.session(id); s != nil {
		reason := "cancelled"
		if req.GetReason() != "" {
			reason += ": " + req.GetReason()
		}
		err = s.call(ctx, sessionEvent{ev: handoff.LeaderEvent{Kind: handoff.LeaderCancel}, reason: reason})
	}
	v.s.node.store.Read(func(st *fsm.State) { m = st.Migrations[id] })
	if m == nil {
		return nil, status.Errorf(codes.NotFound, "migration %s has been forgotten", id)
	}
	if fsm.Outcome(fsm.Record(m).Phase) == clusterapi.Outcome_OUTCOME_MOVED || errors.Is(err, &handoff.Refusal{Code: handoff.TooLate}) {
		return nil, status.Errorf(codes.FailedPrecondition, "migration %s is past its commit: %s owns %s", id, m.GetDestination(), m.GetWorkload())
	}
	if err != nil && !errors.Is(err, errClosed) {
		return nil, err
	}
	return &clusterapi.CancelReply{Migration: t.migration(m)}, nil
}

func (v *service) Retune(ctx context.Context, req *clusterapi.RetuneRequest) (*clusterapi.RetuneReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	m, err := t.find(req.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkOptions(&agentapi.MoveOptions{MaxDowntimeNs: req.GetMaxDowntimeNs(), BandwidthBytesPerSecond: req.GetBandwidthBytesPerSecond(), ThrottleMaxPercent: req.ThrottleMaxPercent}); err != nil {
		return nil, err
	}
	res, err := t.apply(&logpb.Command{Command: &logpb.Command_Retune{Retune: &logpb.Retune{Id: m.GetRecord().GetMigration(),
		MaxDowntimeNs: req.GetMaxDowntimeNs(), BandwidthBytesPerSecond: req.GetBandwidthBytesPerSecond(), ThrottleMaxPercent: req.ThrottleMaxPercent}}})
	if err != nil {
		return nil, err
	}
	if s := t.session(m.GetRecord().GetMigration()); s != nil {
		if err := s.call(ctx, sessionEvent{retune: res.Migration}); err != nil && !errors.Is(err, errClosed) {
			return nil, err
		}
	}
	return &clusterapi.RetuneReply{Migration: t.migration(res.Migration)}, nil
}

// Resolve takes an operator's word that one host is certainly fenced. It is refused where the log needs no such word.
func (v *service) Resolve(ctx context.Context, req *clusterapi.ResolveRequest) (*clusterapi.ResolveReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	m, err := t.find(req.GetId())
	if err != nil {
		return nil, err
	}
	r := fsm.Record(m)
	ev := handoff.LeaderEvent{Kind: handoff.LeaderResolve, Role: handoff.RoleSource}
	other, loses := m.GetDestination(), r.Phase == handoff.PhaseCommitted || r.Phase == handoff.PhaseNeedsOperator
	switch req.GetRunAt() {
	case m.GetSource():
	case m.GetDestination():
		ev.Role, other, loses = handoff.RoleDestination, m.GetSource(), r.Phase != handoff.PhaseResumed && r.Phase != handoff.PhaseCommitted
	default:
		return nil, status.Errorf(codes.InvalidArgument, "%q is neither the source (%s) nor the destination (%s) of %s", req.GetRunAt(), m.GetSource(), m.GetDestination(), r.Migration)
	}
	if req.GetFenced() != other {
		return nil, status.Errorf(codes.InvalidArgument, "to run at %s, %s must be fenced: switched off or cut off for good; say so with --fenced %s", req.GetRunAt(), other, other)
	}
	if unswitched := r.Phase == handoff.PhasePreparing || r.Phase == handoff.PhaseCopying; unswitched && ev.Role == handoff.RoleDestination {
		if t.up(other) { // a hint, which is enough to ask for the command that loses nothing
			return nil, status.Errorf(codes.FailedPrecondition, "%s runs on %s, which is up, and nothing of it can run on %s yet: "+
				"`migrate cancel %s` ends the move", m.GetWorkload(), other, req.GetRunAt(), r.Migration)
		}
		if !req.GetAcceptLoss() {
			return nil, status.Errorf(codes.FailedPrecondition, "%s has no complete copy: the workload would be lost; say --accept-loss if %s is gone for good", req.GetRunAt(), other)
		}
	}
	if loses && !req.GetAcceptLoss() {
		return nil, status.Errorf(codes.FailedPrecondition, "what the workload did on %s after the switch would be lost; say --accept-loss if that is right", other)
	}
	s := t.session(r.Migration)
	if s == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "migration %s is closed: there is nothing to resolve", r.Migration)
	}
	reason := "resolved by " + req.GetOperator() + ": " + other + " is fenced"
	v.s.c.Log.Warn("an operator decides", "migration", r.Migration, "operator", req.GetOperator(), "run_at", req.GetRunAt(), "fenced", other, "accept_loss", req.GetAcceptLoss())
	if err := s.call(ctx, sessionEvent{ev: ev, reason: reason}); err != nil && !errors.Is(err, errClosed) {
		return nil, err
	}
	if m, err = t.find(r.Migration); err != nil {
		return nil, err
	}
	return &clusterapi.ResolveReply{Migration: t.migration(m)}, nil
}
