package coordinator

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/fsm"
	"migrate/coordinator/handoff"
	"migrate/coordinator/pki"
)

// The agents of these tests are fakes: no process, no pages. What decides is real: the state machines of handoff, the
// gRPC services, mutual TLS, and a durable record each (in memory). Copies are entries in a shared book that knows
// when two of them run.

// book is every copy of every workload in a test.
type book struct {
	t      *testing.T
	mu     sync.Mutex
	copies map[uint64]string // instance -> running, stopped, gone
	of     map[uint64]string // instance -> workload
}

func (b *book) set(instance uint64, workload, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.copies[instance] = state
	if workload != "" {
		b.of[instance] = workload
	}
	running := 0
	for i, st := range b.copies {
		if st == "running" && b.of[i] == b.of[instance] {
			running++
		}
	}
	if running > 1 {
		b.t.Errorf("%d copies of %s run: %v", running, b.of[instance], b.copies)
	}
}

func (b *book) get(instance uint64) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.copies[instance]
}

type fakeAgent struct {
	agentapi.UnimplementedAgentServer
	info    *agentapi.NodeInfo
	boot    string
	book    *book
	cluster *client.Conn
	peers   atomic.Pointer[map[string]*fakeAgent] // all agents, for what the Peer service would carry
	server  *grpc.Server
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	obstacles []*agentapi.Obstacle
	refuses   []string // workloads that this host does not take
	// lacks, if it is set, names the file that this host lacks, at each look; "" is none.
	lacks atomic.Pointer[func() string]
	// hook is called before each action; an error drops it and all that follow, as a crash would.
	hook atomic.Pointer[func(role handoff.Role, a handoff.Action) error]

	mu     sync.Mutex
	silent bool
	moves  map[string]*fakeMove
	pids   map[string]int32
}

// fakeMove is one migration on one side.
type fakeMove struct {
	mu     sync.Mutex // one event and its actions at a time
	source handoff.Source
	dest   handoff.Destination
	about  about // guarded by the agent's mu
}

// about is what the orders have said of a migration.
type about struct {
	workload string
	peer     string // the other host
	peerCopy uint64
}

func (a *fakeAgent) about(m *fakeMove) about {
	a.mu.Lock()
	defer a.mu.Unlock()
	return m.about
}

func startFake(t *testing.T, b *book, creds *pki.Credentials, name, addr string, conn *client.Conn) *fakeAgent {
	t.Helper()
	a := &fakeAgent{book: b, boot: "boot-of-" + name, cluster: conn, moves: map[string]*fakeMove{}, pids: map[string]int32{},
		info: &agentapi.NodeInfo{Name: name, BootId: "boot-of-" + name, ControlAddress: addr}}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	a.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(creds.ServerTLS())))
	agentapi.RegisterAgentServer(a.server, a)
	a.wg.Go(func() { _ = a.server.Serve(l) })
	t.Cleanup(a.stop)
	if _, err := conn.Cluster().RegisterNode(t.Context(), &clusterapi.RegisterNodeRequest{Node: a.info}); err != nil {
		t.Fatal(err)
	}
	a.wg.Go(a.heartbeats)
	return a
}

func (a *fakeAgent) stop() {
	a.cancel()
	a.server.Stop()
	a.wg.Wait()
}

func (a *fakeAgent) heartbeats() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if !a.isSilent() {
			_, _ = a.cluster.Cluster().Heartbeat(a.ctx, &clusterapi.HeartbeatRequest{Node: a.info.Name, BootId: a.boot, MemoryFreeBytes: 1 << 30})
		}
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *fakeAgent) isSilent() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.silent
}

// goSilent: it hears nothing and says nothing any more, but lives.
func (a *fakeAgent) goSilent(silent bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = silent
}

func (a *fakeAgent) move(id string) *fakeMove {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.moves[id] == nil {
		a.moves[id] = &fakeMove{}
	}
	return a.moves[id]
}

func (a *fakeAgent) StartWorkload(_ context.Context, req *agentapi.StartWorkloadRequest) (*agentapi.StartWorkloadReply, error) {
	if req.GetSpec().GetArgv()[0] == "/no/such/file" {
		return nil, status.Error(codes.NotFound, "/no/such/file: no such file or directory")
	}
	a.book.set(req.GetRef().GetInstance(), req.GetSpec().GetName(), "running")
	return &agentapi.StartWorkloadReply{Pid: int32(1000 + req.GetRef().GetInstance())}, nil
}

func (a *fakeAgent) StopWorkload(_ context.Context, req *agentapi.StopWorkloadRequest) (*agentapi.StopWorkloadReply, error) {
	a.book.set(req.GetRef().GetInstance(), "", "gone")
	return &agentapi.StopWorkloadReply{WasRunning: true, WaitStatus: 15}, nil
}

func (a *fakeAgent) PlanSource(_ context.Context, req *agentapi.PlanSourceRequest) (*agentapi.PlanSourceReply, error) {
	if req.GetPid() == 99 {
		return nil, status.Error(codes.NotFound, "no process has pid 99")
	}
	return &agentapi.PlanSourceReply{Obstacles: a.obstacles, Pid: req.GetPid(), Command: "prog"}, nil
}

func (a *fakeAgent) PlanDestination(_ context.Context, req *agentapi.PlanDestinationRequest) (*agentapi.PlanDestinationReply, error) {
	if slices.Contains(a.refuses, req.GetWorkload()) {
		return &agentapi.PlanDestinationReply{Obstacles: []*agentapi.Obstacle{{Where: "/srv/data", Reason: a.info.GetName() + " does not have it"}}}, nil
	}
	reply := &agentapi.PlanDestinationReply{}
	if lacks := a.lacks.Load(); lacks != nil {
		if path := (*lacks)(); path != "" {
			reply.Obstacles = append(reply.Obstacles, &agentapi.Obstacle{Kind: "file", Where: path, Reason: "the file is missing"})
		}
	}
	return reply, nil
}

func (a *fakeAgent) Order(_ context.Context, o *agentapi.OrderRequest) (*agentapi.OrderReply, error) {
	if a.isSilent() {
		return nil, status.Error(codes.Unavailable, "silent")
	}
	m := a.move(o.GetRef().GetMigration())
	ref := refOf(o.GetRef())
	kind, known := map[string]handoff.OrderKind{"prepare_destination": handoff.OrderPrepareDestination, "prepare_source": handoff.OrderPrepareSource,
		"copy": handoff.OrderCopy, "switch": handoff.OrderSwitch, "end_attempt": handoff.OrderEndAttempt, "abort": handoff.OrderAbort,
		"commit": handoff.OrderCommit, "revert": handoff.OrderRevert, "release": handoff.OrderRelease, "destroy_copy": handoff.OrderDestroyCopy}[orderName(o)]
	if !known {
		return &agentapi.OrderReply{Accepted: true}, nil
	}
	a.mu.Lock()
	m.about.workload = o.GetWorkload()
	if p := o.GetPrepareSource(); p != nil {
		m.about.peer, m.about.peerCopy = p.GetDestination().GetName(), p.GetDestinationInstance()
	}
	if p := o.GetPrepareDestination(); p != nil {
		m.about.peer, m.about.peerCopy = p.GetSource().GetName(), p.GetSourceInstance()
	}
	a.mu.Unlock()
	if o.GetRole() == agentapi.Role_ROLE_SOURCE {
		a.wg.Go(func() { _ = a.sourceEvent(m, handoff.SourceEvent{Kind: handoff.SourceOrdered, Order: kind, Ref: ref}) })
	} else {
		a.wg.Go(func() {
			_ = a.destEvent(m, handoff.DestinationEvent{Kind: handoff.DestinationOrdered, Order: kind, Ref: ref})
		})
	}
	return &agentapi.OrderReply{Accepted: true}, nil
}

func (a *fakeAgent) before(role handoff.Role, act handoff.Action) error {
	if f := a.hook.Load(); f != nil && *f != nil {
		return (*f)(role, act)
	}
	return nil
}

func (a *fakeAgent) sourceEvent(m *fakeMove, ev handoff.SourceEvent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, actions, err := m.source.Step(ev)
	if err != nil {
		return err
	}
	m.source = next
	for _, act := range actions {
		if err := a.before(handoff.RoleSource, act); err != nil {
			return err
		}
		a.sourceAct(m, act)
	}
	return nil
}

func (a *fakeAgent) sourceAct(m *fakeMove, act handoff.Action) {
	switch act.Kind {
	case handoff.ActReport:
		a.report(handoff.RoleSource, act)
	case handoff.ActAsk:
		a.ask(m, handoff.RoleSource, act.Ref.Migration)
	case handoff.ActBuild:
		ref := act.Ref
		ref.Instance = a.about(m).peerCopy
		a.wg.Go(func() {
			peer := (*a.peers.Load())[a.about(m).peer]
			if peer.isSilent() || peer.destEvent(peer.move(ref.Migration), handoff.DestinationEvent{Kind: handoff.DestinationPeer, Ref: ref}) != nil {
				_ = a.sourceEvent(m, handoff.SourceEvent{Kind: handoff.SourceFault})
				return
			}
			_ = a.sourceEvent(m, handoff.SourceEvent{Kind: handoff.SourceSkeleton})
		})
	case handoff.ActCopy:
		a.wg.Go(func() {
			ref := &agentapi.Ref{Incarnation: act.Ref.Incarnation, Migration: act.Ref.Migration, Attempt: act.Ref.Attempt, Instance: act.Ref.Instance}
			a.say(&clusterapi.ReportRequest{Ref: ref, Role: agentapi.Role_ROLE_SOURCE, Event: &clusterapi.ReportRequest_Progress{
				Progress: &clusterapi.Progress{Rounds: []*clusterapi.Round{{N: 1, Pages: 10}}, Tracker: "hash"}}})
			select {
			case <-a.ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			_ = a.sourceEvent(m, handoff.SourceEvent{Kind: handoff.SourceConverged})
		})
	case handoff.ActFreeze:
		a.book.set(act.Ref.Instance, a.about(m).workload, "stopped")
	case handoff.ActFinish:
		ref := act.Ref
		ref.Instance = a.about(m).peerCopy
		hash := handoff.Hash(fmt.Sprintf("state of %s/%d", act.Ref.Migration, act.Ref.Attempt))
		a.wg.Go(func() {
			peer := (*a.peers.Load())[a.about(m).peer]
			if peer.isSilent() || peer.destEvent(peer.move(ref.Migration), handoff.DestinationEvent{Kind: handoff.DestinationFinished, Ref: ref, Hash: hash}) != nil {
				_ = a.sourceEvent(m, handoff.SourceEvent{Kind: handoff.SourceFault})
				return
			}
			_ = a.sourceEvent(m, handoff.SourceEvent{Kind: handoff.SourceFinished, Ref: act.Ref, Hash: hash})
		})
	case handoff.ActThaw:
		a.book.set(act.Ref.Instance, a.about(m).workload, "running")
	case handoff.ActDestroy:
		a.book.set(act.Ref.Instance, "", "gone")
	}
}

func (a *fakeAgent) destEvent(m *fakeMove, ev handoff.DestinationEvent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, actions, err := m.dest.Step(ev)
	if err != nil {
		return err
	}
	m.dest = next
	for _, act := range actions {
		if err := a.before(handoff.RoleDestination, act); err != nil {
			return err
		}
		switch act.Kind {
		case handoff.ActReport:
			a.report(handoff.RoleDestination, act)
		case handoff.ActAsk:
			a.ask(m, handoff.RoleDestination, act.Ref.Migration)
		case handoff.ActRequestCommit:
			a.book.set(act.Ref.Instance, a.about(m).workload, "stopped")
			a.requestCommit(m, act)
		case handoff.ActResume:
			a.book.set(act.Ref.Instance, a.about(m).workload, "running")
			a.wg.Go(func() { _ = a.destEvent(m, handoff.DestinationEvent{Kind: handoff.DestinationRan}) })
		case handoff.ActDestroy:
			a.book.set(act.Ref.Instance, "", "gone")
		}
	}
	return nil
}

func (a *fakeAgent) requestCommit(m *fakeMove, act handoff.Action) {
	a.wg.Go(func() {
		for a.ctx.Err() == nil && !a.isSilent() {
			reply, err := a.cluster.Cluster().RequestCommit(a.ctx, &clusterapi.RequestCommitRequest{Node: a.info.Name, BootId: a.boot, Hash: []byte(act.Hash),
				Ref: &agentapi.Ref{Incarnation: act.Ref.Incarnation, Migration: act.Ref.Migration, Attempt: act.Ref.Attempt, Instance: act.Ref.Instance}})
			if err != nil {
				continue
			}
			for order, d := range decisions {
				if d == reply.GetDecision() {
					_ = a.destEvent(m, handoff.DestinationEvent{Kind: handoff.DestinationOrdered, Order: order, Ref: act.Ref})
				}
			}
			return
		}
	})
}

// ask reads the log until an order follows for this side and the machine takes it.
func (a *fakeAgent) ask(m *fakeMove, role handoff.Role, id string) {
	a.wg.Go(func() {
		for a.ctx.Err() == nil {
			if r, err := a.cluster.Cluster().ReadMigration(a.ctx, &clusterapi.ReadMigrationRequest{Id: id}); err == nil && !a.isSilent() {
				rec := recordOf(r)
				order, ref := handoff.OrderFor(role, rec)
				if role == handoff.RoleSource && order != handoff.OrderSwitch && order != handoff.OrderNone {
					if a.sourceEvent(m, handoff.SourceEvent{Kind: handoff.SourceOrdered, Order: order, Ref: ref}) == nil && order != handoff.OrderCommit {
						return
					}
				}
				if role == handoff.RoleDestination && a.destEvent(m, handoff.DestinationEvent{Kind: handoff.DestinationOrdered, Order: order, Ref: ref}) == nil && rec.Closed() {
					return
				}
				if rec.Closed() {
					return
				}
			}
			select {
			case <-a.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// recordOf is the record of a read.
func recordOf(r *clusterapi.ReadMigrationReply) handoff.Record {
	out := handoff.Record{Incarnation: r.GetIncarnation(), Migration: r.GetId(), Attempt: r.GetAttempt(), Ended: r.GetEndedAttempt(),
		Source: r.GetSourceInstance(), Destination: r.GetDestinationInstance(), Epoch: r.GetEpoch(), Owner: handoff.RoleSource, DestinationGone: r.GetClosed()}
	if r.GetOwnerInstance() == out.Destination {
		out.Owner = handoff.RoleDestination
	}
	for p := handoff.PhaseNone; p <= handoff.PhaseLost; p++ {
		if fsm.Phase(p) == r.GetPhase() {
			out.Phase = p
		}
	}
	return out
}

func (a *fakeAgent) report(role handoff.Role, act handoff.Action) {
	req := &clusterapi.ReportRequest{Role: agentapi.Role(role),
		Ref: &agentapi.Ref{Incarnation: act.Ref.Incarnation, Migration: act.Ref.Migration, Attempt: act.Ref.Attempt, Instance: act.Ref.Instance}}
	switch act.Report {
	case handoff.ReportReady:
		req.Event = &clusterapi.ReportRequest_Ready{Ready: &clusterapi.Ready{}}
	case handoff.ReportPrepared:
		req.Event = &clusterapi.ReportRequest_Prepared{Prepared: &clusterapi.Prepared{Pid: 7}}
	case handoff.ReportConverged:
		req.Event = &clusterapi.ReportRequest_Converged{Converged: &clusterapi.Converged{PredictedDowntimeMs: 11}}
	case handoff.ReportVote:
		req.Event = &clusterapi.ReportRequest_Vote{Vote: &clusterapi.Vote{Hash: []byte(act.Hash)}}
	case handoff.ReportAttemptEnded:
		req.Event = &clusterapi.ReportRequest_AttemptEnded{AttemptEnded: &clusterapi.AttemptEnded{Reason: "fault"}}
	case handoff.ReportFailed:
		req.Event = &clusterapi.ReportRequest_Failed{Failed: &clusterapi.Failed{Reason: "fault"}}
	case handoff.ReportConfirmed:
		req.Event = &clusterapi.ReportRequest_Confirmed{Confirmed: &clusterapi.Confirmed{FrozenMs: 3}}
	case handoff.ReportReleased:
		req.Event = &clusterapi.ReportRequest_Released{Released: &clusterapi.Released{}}
	case handoff.ReportResumed:
		req.Event = &clusterapi.ReportRequest_Resumed{Resumed: &clusterapi.Resumed{Pid: 456, DowntimeMs: 12.5}}
	case handoff.ReportDeclined:
		req.Event = &clusterapi.ReportRequest_Declined{Declined: &clusterapi.Declined{Reason: "broken"}}
	case handoff.ReportCopyDestroyed:
		req.Event = &clusterapi.ReportRequest_CopyDestroyed{CopyDestroyed: &clusterapi.CopyDestroyed{}}
	}
	a.wg.Go(func() { a.say(req) })
}

// say repeats a report until it is answered.
func (a *fakeAgent) say(req *clusterapi.ReportRequest) {
	req.Node, req.BootId = a.info.Name, a.boot
	for a.ctx.Err() == nil && !a.isSilent() {
		if _, err := a.cluster.Cluster().Report(a.ctx, req); err == nil || status.Code(err) == codes.NotFound {
			return
		}
	}
}
