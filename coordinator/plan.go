package coordinator

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
)

// target is what a plan or a move is about, as the log and the nodes have it.
type target struct {
	workload     *logpb.Workload // nil: a bare process that the log does not know
	source, dest *agentapi.NodeInfo
	pid          int32 // of a bare process
}

// resolve finds what is meant and refuses what can never work, in the words of whoever asked.
func (t *term) resolve(what *clusterapi.Target, destination string) (target, error) {
	var out target
	source := what.GetHost()
	switch {
	case what.GetWorkload() != "":
		w := t.logged(what.GetWorkload())
		if w == nil {
			return out, status.Errorf(codes.NotFound, "no workload is named %q; see `migrate ps`", what.GetWorkload())
		}
		if source != "" && source != w.GetHost() {
			return out, status.Errorf(codes.FailedPrecondition, "workload %q is on %s, not on %s", what.GetWorkload(), w.GetHost(), source)
		}
		out.workload, source = w, w.GetHost()
	case what.GetPid() <= 0:
		return out, status.Errorf(codes.InvalidArgument, "pid %d is no process", what.GetPid())
	case source == "":
		return out, status.Error(codes.InvalidArgument, "a pid needs the host that it is on")
	default:
		out.pid = what.GetPid()
		out.workload = t.byPID(source, out.pid)
	}
	if w := out.workload; w != nil {
		if w.GetMigration() != "" {
			return out, status.Errorf(codes.FailedPrecondition, "workload %q is moving already (migration %s)", w.GetSpec().GetName(), w.GetMigration())
		}
		if w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING {
			return out, status.Errorf(codes.FailedPrecondition, "workload %q does not run (%s)", w.GetSpec().GetName(), stateName(w.GetState()))
		}
	}
	if destination == "" {
		return out, status.Error(codes.InvalidArgument, "where to? give a destination")
	}
	if source == destination {
		return out, status.Errorf(codes.InvalidArgument, "source and destination are the same host, %s", source)
	}
	var err error
	if out.source, err = t.host(source); err != nil {
		return out, err
	}
	if out.dest, err = t.host(destination); err == nil && t.drainOf(destination) != nil {
		err = fsm.Drained(destination)
	}
	return out, err
}

// byPID is the running workload whose first process has this pid on the host; nil if there is none.
func (t *term) byPID(host string, pid int32) (found *logpb.Workload) {
	var here []*logpb.Workload
	t.s.node.store.Read(func(st *fsm.State) {
		for _, w := range st.Workloads {
			if w.GetHost() == host && (w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING || w.GetMigration() != "") {
				here = append(here, w)
			}
		}
	})
	for _, w := range here {
		if t.workload(w).GetPid() == pid {
			return w
		}
	}
	return nil
}

func stateName(s clusterapi.WorkloadState) string {
	return map[clusterapi.WorkloadState]string{
		clusterapi.WorkloadState_WORKLOAD_STATE_STARTING: "starting",
		clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING:  "running",
		clusterapi.WorkloadState_WORKLOAD_STATE_MOVING:   "moving",
		clusterapi.WorkloadState_WORKLOAD_STATE_STOPPING: "stopping",
		clusterapi.WorkloadState_WORKLOAD_STATE_ENDED:    "ended",
		clusterapi.WorkloadState_WORKLOAD_STATE_LOST:     "lost",
	}[s]
}

// A plan is made anew, after a pause, as long as the destination lacks a file that it did not lack in the plan before, for lookAgain
// at most: what a running program makes and removes again may be gone once the destination is asked for it.
const (
	lookAgain = 2 * time.Second
	lookPause = 20 * time.Millisecond
)

// plan asks both agents for everything that could fail later. Nothing is touched. A host that was cut off a moment ago
// is given time to be reached again.
func (t *term) plan(ctx context.Context, tg target, options *agentapi.MoveOptions) (*agentapi.PlanSourceReply, []*agentapi.Obstacle, error) {
	if err := checkOptions(options); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.s.c.Limits.Reachable)
	defer cancel()
	options = withDefaults(options)
	var lacked map[string]bool
	for began, pause := time.Now(), lookPause; ; pause *= 2 {
		reply, obstacles, err := t.look(ctx, tg, options)
		if err != nil {
			return nil, nil, err
		}
		lacks := lackedFiles(obstacles, tg.dest.GetName())
		fresh := false
		for where := range lacks {
			fresh = fresh || !lacked[where]
		}
		if !fresh || time.Since(began)+pause > lookAgain {
			return reply, obstacles, nil
		}
		lacked = lacks
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return reply, obstacles, nil
		}
	}
}

// lackedFiles are the paths of the files that are obstacles at a host.
func lackedFiles(obstacles []*agentapi.Obstacle, host string) map[string]bool {
	out := map[string]bool{}
	for _, o := range obstacles {
		if o.GetKind() == "file" && o.GetHost() == host {
			out[o.GetWhere()] = true
		}
	}
	return out
}

// look asks once.
func (t *term) look(ctx context.Context, tg target, options *agentapi.MoveOptions) (*agentapi.PlanSourceReply, []*agentapi.Obstacle, error) {
	req := &agentapi.PlanSourceRequest{Destination: tg.dest, Options: options, Target: &agentapi.PlanSourceRequest_Pid{Pid: tg.pid}}
	name := ""
	if tg.workload != nil {
		name = tg.workload.GetSpec().GetName()
		req.Target = &agentapi.PlanSourceRequest_Workload{Workload: name}
	}
	src, err := t.s.agents.agent(tg.source)
	if err != nil {
		return nil, nil, err
	}
	reply, err := src.PlanSource(ctx, req, grpc.WaitForReady(true))
	if err != nil {
		return nil, nil, unreachable(tg.source.GetName(), err)
	}
	dst, err := t.s.agents.agent(tg.dest)
	if err != nil {
		return nil, nil, err
	}
	there, err := dst.PlanDestination(ctx, &agentapi.PlanDestinationRequest{Source: tg.source, Requirements: reply.GetRequirements(), Options: options, Workload: name}, grpc.WaitForReady(true))
	if err != nil {
		return nil, nil, unreachable(tg.dest.GetName(), err)
	}
	var obstacles []*agentapi.Obstacle
	for _, o := range reply.GetObstacles() {
		if o.GetHost() == "" {
			o.Host = tg.source.GetName()
		}
		obstacles = append(obstacles, o)
	}
	for _, o := range there.GetObstacles() {
		if o.GetHost() == "" {
			o.Host = tg.dest.GetName()
		}
		obstacles = append(obstacles, o)
	}
	return reply, obstacles, nil
}

// unreachable says which host an error is about; one that does not answer is a precondition that does not hold.
func unreachable(host string, err error) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return status.Errorf(codes.FailedPrecondition, "%s does not answer: %s", host, client.Message(err))
	}
	return status.Errorf(status.Code(err), "%s: %s", host, client.Message(err))
}

// move plans, records a bare process as a workload, and puts Begin into the log; the session that it opens does the rest.
func (t *term) move(ctx context.Context, req *clusterapi.MoveRequest) (*clusterapi.MoveReply, error) {
	if m := t.byRequest(req.GetRequestId()); m != nil {
		return &clusterapi.MoveReply{Id: m.GetRecord().GetMigration(), Workload: m.GetWorkload(), Source: m.GetSource(), Destination: m.GetDestination()}, nil
	}
	tg, err := t.resolve(req.GetTarget(), req.GetDestination())
	if err != nil {
		return nil, err
	}
	plan, obstacles, err := t.plan(ctx, tg, req.GetOptions())
	if err != nil {
		return nil, err
	}
	reply := &clusterapi.MoveReply{Source: tg.source.GetName(), Destination: tg.dest.GetName(), Obstacles: obstacles, Figures: plan.GetFigures(),
		Workload: tg.workload.GetSpec().GetName()}
	if len(obstacles) > 0 {
		return reply, nil
	}
	w := tg.workload
	if w == nil {
		if w, err = t.adopt(tg, plan); err != nil {
			return nil, err
		}
		reply.Workload = w.GetSpec().GetName()
	}
	res, err := t.apply(&logpb.Command{Command: &logpb.Command_BeginMigration{BeginMigration: &logpb.BeginMigration{
		Id: newID(), Workload: reply.Workload, Destination: reply.Destination, Options: req.GetOptions(), RequestId: req.GetRequestId(),
		Epoch: w.GetEpoch(), PredictedDowntimeMs: plan.GetFigures().GetDowntimeMs()}}})
	if err != nil {
		return nil, err
	}
	reply.Id = res.Migration.GetRecord().GetMigration()
	t.session(reply.Id)
	return reply, nil
}

// adopt records a bare process as a workload of its own, named after where it was found.
func (t *term) adopt(tg target, plan *agentapi.PlanSourceReply) (*logpb.Workload, error) {
	name := t.freeName(fmt.Sprintf("pid-%d@%s", tg.pid, tg.source.GetName()), "")
	spec := &agentapi.WorkloadSpec{Name: name, Argv: []string{plan.GetCommand()}, Bare: true, Pid: tg.pid}
	if len(plan.GetAddresses()) > 0 {
		spec.Addr = strings.Join(plan.GetAddresses(), ",")
	}
	res, err := t.apply(&logpb.Command{Command: &logpb.Command_CreateWorkload{CreateWorkload: &logpb.CreateWorkload{Spec: spec, Host: tg.source.GetName()}}})
	return res.Workload, err
}

// byRequest is the migration that a client's request has begun already.
func (t *term) byRequest(id string) (found *logpb.Migration) {
	if id == "" {
		return nil
	}
	t.s.node.store.Read(func(st *fsm.State) {
		for _, m := range st.Migrations {
			if m.GetRequestId() == id {
				found = m
			}
		}
	})
	return found
}

// newID names a migration: short enough to type, of 40 random bits. Should one come that the log knows, BeginMigration
// is refused.
func newID() string { return "m-" + rand.Text()[:8] }
