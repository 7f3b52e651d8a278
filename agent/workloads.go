package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/agent/move"
	"migrate/agent/workload"
	clusterapi "migrate/coordinator/api"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// StartWorkload starts a program.
func (a *Agent) StartWorkload(ctx context.Context, req *agentapi.StartWorkloadRequest) (*agentapi.StartWorkloadReply, error) {
	instance, spec := req.GetRef().GetInstance(), req.GetSpec()
	if spec.GetName() == "" || spec.GetBare() {
		return nil, status.Error(codes.InvalidArgument, "a workload that is started has a name and is not a bare process")
	}
	a.starting.Lock() // one at a time: a repeated call finds what the first one did
	defer a.starting.Unlock()
	for _, e := range a.host.set.Named(spec.GetName()) {
		switch {
		case e.Instance() == instance && e.Record().PID != 0:
			return &agentapi.StartWorkloadReply{Pid: int32(e.Record().PID)}, nil
		case e.Instance() != instance && !a.over(e):
			return nil, status.Errorf(codes.AlreadyExists, "workload %s runs on this host already, as copy %d", spec.GetName(), e.Instance())
		}
		if err := a.host.remove(ctx, e); err != nil { // ended, or only half made
			return nil, err
		}
	}
	if err := a.checkAddress(spec.GetAddr()); err != nil {
		return nil, err
	}
	e, err := a.start(ctx, req)
	if errors.Is(err, workload.ErrSpec) {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err != nil {
		return nil, err
	}
	return &agentapi.StartWorkloadReply{Pid: int32(e.Record().PID)}, nil
}

func (a *Agent) start(ctx context.Context, req *agentapi.StartWorkloadRequest) (*workload.Env, error) {
	off, err := procfs.Host.ClockOffsets(os.Getpid())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	e, err := a.host.set.New(ctx, workload.Options{Instance: req.GetRef().GetInstance(), Epoch: req.GetRef().GetEpoch(), Spec: req.GetSpec(),
		Offsets: ns.Offsets{Monotonic: off.Monotonic, Boottime: off.Boottime}})
	if err != nil {
		return nil, err
	}
	if _, err = a.host.makePort(ctx, e, false); err == nil {
		err = e.Launch(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, a.host.remove(context.WithoutCancel(ctx), e))
	}
	if p, err := a.host.portOf(ctx, e); err == nil && p != nil {
		a.tasks.Go(func() {
			if err := p.Announce(a.ctx); err != nil {
				a.log.Warn("announcing the address", "workload", e.Name(), "error", err)
			}
		})
	}
	a.watch(e)
	if err := a.host.openConsole(e, false); err != nil {
		return nil, errors.Join(err, a.host.remove(context.WithoutCancel(ctx), e))
	}
	a.log.Info("workload started", "workload", e.Name(), "instance", e.Instance(), "pid", e.Record().PID)
	return e, nil
}

// settledCopies are those whose program runs or has ended here: not those that are being built, which belong to their
// builder alone.
func (a *Agent) settledCopies() []*workload.Env {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*workload.Env, 0, len(a.watchers))
	for _, w := range a.watchers {
		if !w.stopped {
			out = append(out, w.env)
		}
	}
	return out
}

// settled says that the program of an environment runs, has ended or was stopped here: nobody builds it.
func (a *Agent) settled(e *workload.Env) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.watchers[e.Instance()]
	return w != nil && w.env == e
}

// over says that the program of an environment has ended.
func (a *Agent) over(e *workload.Env) bool {
	if _, _, moving := a.moves.Moving(e.Instance()); moving || !a.settled(e) {
		return false
	}
	_, ended, err := e.ExitStatus()
	if err != nil || ended {
		return true
	}
	f, err := e.Figures()
	return err == nil && !f.Running
}

// A watcher waits for the end of a copy's program.
type watcher struct {
	env     *workload.Env
	cancel  context.CancelFunc
	stopped bool // on purpose: what is left of the copy is only to be removed
}

// watch lists the copy as settled and reports the end of its program, unless it is ended on purpose.
func (a *Agent) watch(e *workload.Env) {
	ctx, cancel := context.WithCancel(a.ctx)
	a.mu.Lock()
	if old := a.watchers[e.Instance()]; old != nil {
		old.cancel()
	}
	a.watchers[e.Instance()] = &watcher{env: e, cancel: cancel}
	a.mu.Unlock()
	a.tasks.Go(func() {
		defer cancel()
		if err := a.awaitEnd(ctx, e); err != nil {
			if ctx.Err() == nil {
				a.log.Error("watching a workload", "workload", e.Name(), "error", err)
			}
			return
		}
		if ctx.Err() != nil {
			return // it was ended on purpose
		}
		code, _, err := e.ExitStatus()
		if err != nil {
			a.log.Error("the exit status of a workload", "workload", e.Name(), "error", err)
		}
		a.log.Info("workload ended", "workload", e.Name(), "instance", e.Instance(), "status", code)
		if err := errors.Join(a.host.removePort(ctx, e, false), e.Stop(ctx, 0), a.host.closeConsole(e.Instance())); err != nil {
			a.log.Warn("what surrounded a workload that has ended stays behind", "workload", e.Name(), "error", err)
		}
		if _, _, moving := a.moves.Moving(e.Instance()); !moving && ctx.Err() == nil {
			a.ended(&agentapi.Ref{Incarnation: a.incarnation.Load(), Instance: e.Instance(), Epoch: e.Record().Epoch}, e.Name(), code)
		}
	})
}

// awaitEnd returns when the program has ended and its pid 1 has recorded how.
func (a *Agent) awaitEnd(ctx context.Context, e *workload.Env) error {
	fd, err := unix.PidfdOpen(e.Record().PID, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pid %d: pidfd_open: %w", e.Record().PID, err)
	}
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		if err := ns.AwaitExit(ctx, fd); err != nil {
			return err
		}
	}
	// The record is written right after the end; there is nothing to wait on but the file.
	for range 50 {
		if _, ended, err := e.ExitStatus(); err != nil || ended {
			return err
		}
		t := time.NewTimer(10 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
	return nil
}

// leaving takes a copy that is to be ended off the list.
func (a *Agent) leaving(instance uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.watchers[instance]; w != nil {
		w.cancel()
		delete(a.watchers, instance)
	}
}

// stopping takes a copy that is to be ended, but not removed, off the list.
func (a *Agent) stopping(instance uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.watchers[instance]; w != nil {
		w.cancel()
		w.stopped = true
	}
}

// ended reports the end of a program until the cluster has heard it.
func (a *Agent) ended(ref *agentapi.Ref, name string, code int32) {
	a.tasks.Go(func() {
		req := &clusterapi.ReportRequest{Ref: ref, Node: a.cfg.Name, BootId: a.node.GetBootId(), Role: agentapi.Role_ROLE_SOURCE,
			Event: &clusterapi.ReportRequest_WorkloadEnded{WorkloadEnded: &clusterapi.WorkloadEnded{Workload: name, WaitStatus: code}}}
		for {
			ctx, cancel := context.WithTimeout(a.ctx, callTime)
			_, err := a.api.Report(ctx, req)
			cancel()
			if c := status.Code(err); err == nil || c == codes.NotFound || c == codes.InvalidArgument || c == codes.FailedPrecondition {
				return
			}
			if !a.pause(time.Second) {
				return
			}
		}
	})
}

// defaultGrace is between SIGTERM and SIGKILL.
const defaultGrace = 10 * time.Second

// StopWorkload ends a copy.
func (a *Agent) StopWorkload(ctx context.Context, req *agentapi.StopWorkloadRequest) (*agentapi.StopWorkloadReply, error) {
	instance := req.GetRef().GetInstance()
	if m, _, moving := a.moves.Moving(instance); moving {
		return nil, status.Errorf(codes.FailedPrecondition, "workload %s is moving (migration %s): cancel that first", req.GetWorkload(), m)
	}
	e, err := a.host.set.Get(instance)
	if errors.Is(err, workload.ErrUnknown) {
		return &agentapi.StopWorkloadReply{}, nil
	}
	if err != nil {
		return nil, err
	}
	grace := time.Duration(req.GetGraceNs())
	if grace <= 0 {
		grace = defaultGrace
	}
	_, ended, err := e.ExitStatus()
	if err != nil {
		return nil, err
	}
	a.stopping(instance)
	if err := errors.Join(e.Stop(ctx, grace), a.host.removePort(ctx, e, false), a.host.closeConsole(instance)); err != nil {
		return nil, err
	}
	code, known, err := e.ExitStatus()
	if err != nil {
		return nil, err
	}
	if !known {
		code = int32(unix.SIGKILL) // with its pid 1, which could not record it any more
	}
	return &agentapi.StopWorkloadReply{WasRunning: !ended, WaitStatus: code}, nil
}

// copies lists what this host holds.
func (a *Agent) copies() []*agentapi.CopyInfo {
	var out []*agentapi.CopyInfo
	for _, e := range a.settledCopies() {
		rec := e.Record()
		c := &agentapi.CopyInfo{Workload: e.Name(), Instance: rec.Instance, Epoch: rec.Epoch, Pid: int32(rec.PID), Address: e.Spec().GetAddr(),
			StartedUnixNs: rec.Started.UnixNano(), Command: strings.Join(e.Spec().GetArgv(), " "), State: agentapi.CopyState_COPY_STATE_RUNNING}
		if m, state, moving := a.moves.Moving(rec.Instance); moving {
			c.Migration, c.State = m, state
		} else if code, ended, err := e.ExitStatus(); err == nil && ended {
			c.State, c.WaitStatus = agentapi.CopyState_COPY_STATE_ENDED, code
		}
		if c.State == agentapi.CopyState_COPY_STATE_RUNNING || c.State == agentapi.CopyState_COPY_STATE_FROZEN {
			if f, err := e.Figures(); err == nil { // it may end this moment
				c.RssBytes, c.Connections = f.RSSBytes, f.Connections
			}
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(x, y *agentapi.CopyInfo) int { return strings.Compare(x.GetWorkload(), y.GetWorkload()) })
	return out
}

// LocalInfo says what this agent is and holds.
func (a *Agent) LocalInfo(context.Context, *agentapi.LocalInfoRequest) (*agentapi.LocalInfoReply, error) {
	reply := &agentapi.LocalInfoReply{Node: a.node, Copies: a.copies()}
	for _, s := range a.cfg.servers() {
		reply.Servers = append(reply.Servers, s.address(a.cfg.ControlPort))
	}
	return reply, nil
}

// Order carries out one order of a handoff.
func (a *Agent) Order(ctx context.Context, req *agentapi.OrderRequest) (*agentapi.OrderReply, error) {
	if have, got := a.incarnation.Load(), req.GetRef().GetIncarnation(); got < have {
		return &agentapi.OrderReply{Refusal: agentapi.Refusal_REFUSAL_STALE_INCARNATION,
			Reason: fmt.Sprintf("the order is of incarnation %d of the cluster; this host has heard of %d", got, have)}, nil
	}
	return a.moves.Order(ctx, req)
}

// Logs sends the kept output of a workload.
func (a *Agent) Logs(req *agentapi.LogsRequest, out grpc.ServerStreamingServer[agentapi.LogsChunk]) error {
	envs := a.host.set.Named(req.GetWorkload())
	if len(envs) == 0 {
		return status.Errorf(codes.NotFound, "no workload %q on this host", req.GetWorkload())
	}
	e := slices.MaxFunc(envs, func(x, y *workload.Env) int { return int(x.Record().Epoch) - int(y.Record().Epoch) })
	f, err := e.Output()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if tail := req.GetTailBytes(); tail > 0 {
		size, err := f.Seek(0, io.SeekEnd)
		if err == nil {
			_, err = f.Seek(max(size-tail, 0), io.SeekStart)
		}
		if err != nil {
			return err
		}
	}
	if !req.GetFollow() {
		return sendFile(f, out)
	}
	return a.follow(out.Context(), e, func() error { return sendFile(f, out) })
}

// sendFile sends what there is of a file from its offset on.
func sendFile(f *os.File, out grpc.ServerStreamingServer[agentapi.LogsChunk]) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := out.Send(&agentapi.LogsChunk{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// follow sends the output of a copy as it grows, until the caller goes, the program ends, or the copy leaves this host.
func (a *Agent) follow(ctx context.Context, e *workload.Env, send func() error) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer func() { _ = events.Close() }()
	for _, path := range []string{e.OutputPath(), e.ExitsPath()} {
		if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_DELETE_SELF|unix.IN_ATTRIB); err != nil {
			return fmt.Errorf("watching %s: %w", path, err)
		}
	}
	defer context.AfterFunc(ctx, func() { _ = events.Close() })()
	defer context.AfterFunc(a.ctx, func() { _ = events.Close() })()
	buf := make([]byte, 4096)
	for {
		if err := send(); err != nil {
			return err
		}
		if _, ended, err := e.ExitStatus(); err != nil || ended {
			return send()
		}
		if _, err := events.Read(buf); err != nil {
			return ctx.Err() // closed: the caller or the agent goes
		}
	}
}

var _ move.Host = (*host)(nil)
