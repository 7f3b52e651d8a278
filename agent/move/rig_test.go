package move

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentapi "migrate/agent/api"
	"migrate/agent/volume"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
	"migrate/engine"
	"migrate/pagexfer"
)

// world is two hosts and a cluster of one server. The engine and the kernel are fakes that keep a trace and watch that no two
// copies run; the page stream, the peers' calls, the records on disk and all machines are the real ones.
type world struct {
	t     *testing.T
	mu    sync.Mutex
	trace []string
	runs  map[uint64]bool // copies that may execute
	trees map[uint64]*tree

	leader  handoff.Leader
	waiting chan *clusterapi.RequestCommitReply
	down    bool   // the cluster does not answer
	caller  string // who calls a peer, if not the source
	hosts   map[handoff.Role]*host
	last    map[string]*clusterapi.ReportRequest // by kind of event
	options *agentapi.MoveOptions                // nil: those of a small fast move
}

type host struct {
	w       *world
	name    string
	role    handoff.Role
	dir     string
	boot    string
	m       *Manager
	listen  net.Listener // pages
	control net.Listener
	server  *grpc.Server
	fail    map[string]error // by step of the fakes
	points  func(point string)
	hook    func(step string) // called in each step of the fakes
	dialled atomic.Int32      // connections to the peer
	open    atomic.Int32      // of these
}

// tree is a copy as the fake engine knows it.
type tree struct {
	w        *world
	instance uint64
	host     *host
	state    uint64 // what a checkpoint carries
	rounds   int
	writes   int // pages that each round finds
	frozen   bool
	gone     bool
	limit    float64   // of its processor time; 0: none
	limits   []float64 // that it has had, one after the other
	pages    map[uint64]byte
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, runs: map[uint64]bool{1: true}, trees: map[uint64]*tree{}, hosts: map[handoff.Role]*host{}, last: map[string]*clusterapi.ReportRequest{}}
	for _, role := range []handoff.Role{handoff.RoleSource, handoff.RoleDestination} {
		h := &host{w: w, name: role.String(), role: role, dir: t.TempDir(), boot: "boot-1", fail: map[string]error{}}
		w.hosts[role] = h
		h.start()
	}
	w.trees[1] = &tree{w: w, instance: 1, host: w.hosts[handoff.RoleSource], state: 42}
	t.Cleanup(func() {
		for _, h := range w.hosts {
			h.stop()
		}
	})
	return w
}

func (h *host) start() {
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.w.t.Fatal(err)
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.w.t.Fatal(err)
	}
	store, err := volume.OpenStore(h.dir + "-volumes")
	if err != nil {
		h.w.t.Fatal(err)
	}
	m, err := New(Config{Store: store, Hasher: &volume.Hasher{}, Node: h.name, BootID: h.boot, Dir: h.dir, PagesAddress: listen.Addr().String(), Host: h, Cluster: h.w,
		Peers: h, Caller: func(context.Context) string { return h.w.callerName() }, Log: slog.New(slog.NewTextHandler(h.w.t.Output(), nil)).With("host", h.name), Failpoint: func(p string) {
			h.w.mu.Lock()
			points := h.points
			h.w.mu.Unlock()
			if points != nil {
				points(p)
			}
		}})
	if err != nil {
		h.w.t.Fatal(err)
	}
	server, l := grpc.NewServer(), listen
	agentapi.RegisterPeerServer(server, m.Peer())
	if err := m.Recover(context.Background()); err != nil {
		h.w.t.Fatal(err)
	}
	h.w.mu.Lock()
	h.m, h.listen, h.control, h.server = m, listen, control, server
	h.w.mu.Unlock()
	go func() { _ = server.Serve(control) }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = m.ServePages(m.ctx, c) }()
		}
	}()
}

func (h *host) stop() {
	h.m.end()
	h.server.Stop()
	_ = h.listen.Close()
	h.m.Close()
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

// run marks a copy as running. Two at once is what must never be.
func (w *world) run(instance uint64, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if on {
		for other, runs := range w.runs {
			if runs && other != instance {
				w.t.Errorf("copies %d and %d run at once; trace %v", other, instance, w.trace)
			}
		}
	}
	w.runs[instance] = on
}

func (w *world) running() []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []uint64
	for i, runs := range w.runs {
		if runs {
			out = append(out, i)
		}
	}
	return out
}

// The cluster.

func (w *world) begin() {
	w.mu.Lock()
	w.leader = handoff.Leader{}
	w.mu.Unlock()
	w.feed(handoff.LeaderEvent{Kind: handoff.LeaderApplied, Record: handoff.Begin(1, "m1", 1, 2, 1)})
}

func (w *world) feed(ev handoff.LeaderEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.feedLocked(ev)
}

func (w *world) feedLocked(ev handoff.LeaderEvent) {
	next, actions, err := w.leader.Step(ev)
	if err != nil {
		return
	}
	w.leader = next
	for _, a := range actions {
		switch a.Kind {
		case handoff.ActPropose:
			rec, err := w.leader.Record.Apply(a.Entry)
			if err == nil {
				w.trace = append(w.trace, "log "+a.Entry.Kind.String())
				w.feedLocked(handoff.LeaderEvent{Kind: handoff.LeaderApplied, Record: rec})
			}
		case handoff.ActOrder:
			m := w.hosts[a.Role].m
			go func(req *agentapi.OrderRequest) { _, _ = m.Order(m.ctx, req) }(w.order(a))
		case handoff.ActAnswer:
			if w.waiting != nil {
				w.waiting <- &clusterapi.RequestCommitReply{Decision: map[handoff.OrderKind]clusterapi.Decision{
					handoff.OrderCommit: clusterapi.Decision_DECISION_COMMITTED, handoff.OrderAbort: clusterapi.Decision_DECISION_ABORTED,
					handoff.OrderEndAttempt: clusterapi.Decision_DECISION_ATTEMPT_ENDED}[a.Order]}
				w.waiting = nil
			}
		}
	}
}

func (w *world) order(a handoff.Action) *agentapi.OrderRequest {
	node := func(r handoff.Role) *agentapi.NodeInfo {
		return &agentapi.NodeInfo{Name: w.hosts[r].name, ControlAddress: w.hosts[r].control.Addr().String()}
	}
	spec := &agentapi.WorkloadSpec{Name: "w"}
	req := &agentapi.OrderRequest{Ref: refTo(a.Ref, 1), Role: roleTo(a.Role), Workload: "w"}
	opts := &agentapi.MoveOptions{MaxDowntimeNs: int64(2 * time.Second), Streams: 2}
	if w.options != nil {
		opts = w.options
	}
	switch a.Order {
	case handoff.OrderPrepareDestination:
		req.Order = &agentapi.OrderRequest_PrepareDestination{PrepareDestination: &agentapi.PrepareDestination{Source: node(handoff.RoleSource), SourceInstance: 1, Spec: spec}}
	case handoff.OrderPrepareSource:
		req.Order = &agentapi.OrderRequest_PrepareSource{PrepareSource: &agentapi.PrepareSource{Destination: node(handoff.RoleDestination), DestinationInstance: 2, Spec: spec, Options: opts}}
	case handoff.OrderCopy:
		req.Order = &agentapi.OrderRequest_Copy{Copy: &agentapi.Copy{}}
	case handoff.OrderSwitch:
		req.Order = &agentapi.OrderRequest_Switch{Switch: &agentapi.Switch{}}
	case handoff.OrderEndAttempt:
		req.Order = &agentapi.OrderRequest_EndAttempt{EndAttempt: &agentapi.EndAttempt{}}
	case handoff.OrderAbort:
		req.Order = &agentapi.OrderRequest_Abort{Abort: &agentapi.Abort{}}
	case handoff.OrderCommit:
		req.Order = &agentapi.OrderRequest_Commit{Commit: &agentapi.Commit{}}
	case handoff.OrderRevert:
		req.Order = &agentapi.OrderRequest_Revert{Revert: &agentapi.Revert{}}
	case handoff.OrderRelease:
		req.Order = &agentapi.OrderRequest_Release{Release: &agentapi.Release{}}
	case handoff.OrderDestroyCopy:
		req.Order = &agentapi.OrderRequest_DestroyCopy{DestroyCopy: &agentapi.DestroyCopy{}}
	}
	return req
}

var errDown = errors.New("no server answers")

func (w *world) isDown() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.down }

func (w *world) Report(_ context.Context, in *clusterapi.ReportRequest, _ ...grpc.CallOption) (*clusterapi.ReportReply, error) {
	if w.isDown() {
		return nil, errDown
	}
	kinds := map[string]handoff.ReportKind{"Ready": handoff.ReportReady, "Prepared": handoff.ReportPrepared, "Converged": handoff.ReportConverged,
		"Vote": handoff.ReportVote, "AttemptEnded": handoff.ReportAttemptEnded, "Failed": handoff.ReportFailed, "Confirmed": handoff.ReportConfirmed,
		"Released": handoff.ReportReleased, "LostCopy": handoff.ReportLostCopy, "Resumed": handoff.ReportResumed, "Declined": handoff.ReportDeclined,
		"CopyDestroyed": handoff.ReportCopyDestroyed}
	name := strings.TrimPrefix(fmt.Sprintf("%T", in.GetEvent()), "*clusterapi.ReportRequest_")
	w.mu.Lock()
	w.last[name] = in
	w.mu.Unlock()
	if kind, ok := kinds[name]; ok {
		if kind != handoff.ReportConverged {
			w.note("report %v", kind)
		}
		w.feed(handoff.LeaderEvent{Kind: handoff.LeaderReported, Role: roleOf(in.GetRole()), Report: kind, Ref: refOf(in.GetRef()),
			Hash: handoff.Hash(in.GetVote().GetHash()), Ran: in.GetLostCopy().GetRan()})
	}
	if in.GetAttemptEnded().GetGiveUp() {
		w.feed(handoff.LeaderEvent{Kind: handoff.LeaderTimeout})
	}
	return &clusterapi.ReportReply{State: w.state()}, nil
}

func (w *world) RequestCommit(ctx context.Context, in *clusterapi.RequestCommitRequest, _ ...grpc.CallOption) (*clusterapi.RequestCommitReply, error) {
	if w.isDown() {
		return nil, errDown
	}
	ch := make(chan *clusterapi.RequestCommitReply, 1)
	w.mu.Lock()
	w.waiting = ch
	w.feedLocked(handoff.LeaderEvent{Kind: handoff.LeaderRequestCommit, Ref: refOf(in.GetRef()), Hash: handoff.Hash(in.GetHash())})
	w.mu.Unlock()
	select {
	case r := <-ch:
		return r, nil
	case <-ctx.Done():
		w.feed(handoff.LeaderEvent{Kind: handoff.LeaderRequestGone})
		return nil, ctx.Err()
	}
}

func (w *world) ReadMigration(context.Context, *clusterapi.ReadMigrationRequest, ...grpc.CallOption) (*clusterapi.ReadMigrationReply, error) {
	if w.isDown() {
		return nil, errDown
	}
	return w.state(), nil
}

func (w *world) state() *clusterapi.ReadMigrationReply {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.leader.Record
	out := &clusterapi.ReadMigrationReply{Id: r.Migration, Incarnation: r.Incarnation, Attempt: r.Attempt, EndedAttempt: r.Ended,
		SourceInstance: r.Source, DestinationInstance: r.Destination, Epoch: r.Epoch, OwnerInstance: r.Source, Closed: r.Closed()}
	if r.Owner == handoff.RoleDestination {
		out.OwnerInstance = r.Destination
	}
	for p, hp := range phases {
		if hp == r.Phase && p != clusterapi.Phase_PHASE_PLANNED && p != clusterapi.Phase_PHASE_VOTED {
			out.Phase = p
		}
	}
	return out
}

// await returns when the log says so.
func (w *world) await(what string, is func(handoff.Record) bool) {
	w.t.Helper()
	for range 1500 { // the test's own deadline; the log has no way to wake a test
		w.mu.Lock()
		ok := is(w.leader.Record)
		w.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t.Fatalf("never %s: %v; trace %v", what, w.leader.Record, w.trace)
}

func (w *world) awaitPhase(p handoff.Phase) {
	w.t.Helper()
	w.await(p.String(), func(r handoff.Record) bool { return r.Phase == p })
}

// The host: engine, ports, peers.

func (h *host) err(step string) error {
	h.w.note("%s %s", h.name, step)
	h.w.mu.Lock()
	hook := h.hook
	h.w.mu.Unlock()
	if hook != nil {
		hook(step)
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return h.fail[step]
}

func (h *host) Open(_ context.Context, instance uint64, _ *agentapi.WorkloadSpec, _ *agentapi.MoveOptions) (Source, Port, error) {
	return &fakeSource{tr: h.w.tree(instance)}, &fakePort{h: h}, h.err("open")
}

func (w *world) tree(i uint64) *tree {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trees[i]
}

func (h *host) Clocks(context.Context, Handle) (Clocks, error) {
	return Clocks{At: monotonic(), Monotonic: time.Hour}, h.err("clocks")
}

func (h *host) Build(_ context.Context, b Build) (Skeleton, Port, []engine.Obstacle, error) {
	tr := &tree{w: h.w, instance: b.Instance, host: h, pages: map[uint64]byte{}}
	h.w.mu.Lock()
	h.w.trees[b.Instance] = tr
	h.w.mu.Unlock()
	return &fakeSkeleton{tr: tr}, &fakePort{h: h}, nil, h.err("build")
}

func (h *host) Adopt(_ context.Context, hd Handle) (Held, Port, bool, bool, error) {
	tr := h.w.tree(hd.Instance)
	if tr == nil || tr.gone {
		return nil, nil, false, false, nil
	}
	return tr, &fakePort{h: h}, tr.frozen, tr.state != 0, nil
}

// callerName is who calls a peer: the source, if no test says otherwise.
func (w *world) callerName() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.caller != "" {
		return w.caller
	}
	return w.hosts[handoff.RoleSource].name
}

func (h *host) Owned(context.Context, Handle, uint64) error { return h.err("owned") }

func (h *host) Dial(_ context.Context, n *agentapi.NodeInfo) (agentapi.PeerClient, func() error, error) {
	c, err := grpc.NewClient(n.GetControlAddress(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	h.dialled.Add(1)
	h.open.Add(1)
	return agentapi.NewPeerClient(c), func() error { h.open.Add(-1); return c.Close() }, nil
}

func (h *host) DialPages(ctx context.Context, _ *agentapi.NodeInfo, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// cpuTime is that of a program that uses one processor.
func (t *tree) cpuTime() (time.Duration, error) {
	return time.Duration(time.Now().UnixNano()), t.host.err("cpu time")
}

func (t *tree) throttle(processors float64) error {
	if err := t.host.err("throttle"); err != nil {
		return err
	}
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if t.limit != processors {
		t.limits = append(t.limits, processors)
	}
	t.limit = processors
	return nil
}

func (t *tree) limited() float64 {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	return t.limit
}

func (t *tree) Thaw(context.Context) error {
	if err := t.host.err("thaw"); err != nil {
		return err
	}
	t.w.run(t.instance, true)
	t.frozen = false
	return nil
}

func (t *tree) Destroy(context.Context) error {
	if err := t.host.err("destroy"); err != nil {
		return err
	}
	t.w.run(t.instance, false)
	t.gone = true
	return nil
}

type fakeSource struct{ tr *tree }

func (s *fakeSource) Thaw(ctx context.Context) error    { return s.tr.Thaw(ctx) }
func (s *fakeSource) Destroy(ctx context.Context) error { return s.tr.Destroy(ctx) }
func (s *fakeSource) Handle() Handle {
	return Handle{Instance: s.tr.instance, PID: 100, PIDs: []int{100, 101}}
}
func (s *fakeSource) Obstacles(context.Context) ([]engine.Obstacle, error) {
	return nil, s.tr.host.err("obstacles")
}
func (s *fakeSource) Track(context.Context) error { return s.tr.host.err("track") }
func (s *fakeSource) Layout(context.Context) ([]byte, error) {
	return fmt.Appendf(nil, "layout %d", s.tr.rounds/2), nil
}
func (s *fakeSource) Contents(context.Context, []volume.Unit, bool) ([]*agentapi.FileNeed, error) {
	return nil, nil
}
func (s *fakeSource) Mapped(context.Context) (map[string]bool, error) { return nil, nil }
func (s *fakeSource) Pending(context.Context) (int, error)            { return 0, nil }
func (s *fakeSource) Timeouts() []Timeouts                            { return []Timeouts{{Local: "a", Count: 2}} }
func (s *fakeSource) CPUTime() (time.Duration, error)                 { return s.tr.cpuTime() }
func (s *fakeSource) Throttle(processors float64) error               { return s.tr.throttle(processors) }
func (s *fakeSource) Unthrottle() error                               { return s.tr.throttle(0) }
func (s *fakeSource) Resident() uint64                                { return 1000 }
func (s *fakeSource) Tracker() string                                 { return "hash" }
func (s *fakeSource) Close() error {
	return errors.Join(s.tr.throttle(0), s.tr.host.err("close"))
}
func (s *fakeSource) Digest(context.Context) ([]byte, error) {
	return binary.LittleEndian.AppendUint64(nil, s.tr.state), s.tr.host.err("digest")
}

func (s *fakeSource) Round(ctx context.Context, sink PageSink) (RoundStats, error) {
	if err := s.tr.host.err("round"); err != nil {
		return RoundStats{}, err
	}
	n := 600 >> min(3*s.tr.rounds, 9)
	if s.tr.writes > 0 {
		n = s.tr.writes
	}
	if l := s.tr.limited(); l > 0 {
		n = int(float64(n) * l)
	}
	s.tr.rounds++
	return s.send(ctx, sink, n)
}

func (s *fakeSource) send(ctx context.Context, sink PageSink, n int) (RoundStats, error) {
	for i := range n {
		data := append(sink.Buffer(), make([]byte, pagexfer.PageSize)...)
		data[0] = byte(s.tr.rounds)
		if err := sink.Send(ctx, 10, []pagexfer.Run{{Addr: uint64(i) * pagexfer.PageSize, Pages: 1}}, data); err != nil {
			return RoundStats{}, err
		}
	}
	return RoundStats{Pages: uint64(n)}, nil
}

func (s *fakeSource) Freeze(context.Context) error {
	if err := errors.Join(s.tr.host.err("freeze"), s.tr.throttle(0)); err != nil {
		return err
	}
	s.tr.w.run(s.tr.instance, false)
	return nil
}

func (s *fakeSource) Final(ctx context.Context, sink PageSink) ([]byte, RoundStats, error) {
	if err := s.tr.host.err("final"); err != nil {
		return nil, RoundStats{}, err
	}
	st, err := s.send(ctx, sink, 3)
	return binary.LittleEndian.AppendUint64(nil, s.tr.state), st, err
}

func (s *fakeSource) Hold(context.Context) error {
	s.tr.frozen = true
	return s.tr.host.err("hold")
}

type fakeSkeleton struct {
	tr       *tree
	mu       sync.Mutex
	timeouts uint64
}

func (s *fakeSkeleton) Thaw(ctx context.Context) error    { return s.tr.Thaw(ctx) }
func (s *fakeSkeleton) Destroy(ctx context.Context) error { return s.tr.Destroy(ctx) }
func (s *fakeSkeleton) Handle() Handle                    { return Handle{Instance: s.tr.instance, PID: 200} }
func (s *fakeSkeleton) WritePages(_ uint32, addr uint64, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tr.pages[addr] = data[0]
	s.tr.w.mu.Lock()
	defer s.tr.w.mu.Unlock()
	return s.tr.host.fail["write"]
}
func (s *fakeSkeleton) ZeroPages(uint32, uint64, uint32) error { return nil }
func (s *fakeSkeleton) Follow(_ context.Context, layout []byte) error {
	return s.tr.host.err("follow")
}
func (s *fakeSkeleton) Finish(_ context.Context, checkpoint []byte) error {
	if err := s.tr.host.err("finish"); err != nil {
		return err
	}
	s.tr.state, s.tr.frozen = binary.LittleEndian.Uint64(checkpoint), true
	return nil
}
func (s *fakeSkeleton) Digest(context.Context) ([]byte, error) {
	return binary.LittleEndian.AppendUint64(nil, s.tr.state), s.tr.host.err("digest")
}
func (s *fakeSkeleton) Release(context.Context) ([][]byte, error) {
	return nil, s.tr.host.err("release")
}
func (s *fakeSkeleton) Settled(_ context.Context, before []Timeouts) error {
	for _, t := range before {
		s.timeouts += uint64(t.Count)
	}
	return s.tr.host.err("settled")
}
func (s *fakeSkeleton) Connections() []*clusterapi.Connection {
	return []*clusterapi.Connection{{Local: "a", RtoDuringMove: s.timeouts}}
}

// fakePort notes what is done to it, and captures one frame while it is shut.
type fakePort struct {
	h        *host
	mu       sync.Mutex
	captured bool
}

func (p *fakePort) Arm(context.Context) error { return p.h.err("arm") }
func (p *fakePort) ShutNew() error            { return p.h.err("shut new") }
func (p *fakePort) ShutIngress() error {
	p.mu.Lock()
	p.captured = true
	p.mu.Unlock()
	return p.h.err("shut ingress")
}
func (p *fakePort) ShutEgress() error { return p.h.err("shut egress") }
func (p *fakePort) Take() ([][]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.captured {
		return nil, nil
	}
	p.captured = false
	return [][]byte{[]byte("frame")}, nil
}
func (p *fakePort) Dropped() (uint64, error)                   { return 0, nil }
func (p *fakePort) Neighbours(context.Context) ([]byte, error) { return []byte("n"), nil }
func (p *fakePort) InstallNeighbours(_ context.Context, n []byte) error {
	return p.h.err("neighbours " + string(n))
}
func (p *fakePort) OpenEgress() error { return p.h.err("open egress") }
func (p *fakePort) Deliver(f [][]byte) (int, error) {
	return len(f), p.h.err("deliver " + string(f[0]))
}
func (p *fakePort) DeliverPackets([][]byte) error { return nil }
func (p *fakePort) OpenIngress() error {
	if f, _ := p.Take(); len(f) > 0 {
		_, _ = p.Deliver(f)
	}
	return p.h.err("open ingress")
}
func (p *fakePort) Announce(context.Context, ...time.Duration) error { return p.h.err("announce") }
func (p *fakePort) Disarm() error                                    { return nil }
