package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
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

// apply proposes a command and turns what the state thinks of it into an error.
func (t *term) apply(c *logpb.Command) (fsm.Result, error) {
	res, err := t.s.node.propose(c)
	if err != nil {
		return res, err
	}
	return res, res.Err
}

// launch records an owner in the log and then has its agent start the program.
func (t *term) launch(ctx context.Context, req *clusterapi.RunRequest) (*logpb.Workload, error) {
	spec := req.GetSpec()
	if len(spec.GetArgv()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "nothing to run: give a command")
	}
	if spec.GetBare() || spec.GetPid() != 0 {
		return nil, status.Error(codes.InvalidArgument, "a bare process is adopted by a move, not by run")
	}
	if a := spec.GetAddr(); a != "" {
		if _, err := netip.ParsePrefix(a); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "--addr %q is not an address with a prefix length, such as 10.77.0.50/24", a)
		}
	}
	host, err := t.place(ctx, req.GetHost())
	if err != nil {
		return nil, err
	}
	if spec.GetName() == "" {
		spec.Name = t.freeName(path.Base(spec.GetArgv()[0]), req.GetRequestId())
	}
	if err := checkName(spec.GetName()); err != nil {
		return nil, err
	}
	res, err := t.apply(&logpb.Command{Command: &logpb.Command_CreateWorkload{CreateWorkload: &logpb.CreateWorkload{
		Spec: spec, Host: host, RequestId: req.GetRequestId()}}})
	if err != nil {
		return nil, err
	}
	return t.settled(ctx, res.Workload)
}

// settled starts a workload that the log says is starting, or waits for whoever does.
func (t *term) settled(ctx context.Context, w *logpb.Workload) (*logpb.Workload, error) {
	name := w.GetSpec().GetName()
	for {
		changed := t.s.node.store.Changed()
		now := t.logged(name)
		if now.GetInstance() != w.GetInstance() || now.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_STARTING {
			if now.GetError() != "" {
				return now, status.Error(codes.FailedPrecondition, now.GetError())
			}
			return now, nil
		}
		if t.errand(name) {
			defer t.errandDone(name)
			ctx, cancel := context.WithTimeout(ctx, t.s.c.Limits.StartGrace)
			defer cancel()
			return t.start(ctx, now)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func (t *term) logged(name string) (w *logpb.Workload) {
	t.s.node.store.Read(func(st *fsm.State) { w = st.Workloads[name] })
	return w
}

// place is the host that was asked for, or the one with the fewest workloads of those that are up and not drained.
func (t *term) place(ctx context.Context, host string) (string, error) {
	if host != "" {
		_, err := t.host(host)
		return host, err
	}
	load := map[string]int{}
	t.s.node.store.Read(func(st *fsm.State) {
		for name, n := range st.Nodes {
			if n.GetDrain() == nil {
				load[name] = 0
			}
		}
		for _, w := range st.Workloads {
			if _, ok := load[w.GetHost()]; ok && w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING {
				load[w.GetHost()]++
			}
		}
	})
	names := slices.SortedFunc(maps.Keys(load), func(a, b string) int { return cmp.Or(cmp.Compare(load[a], load[b]), cmp.Compare(a, b)) })
	for _, n := range names {
		if t.up(n) {
			return n, nil
		}
	}
	return "", status.Error(codes.FailedPrecondition, "no host is up and takes workloads")
}

// host is a registered node that may be asked.
func (t *term) host(name string) (*agentapi.NodeInfo, error) {
	info := t.nodeInfo(name)
	if info == nil {
		var known []string
		t.s.node.store.Read(func(st *fsm.State) { known = slices.Sorted(maps.Keys(st.Nodes)) })
		return nil, status.Errorf(codes.NotFound, "no host is named %q; the cluster has %s", name, cmp.Or(strings.Join(known, ", "), "none yet"))
	}
	if h := t.lastHeard(name); time.Since(h.at) > t.s.c.Limits.Silence/2 {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is down: it was last heard %v ago", name, time.Since(h.at).Round(time.Second))
	}
	return info, nil
}

func checkName(name string) error {
	ok := name != "" && len(name) <= 63
	for i, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || i > 0 && (r == '-' || r == '_' || r == '.'))
	}
	if !ok {
		return status.Errorf(codes.InvalidArgument, "%q is no name for a workload: use up to 63 letters, digits, '-', '_' and '.'", name)
	}
	return nil
}

// freeName is base, or base with the first number that makes it free.
func (t *term) freeName(base, request string) string {
	name := base
	t.s.node.store.Read(func(st *fsm.State) {
		for i := 2; ; i++ {
			w := st.Workloads[name]
			if w == nil || request != "" && w.GetRequestId() == request {
				return
			}
			name = fmt.Sprintf("%s-%d", base, i)
		}
	})
	return name
}

// start has the owner's agent start a workload and records what came of it. The caller has the errand.
func (t *term) start(ctx context.Context, w *logpb.Workload) (*logpb.Workload, error) {
	name := w.GetSpec().GetName()
	info := t.nodeInfo(w.GetHost())
	agent, err := t.s.agents.agent(info)
	if err != nil {
		return nil, err
	}
	reply, err := agent.StartWorkload(ctx, &agentapi.StartWorkloadRequest{Ref: t.ref(w), Spec: w.GetSpec()}, grpc.WaitForReady(true))
	switch status.Code(err) {
	case codes.OK:
		res, err := t.apply(&logpb.Command{Command: &logpb.Command_WorkloadStarted{WorkloadStarted: &logpb.WorkloadStarted{
			Name: name, Instance: w.GetInstance(), Pid: reply.GetPid()}}})
		return res.Workload, err
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled: // it may have started: ask again, later
		return nil, status.Errorf(codes.Unavailable, "%s has not answered whether %s started: %s; it will be asked again", w.GetHost(), name, client.Message(err))
	}
	failed := fmt.Sprintf("%s could not start %s: %s", w.GetHost(), name, client.Message(err))
	if _, aerr := t.apply(&logpb.Command{Command: &logpb.Command_WorkloadEnded{WorkloadEnded: &logpb.WorkloadEnded{
		Name: name, Instance: w.GetInstance(), Error: failed}}}); aerr != nil {
		return nil, fmt.Errorf("%s; and the log: %w", failed, aerr)
	}
	return nil, status.Error(status.Code(err), failed)
}

// stop has the owner's agent stop a workload and records it. The caller has the errand.
func (t *term) stop(ctx context.Context, w *logpb.Workload, grace int64) (*logpb.Workload, error) {
	name := w.GetSpec().GetName()
	info := t.nodeInfo(w.GetHost())
	agent, err := t.s.agents.agent(info)
	if err != nil {
		return nil, err
	}
	ctx, cancel := t.whileUp(ctx, w.GetHost())
	defer cancel()
	// The host is up, so a connection that broke while it was cut off comes back: it is waited for.
	reply, err := agent.StopWorkload(ctx, &agentapi.StopWorkloadRequest{Ref: t.ref(w), Workload: name, GraceNs: grace}, grpc.WaitForReady(true))
	if down := errDown(ctx); err != nil && down != nil {
		return nil, stopsLater(down, name)
	}
	if c := status.Code(err); c == codes.Unavailable || c == codes.DeadlineExceeded {
		return nil, stopsLater(status.Errorf(codes.FailedPrecondition, "%s does not answer (%s)", w.GetHost(), client.Message(err)), name)
	}
	if err != nil {
		return nil, status.Errorf(status.Code(err), "%s did not stop %s: %s", w.GetHost(), name, client.Message(err))
	}
	res, err := t.apply(&logpb.Command{Command: &logpb.Command_WorkloadEnded{WorkloadEnded: &logpb.WorkloadEnded{
		Name: name, Instance: w.GetInstance(), WaitStatus: reply.GetWaitStatus()}}})
	return res.Workload, err
}

// stopsLater adds to the reason why a host could not be asked what becomes of the stop: it is in the log (see settle).
func stopsLater(why error, name string) error {
	return status.Errorf(codes.FailedPrecondition, "%s; %s will be stopped when it is back", status.Convert(why).Message(), name)
}

// whileUp is ctx until a host has not been heard for so long that it counts as down; errDown has the reason then. A
// call on a connection that leads nowhere would last as long as its caller.
func (t *term) whileUp(ctx context.Context, host string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	down := func() bool {
		_, err := t.host(host)
		if err != nil {
			cancel(&downError{err})
		}
		return err != nil
	}
	down() // before anything is asked of it
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		tick := time.NewTicker(t.s.c.Limits.Silence / 8)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				down()
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// downError is the cause of a context that has ended because a host is down.
type downError struct{ error }

// errDown is why the host of whileUp cannot be asked; nil if it is not that.
func errDown(ctx context.Context) error {
	var down *downError
	if errors.As(context.Cause(ctx), &down) {
		return down.error
	}
	return nil
}

// ref names a workload's copy outside of a migration.
func (t *term) ref(w *logpb.Workload) *agentapi.Ref {
	var incarnation uint64
	t.s.node.store.Read(func(st *fsm.State) { incarnation = st.Incarnation })
	return &agentapi.Ref{Incarnation: incarnation, Instance: w.GetInstance(), Epoch: w.GetEpoch()}
}

// stopByName is what `migrate stop` does.
func (t *term) stopByName(ctx context.Context, req *clusterapi.StopRequest) (*logpb.Workload, error) {
	res, err := t.apply(&logpb.Command{Command: &logpb.Command_StopWorkload{StopWorkload: &logpb.StopWorkload{Name: req.GetWorkload()}}})
	if err != nil {
		return nil, err
	}
	w := res.Workload
	ctx, up := t.whileUp(ctx, w.GetHost())
	defer up()
	for {
		changed := t.s.node.store.Changed()
		now := t.logged(req.GetWorkload())
		if now.GetInstance() != w.GetInstance() || now.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_STOPPING {
			return now, nil
		}
		if t.errand(req.GetWorkload()) {
			defer t.errandDone(req.GetWorkload())
			ctx, cancel := context.WithTimeout(ctx, t.s.c.Limits.StartGrace+time.Duration(req.GetGraceNs()))
			defer cancel()
			return t.stop(ctx, now, req.GetGraceNs())
		}
		select {
		case <-ctx.Done():
			if down := errDown(ctx); down != nil {
				return nil, stopsLater(down, req.GetWorkload())
			}
			return nil, ctx.Err()
		case <-changed:
		}
	}
}
