package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
	"migrate/coordinator/schedule"
)

const (
	// defaultParallel is how many workloads leave a host at a time, and how many a host takes in, when the operator does not say.
	defaultParallel = 2
	// maxDrainMoves bounds the migrations of the cluster beyond which a drain begins none.
	maxDrainMoves = 16
)

// drainRequest begins the request id of a migration that a drain has begun.
func drainRequest(node string) string { return "drain/" + node + "/" }

// drains is what a leader remembers of the drains. It is lost with its term: the next leader asks the hosts again. Guarded by term.mu.
type drains struct {
	refused map[drainMove]refusal // by plans; those of migrations are in the log
	begun   map[string]drainMove  // by workload: moves that are being planned
}

type drainMove struct{ workload, from, to string }

type refusal struct {
	at     time.Time
	reason string
}

// drainView is a host that is being drained, as one look at the log and the agents shows it.
type drainView struct {
	node    string
	drain   *logpb.Drain
	here    []*logpb.Workload  // on the host, alive, and not moving
	moves   []*logpb.Migration // away from there, since the drain began, oldest first
	open    []*logpb.Migration // of the whole cluster
	hosts   map[string]schedule.Host
	expired bool
	settled bool // hosts that are up have been heard by this leader
}

// drained is the names of the hosts that are drained, sorted.
func drained(st *fsm.State) []string {
	return slices.Sorted(maps.Keys(maps.Collect(func(yield func(string, bool) bool) {
		for name, n := range st.Nodes {
			if n.GetDrain() != nil && !yield(name, true) {
				return
			}
		}
	})))
}

// drainOf is the drain of a host; nil if it takes workloads.
func (t *term) drainOf(name string) (d *logpb.Drain) {
	t.s.node.store.Read(func(st *fsm.State) { d = st.Nodes[name].GetDrain() })
	return d
}

// drainView looks at a drain; false if there is none.
func (t *term) drainView(node string) (*drainView, bool) {
	v := &drainView{node: node, hosts: map[string]schedule.Host{}}
	var names []string
	count := map[string]int{}
	t.s.node.store.Read(func(st *fsm.State) {
		v.drain = st.Nodes[node].GetDrain()
		for name, n := range st.Nodes {
			if n.GetDrain() == nil && name != node {
				names = append(names, name)
			}
		}
		for _, w := range st.Workloads {
			if alive(w) {
				count[w.GetHost()]++
			}
			if alive(w) && w.GetHost() == node && w.GetMigration() == "" {
				v.here = append(v.here, w)
			}
		}
		v.open = st.Open()
		for _, m := range st.MigrationsInOrder() {
			if m.GetSource() == node && (m.GetBegunUnixNs() >= v.drain.GetBegunUnixNs() || m.GetEndedUnixNs() == 0) {
				v.moves = append(v.moves, m)
			}
		}
	})
	if v.drain == nil {
		return nil, false
	}
	slices.SortFunc(v.here, func(a, b *logpb.Workload) int { return strings.Compare(a.GetSpec().GetName(), b.GetSpec().GetName()) })
	deadline := v.drain.GetDeadlineUnixNs()
	v.expired = deadline != 0 && time.Now().UnixNano() >= deadline
	v.settled = time.Since(t.began) > t.s.c.Limits.Silence/2
	for _, name := range names {
		if t.up(name) {
			v.hosts[name] = schedule.Host{Name: name, Free: t.lastHeard(name).free, Workloads: count[name]}
		}
	}
	for _, m := range v.open {
		t.onTheWay(v, m.GetWorkload(), m.GetDestination())
	}
	for w, mv := range t.planning("") {
		t.onTheWay(v, w, mv.to)
	}
	return v, true
}

func alive(w *logpb.Workload) bool {
	return w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_ENDED && w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_LOST
}

// onTheWay keeps the room of a workload at the host that it is moving to.
func (t *term) onTheWay(v *drainView, workload, to string) {
	if h, ok := v.hosts[to]; ok {
		h.Free -= min(h.Free, t.copyOf(t.logged(workload)).GetRssBytes())
		h.Workloads++
		v.hosts[to] = h
	}
}

// planning is the moves from a host that a drain has begun and that are not in the log yet; from all hosts for "".
func (t *term) planning(from string) map[string]drainMove {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]drainMove{}
	for w, mv := range t.drains.begun {
		if from == "" || mv.from == from {
			out[w] = mv
		}
	}
	return out
}

// refusals is why a workload could not go to hosts, lately: what plans have said, and how migrations have ended.
func (t *term) refusals(v *drainView, workload string) map[string]string {
	out := map[string]string{}
	since := time.Now().Add(-t.s.c.Limits.DrainRetry)
	for _, m := range v.moves {
		if m.GetWorkload() == workload && fsm.Record(m).Closed() && m.GetEndedUnixNs() > since.UnixNano() {
			out[m.GetDestination()] = cmp.Or(m.GetError(), "the move was ended")
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for mv, r := range t.drains.refused {
		if mv.workload == workload && mv.from == v.node && r.at.After(since) {
			out[mv.to] = r.reason
		}
	}
	return out
}

// placeDrained gives the workloads that wait places, and says of the others why they have none.
func (t *term) placeDrained(v *drainView) (placed []schedule.Placement, stuck map[string]string) {
	stuck = map[string]string{}
	begun := t.planning(v.node)
	hosts := slices.Collect(maps.Values(v.hosts))
	var todo []schedule.Workload
	why := map[string]map[string]string{}
	for _, w := range v.here {
		name := w.GetSpec().GetName()
		if _, ok := begun[name]; ok || w.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING {
			continue
		}
		why[name] = t.refusals(v, name)
		todo = append(todo, schedule.Workload{Name: name, Size: t.copyOf(w).GetRssBytes(), Not: slices.Collect(maps.Keys(why[name]))})
	}
	placed, left := schedule.Spread(todo, hosts)
	for _, name := range left {
		var reasons []string
		for _, h := range slices.Sorted(maps.Keys(v.hosts)) {
			reasons = append(reasons, h+": "+cmp.Or(why[name][h], "it has no room in its memory"))
		}
		stuck[name] = cmp.Or(strings.Join(reasons, "; "), "no other host is up and takes workloads")
	}
	return placed, stuck
}

// drain takes every drain a step further.
func (t *term) drain() {
	var names []string
	t.s.node.store.Read(func(st *fsm.State) { names = drained(st) })
	for _, name := range names {
		v, ok := t.drainView(name)
		if !ok || v.expired || !v.settled || !t.up(name) {
			continue
		}
		limit := cmp.Or(int(v.drain.GetMaxParallel()), defaultParallel)
		from, to := len(t.planning(name)), map[string]int{}
		for _, m := range v.open {
			if m.GetSource() == name {
				from++
			}
			to[m.GetDestination()]++
		}
		for _, mv := range t.planning("") {
			to[mv.to]++
		}
		open := len(v.open) + len(t.planning(""))
		placed, _ := t.placeDrained(v)
		for _, p := range placed {
			if from >= limit || to[p.Host] >= limit || open >= maxDrainMoves || !t.errand(p.Workload) {
				continue
			}
			from, open = from+1, open+1
			to[p.Host]++
			t.drainMove(drainMove{p.Workload, name, p.Host})
		}
	}
}

// drainMove begins one move. The caller has claimed the workload.
func (t *term) drainMove(mv drainMove) {
	t.mu.Lock()
	t.drains.begun[mv.workload] = mv
	t.mu.Unlock()
	t.wg.Go(func() {
		reply, err := t.move(t.ctx, &clusterapi.MoveRequest{RequestId: drainRequest(mv.from) + newID(), Destination: mv.to,
			Target: &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: mv.workload}, Host: mv.from}})
		reason := ""
		switch {
		case err != nil:
			reason = client.Message(err)
		case len(reply.GetObstacles()) > 0:
			reason = obstacleText(reply.GetObstacles())
		}
		t.mu.Lock()
		delete(t.drains.begun, mv.workload)
		maps.DeleteFunc(t.drains.refused, func(other drainMove, r refusal) bool {
			return other == mv || time.Since(r.at) > t.s.c.Limits.DrainRetry // what is older counts no more
		})
		if reason != "" {
			t.drains.refused[mv] = refusal{time.Now(), reason}
		}
		t.mu.Unlock()
		if reason != "" {
			t.s.c.Log.Info("drain", "host", mv.from, "workload", mv.workload, "destination", mv.to, "refused", reason)
		}
		t.errandDone(mv.workload)
		t.touch()
	})
}

// obstacleText is the first of what stands in a move's way, and how many more there are.
func obstacleText(list []*agentapi.Obstacle) string {
	o := list[0]
	text := o.GetReason()
	if o.GetWhere() != "" {
		text = o.GetWhere() + ": " + text
	}
	if len(list) > 1 {
		text += fmt.Sprintf(" (and %d more; see `migrate plan`)", len(list)-1)
	}
	return text
}

// drainStatus is what an operator sees of a drain.
func (t *term) drainStatus(v *drainView) *clusterapi.DrainStatus {
	out := &clusterapi.DrainStatus{Node: v.node, BegunUnixNs: v.drain.GetBegunUnixNs(), DeadlineUnixNs: v.drain.GetDeadlineUnixNs(),
		MaxParallel: cmp.Or(v.drain.GetMaxParallel(), defaultParallel), Expired: v.expired, Final: true}
	items := map[string]*clusterapi.DrainItem{}
	for _, m := range v.moves { // the last one of each workload counts
		mig := t.migration(m)
		i := &clusterapi.DrainItem{Workload: m.GetWorkload(), Migration: mig.GetId(), Destination: m.GetDestination(), DowntimeMs: mig.GetDowntimeMs()}
		switch {
		case fsm.Outcome(fsm.Record(m).Phase) == clusterapi.Outcome_OUTCOME_MOVED:
			i.State = clusterapi.DrainState_DRAIN_STATE_MOVED
			if !fsm.Record(m).Closed() && t.up(v.node) { // the host still has the copy that was stopped there
				i.State = clusterapi.DrainState_DRAIN_STATE_MOVING
			}
		case fsm.Record(m).Phase == handoff.PhaseNeedsOperator:
			i.State, i.Reason = clusterapi.DrainState_DRAIN_STATE_STUCK, headline(mig)
		case !fsm.Record(m).Closed():
			i.State, i.Round, i.RoundFraction = clusterapi.DrainState_DRAIN_STATE_MOVING, mig.GetProgress().GetRound(), mig.GetProgress().GetRoundFraction()
		case !alive(t.logged(m.GetWorkload())):
			delete(items, m.GetWorkload())
			continue
		}
		items[m.GetWorkload()] = i
	}
	_, stuck := t.placeDrained(v)
	for _, w := range v.here {
		name := w.GetSpec().GetName()
		i := cmp.Or(items[name], &clusterapi.DrainItem{Workload: name})
		i.State, i.Reason = clusterapi.DrainState_DRAIN_STATE_WAITING, ""
		_, begun := t.planning(v.node)[name]
		switch {
		case begun:
		case v.expired:
			i.State, i.Reason = clusterapi.DrainState_DRAIN_STATE_STUCK, cmp.Or(stuck[name], "the deadline has passed")
		case !t.up(v.node) && v.settled:
			i.State, i.Reason = clusterapi.DrainState_DRAIN_STATE_STUCK, v.node+" is down"
		case stuck[name] != "" && v.settled:
			i.State, i.Reason = clusterapi.DrainState_DRAIN_STATE_STUCK, stuck[name]
		}
		items[name] = i
	}
	for _, name := range slices.Sorted(maps.Keys(items)) {
		i := items[name]
		if i.State == clusterapi.DrainState_DRAIN_STATE_WAITING || i.State == clusterapi.DrainState_DRAIN_STATE_MOVING {
			out.Final = false
		}
		out.Items = append(out.Items, i)
	}
	return out
}

func (v *service) Drain(_ context.Context, req *clusterapi.DrainRequest) (*clusterapi.DrainReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	if req.GetDeadlineNs() < 0 {
		return nil, status.Errorf(codes.InvalidArgument, "a deadline of %v is over already", time.Duration(req.GetDeadlineNs()))
	}
	if t.nodeInfo(req.GetNode()) == nil {
		_, err := t.host(req.GetNode()) // names those that there are
		return nil, err
	}
	now := time.Now()
	if req.GetDeadlineNs() > math.MaxInt64-now.UnixNano() {
		return nil, status.Errorf(codes.InvalidArgument, "a deadline in %v is after the end of time; give none", time.Duration(req.GetDeadlineNs()))
	}
	d := &logpb.Drain{BegunUnixNs: now.UnixNano(), MaxParallel: req.GetMaxParallel()}
	if req.GetDeadlineNs() > 0 {
		d.DeadlineUnixNs = now.UnixNano() + req.GetDeadlineNs()
	}
	if _, err := t.apply(&logpb.Command{Command: &logpb.Command_SetDrain{SetDrain: &logpb.SetDrain{Node: req.GetNode(), Drain: d}}}); err != nil {
		return nil, err
	}
	view, ok := t.drainView(req.GetNode())
	if !ok {
		return nil, notDrained(req.GetNode())
	}
	return &clusterapi.DrainReply{Status: t.drainStatus(view)}, nil
}

func notDrained(node string) error {
	return status.Errorf(codes.FailedPrecondition, "%s is not drained", node)
}

func (v *service) Undrain(ctx context.Context, req *clusterapi.UndrainRequest) (*clusterapi.UndrainReply, error) {
	t, err := v.read()
	if err != nil {
		return nil, err
	}
	if t.nodeInfo(req.GetNode()) == nil {
		_, err := t.host(req.GetNode())
		return nil, err
	}
	if _, err := t.apply(&logpb.Command{Command: &logpb.Command_SetDrain{SetDrain: &logpb.SetDrain{Node: req.GetNode()}}}); err != nil {
		return nil, err
	}
	for touched := t.touched(); req.GetCancelMoves() && len(t.planning(req.GetNode())) > 0; touched = t.touched() {
		select { // what is just being planned is a move in a moment
		case <-touched:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var ids []string
	t.s.node.store.Read(func(st *fsm.State) {
		for _, m := range st.Open() {
			if m.GetSource() == req.GetNode() && strings.HasPrefix(m.GetRequestId(), drainRequest(req.GetNode())) {
				ids = append(ids, m.GetRecord().GetMigration())
			}
		}
	})
	out := &clusterapi.UndrainReply{}
	var errs []error
	for _, id := range ids {
		if req.GetCancelMoves() {
			_, err := v.Cancel(ctx, &clusterapi.CancelRequest{Id: id, Reason: "the drain of " + req.GetNode() + " was ended"})
			if err != nil && status.Code(asStatus(err)) != codes.FailedPrecondition { // past its commit
				errs = append(errs, err)
			}
		}
		out.Moving = append(out.Moving, id)
	}
	return out, errors.Join(errs...)
}

func (v *service) WatchDrain(req *clusterapi.WatchDrainRequest, out grpc.ServerStreamingServer[clusterapi.DrainStatus]) error {
	t, err := v.read()
	if err != nil {
		return err
	}
	var last *clusterapi.DrainStatus
	tick := time.NewTicker(t.s.c.Limits.Redrive) // time passes, hosts are heard
	defer tick.Stop()
	for {
		logged, touched := v.s.node.store.Changed(), t.touched()
		view, ok := t.drainView(req.GetNode())
		if !ok {
			return notDrained(req.GetNode())
		}
		if now := t.drainStatus(view); !proto.Equal(now, last) {
			if err := out.Send(now); err != nil {
				return err
			}
			last = now
		}
		if last.GetFinal() {
			return nil
		}
		if err := t.awaitChange(out.Context(), logged, touched, tick.C); err != nil {
			return err
		}
	}
}
