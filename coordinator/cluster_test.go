package coordinator

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/fsm"
	"migrate/coordinator/handoff"
	"migrate/coordinator/pki"
)

// world is three servers and three agents on loopback.
type world struct {
	t       *testing.T
	ca      *pki.CA
	configs map[string]Config
	mu      sync.Mutex
	servers map[string]*Server
	agents  map[string]*fakeAgent
	book    *book
	conn    *client.Conn
	cluster clusterapi.ClusterClient
	cuts    *cuts
}

var hosts = []string{"host1", "host2", "host3"}

func quiet() *slog.Logger {
	if os.Getenv("MIGRATE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	return slog.New(slog.DiscardHandler)
}

// start brings up a cluster on loopback addresses of its own.
func start(t testing.TB, agents bool) *world {
	t.Helper()
	ca, err := pki.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{ca: ca, configs: map[string]Config{}, servers: map[string]*Server{}, agents: map[string]*fakeAgent{}, cuts: &cuts{}}
	if tt, ok := t.(*testing.T); ok {
		w.t = tt
		w.book = &book{t: tt, copies: map[uint64]string{}, of: map[uint64]string{}}
	}
	net := fmt.Sprintf("127.%d.%d.", 10+rand.IntN(200), rand.IntN(250))
	var names []string
	var servers []client.Server
	for i, h := range hosts {
		addr := fmt.Sprintf("%s%d", net, i+1)
		names = append(names, h+"="+addr)
		servers = append(servers, client.Server{Name: h, Address: addr + ":7401"})
	}
	creds := map[string]*pki.Credentials{}
	for i, h := range hosts {
		c, err := ca.Issue(h, nil, pki.RoleNode, pki.RoleServer)
		if err != nil {
			t.Fatal(err)
		}
		creds[h] = c
		w.configs[h] = Config{Name: h, Bind: fmt.Sprintf("%s%d", net, i+1), Servers: names, BootstrapExpect: 3, DataDir: t.TempDir(),
			TLS: c, Listen: true, Dialer: w.cuts.dialer(fmt.Sprintf("%s%d", net, i+1)), Log: quiet(), Limits: Limits{Silence: 2 * time.Second, Switch: 2 * time.Second, LoneVote: 500 * time.Millisecond, Redrive: 200 * time.Millisecond}}
	}
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() { w.startServer(t, h) })
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, h := range hosts {
			w.stopServer(h)
		}
	})
	w.conn = w.dial(t, creds["host3"], servers)
	w.cluster = w.conn.Cluster()
	if agents {
		for i, h := range hosts {
			w.agents[h] = startFake(w.t, w.book, creds[h], h, fmt.Sprintf("%s%d:7405", net, i+1), w.dial(t, creds[h], servers))
		}
		for _, a := range w.agents {
			a.peers.Store(&w.agents)
		}
	}
	return w
}

func (w *world) dial(t testing.TB, c *pki.Credentials, servers []client.Server) *client.Conn {
	t.Helper()
	conn, err := client.Dial(client.Config{Servers: servers, Dialer: w.cuts.dialer(""), TLS: func(name string) (*tls.Config, error) { return c.ClientTLS(name) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (w *world) startServer(t testing.TB, h string) {
	s, err := Start(context.Background(), w.configs[h])
	if err != nil {
		t.Error(err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[h] = s
}

func (w *world) stopServer(h string) {
	w.mu.Lock()
	s := w.servers[h]
	delete(w.servers, h)
	w.mu.Unlock()
	if s != nil {
		_ = s.Close()
	}
}

func (w *world) leader() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for h, s := range w.servers {
		if s.Leads() {
			return h
		}
	}
	return ""
}

// run starts a workload on host1.
func (w *world) run(name string) *clusterapi.Workload {
	w.t.Helper()
	reply, err := w.cluster.Run(w.t.Context(), &clusterapi.RunRequest{Host: "host1", Spec: &agentapi.WorkloadSpec{Name: name, Argv: []string{"prog"}}})
	if err != nil {
		w.t.Fatal(err)
	}
	return reply.GetWorkload()
}

func (w *world) begin(name, to string) string {
	w.t.Helper()
	reply, err := w.cluster.Move(w.t.Context(), &clusterapi.MoveRequest{Target: &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: name}}, Destination: to})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(reply.GetObstacles()) > 0 {
		w.t.Fatal(reply.GetObstacles())
	}
	return reply.GetId()
}

// await watches a migration to its end.
func (w *world) await(id string) (*clusterapi.Migration, []string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	var said []string
	m, err := client.Watch(ctx, w.cluster, id, func(ev *clusterapi.MigrationEvent) error {
		if ev.GetMessage() != "" {
			said = append(said, ev.GetMessage())
		}
		return nil
	})
	if err != nil {
		w.t.Fatalf("%v after %v: %v", err, said, m)
	}
	return m, said
}

func (w *world) owner(name string) *clusterapi.Workload {
	w.t.Helper()
	reply, err := w.cluster.Workloads(w.t.Context(), &clusterapi.WorkloadsRequest{All: true})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, x := range reply.GetWorkloads() {
		if x.GetName() == name {
			return x
		}
	}
	w.t.Fatalf("%s is not in %v", name, reply)
	return nil
}

func TestMove(t *testing.T) {
	w := start(t, true)
	first := w.run("w")
	m, said := w.await(w.begin("w", "host2"))
	t.Log(said)
	if m.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED || m.GetPhase() != clusterapi.Phase_PHASE_RELEASED {
		t.Fatalf("%v", m)
	}
	if m.GetDowntimeMs() != 12.5 || m.GetDestinationPid() != 456 || len(m.GetProgress().GetRounds()) != 1 || m.GetEpoch() != 2 || m.GetPredictedDowntimeMs() != 11 {
		t.Errorf("the result lacks what was reported: %v", m)
	}
	x := w.owner("w")
	if x.GetHost() != "host2" || x.GetEpoch() != 2 || x.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING || x.GetPid() != 456 {
		t.Errorf("owner: %v", x)
	}
	if w.book.get(first.GetInstance()) != "gone" || w.book.get(x.GetInstance()) != "running" {
		t.Errorf("copies: %v", w.book.copies)
	}
	// And on, and back: every copy has its own instance.
	for _, to := range []string{"host3", "host1"} {
		if m, _ := w.await(w.begin("w", to)); m.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED {
			t.Fatalf("to %s: %v", to, m)
		}
	}
	if x := w.owner("w"); x.GetHost() != "host1" || x.GetEpoch() != 4 || x.GetInstance() != 4 {
		t.Errorf("after three moves: %v", x)
	}
	if _, err := w.cluster.Stop(t.Context(), &clusterapi.StopRequest{Workload: "w"}); err != nil {
		t.Fatal(err)
	}
	if x := w.owner("w"); x.GetState() != clusterapi.WorkloadState_WORKLOAD_STATE_ENDED || x.GetWaitStatus() != 15 {
		t.Errorf("after the stop: %v", x)
	}
}

// TestLeaderDies kills the leader at each step of either side; the move must end, one copy running, and the owner in
// the log being the one that runs.
func TestLeaderDies(t *testing.T) {
	points := []string{"report ready", "report prepared", "copy", "report converged", "freeze", "finish", "report vote", "request-commit", "resume",
		"report resumed", "destroy", "report released"}
	w := start(t, true)
	for i, point := range points {
		t.Run(point, func(t *testing.T) {
			w.t, w.book.t = t, t
			name := fmt.Sprintf("w%d", i)
			w.run(name)
			var once atomic.Bool
			killed := make(chan string, 1)
			hook := func(_ handoff.Role, a handoff.Action) error {
				if strings.HasPrefix(a.String(), point) && !once.Swap(true) {
					l := w.leader()
					w.stopServer(l)
					killed <- l
				}
				return nil
			}
			for _, a := range w.agents {
				a.setHook(hook)
			}
			id := w.begin(name, "host2")
			m, said := w.await(id)
			if !once.Load() {
				t.Fatalf("the move never came to %q: %v", point, said)
			}
			x := w.owner(name)
			t.Logf("%v: %v", m.GetOutcome(), said)
			want := map[clusterapi.Outcome]string{clusterapi.Outcome_OUTCOME_MOVED: "host2", clusterapi.Outcome_OUTCOME_SOURCE_RUNNING: "host1"}[m.GetOutcome()]
			if want == "" || x.GetHost() != want || w.book.get(x.GetInstance()) != "running" {
				t.Errorf("%v, owner %v, copies %v", m, x, w.book.copies)
			}
			w.startServer(t, <-killed)
		})
	}
}

func (a *fakeAgent) setHook(f func(handoff.Role, handoff.Action) error) {
	a.hook.Store(&f)
}

// TestDestinationSilent: the destination hears nothing from its vote on; the source runs and confirms, and what is
// left of the copy goes when the destination is back.
func TestDestinationSilent(t *testing.T) {
	w := start(t, true)
	first := w.run("w")
	w.agents["host2"].setHook(func(_ handoff.Role, a handoff.Action) error {
		if a.Kind == handoff.ActRequestCommit {
			w.agents["host2"].goSilent(true)
		}
		return nil
	})
	id := w.begin("w", "host2")
	m, said := w.await(id)
	t.Log(said)
	if m.GetOutcome() != clusterapi.Outcome_OUTCOME_SOURCE_RUNNING || !strings.Contains(m.GetError(), "host2 was silent after the source's vote") {
		t.Fatalf("%v", m)
	}
	if w.book.get(first.GetInstance()) != "running" {
		t.Fatalf("copies: %v", w.book.copies)
	}
	// Exclusive until both sides have acknowledged the end.
	_, err := w.cluster.Move(t.Context(), &clusterapi.MoveRequest{Target: &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: "w"}}, Destination: "host3"})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a move while the last one is not closed: %v", err)
	}
	w.agents["host2"].goSilent(false)
	w.closed(id)
	if st := w.book.get(m.GetDestinationInstance()); st != "gone" {
		t.Errorf("the destination's copy is %s", st)
	}
	if m, _ := w.await(w.begin("w", "host3")); m.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED {
		t.Errorf("the next move: %v", m)
	}
}

// closed waits until both sides have acknowledged the end of a migration.
func (w *world) closed(id string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	for {
		r, err := w.cluster.ReadMigration(ctx, &clusterapi.ReadMigrationRequest{Id: id})
		if err == nil && r.GetClosed() {
			return
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("%s is not closed: %v, %v", id, r, err)
		case <-time.After(50 * time.Millisecond): // the API has no wait for this; it is no state that users wait for
		}
	}
}

func TestCancel(t *testing.T) {
	w := start(t, true)
	for i, point := range []string{"report prepared", "report converged", "freeze", "report vote"} {
		t.Run(point, func(t *testing.T) {
			w.t, w.book.t = t, t
			name := fmt.Sprintf("w%d", i)
			first := w.run(name)
			reached, cancelled := make(chan struct{}), make(chan struct{})
			var once sync.Once
			w.agents["host1"].setHook(func(role handoff.Role, a handoff.Action) error {
				if role == handoff.RoleSource && strings.HasPrefix(a.String(), point) {
					once.Do(func() { close(reached); <-cancelled })
				}
				return nil
			})
			id := w.begin(name, "host2")
			<-reached
			_, err := w.cluster.Cancel(t.Context(), &clusterapi.CancelRequest{Id: id, Reason: "test"})
			close(cancelled)
			if err != nil {
				t.Fatal(err)
			}
			m, said := w.await(id)
			t.Log(said)
			if m.GetOutcome() != clusterapi.Outcome_OUTCOME_SOURCE_RUNNING || !m.GetCancelled() || w.book.get(first.GetInstance()) != "running" {
				t.Errorf("%v, copies %v", m, w.book.copies)
			}
		})
	}
	t.Run("after the commit", func(t *testing.T) {
		w.t, w.book.t = t, t
		for _, a := range w.agents {
			a.setHook(nil)
		}
		w.run("late")
		id := w.begin("late", "host2")
		w.await(id)
		if _, err := w.cluster.Cancel(t.Context(), &clusterapi.CancelRequest{Id: id}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("cancel of what has moved: %v", err)
		}
	})
}

func TestRefused(t *testing.T) {
	w := start(t, true)
	w.run("w")
	named := func(name string) *clusterapi.Target {
		return &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: name}}
	}
	pid := func(pid int32, host string) *clusterapi.Target {
		return &clusterapi.Target{What: &clusterapi.Target_Pid{Pid: pid}, Host: host}
	}
	w.agents["host3"].goSilent(true)
	w.awaitDown("host3")
	for _, c := range []struct {
		what   string
		target *clusterapi.Target
		to     string
		code   codes.Code
		says   string
	}{
		{"unknown host", named("w"), "host9", codes.NotFound, `no host is named "host9"; the cluster has host1, host2, host3`},
		{"host that is down", named("w"), "host3", codes.FailedPrecondition, "host3 is down"},
		{"the source itself", named("w"), "host1", codes.InvalidArgument, "same host"},
		{"no destination", named("w"), "", codes.InvalidArgument, "where to"},
		{"unknown workload", named("x"), "host2", codes.NotFound, `no workload is named "x"`},
		{"no such process", pid(99, "host1"), "host2", codes.NotFound, "no process has pid 99"},
		{"pid 0", pid(0, "host1"), "host2", codes.InvalidArgument, "pid 0"},
		{"pid without host", pid(5, ""), "host2", codes.InvalidArgument, "needs the host"},
	} {
		_, err := w.cluster.Move(t.Context(), &clusterapi.MoveRequest{Target: c.target, Destination: c.to})
		if status.Code(err) != c.code || !strings.Contains(status.Convert(err).Message(), c.says) {
			t.Errorf("%s: %v, want %v with %q", c.what, err, c.code, c.says)
		}
		_, err = w.cluster.Plan(t.Context(), &clusterapi.PlanRequest{Target: c.target, Destination: c.to})
		if status.Code(err) != c.code {
			t.Errorf("plan, %s: %v", c.what, err)
		}
	}
	reached, done := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.agents["host1"].setHook(func(handoff.Role, handoff.Action) error {
		once.Do(func() { close(reached); <-done })
		return nil
	})
	id := w.begin("w", "host2")
	<-reached
	_, err := w.cluster.Move(t.Context(), &clusterapi.MoveRequest{Target: named("w"), Destination: "host2"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "moving already") {
		t.Errorf("a second move: %v", err)
	}
	if _, err := w.cluster.Stop(t.Context(), &clusterapi.StopRequest{Workload: "w"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("stop while it moves: %v", err)
	}
	close(done)
	w.await(id)
	w.agents["host2"].obstacles = []*agentapi.Obstacle{{Kind: "inotify", Where: "fd 7", Reason: "not carried"}}
	reply, err := w.cluster.Move(t.Context(), &clusterapi.MoveRequest{Target: named("w"), Destination: "host1"})
	if err != nil || reply.GetId() != "" || len(reply.GetObstacles()) != 1 || reply.GetObstacles()[0].GetHost() != "host2" {
		t.Errorf("a move with an obstacle: %v, %v", reply, err)
	}
	if _, err := w.cluster.Run(t.Context(), &clusterapi.RunRequest{Host: "host1", Spec: &agentapi.WorkloadSpec{Argv: []string{"/no/such/file"}}}); status.Code(err) != codes.NotFound && status.Code(err) != codes.FailedPrecondition || // the latter when the log told it
		!strings.Contains(err.Error(), "host1 could not start file: /no/such/file") {
		t.Errorf("run of a missing program: %v", err)
	}
	req := &clusterapi.ReportRequest{Node: "host1", Role: agentapi.Role_ROLE_SOURCE, Event: &clusterapi.ReportRequest_Confirmed{}, Ref: &agentapi.Ref{Migration: id}}
	if _, err := w.cluster.Report(t.Context(), req); status.Code(err) != codes.PermissionDenied { // the test speaks as host3
		t.Errorf("host3 speaks for host1: %v", err)
	}
}

// TestBareProcess: a process that was given by pid becomes a workload of the log when it moves.
func TestBareProcess(t *testing.T) {
	w := start(t, true)
	reply, err := w.cluster.Move(t.Context(), &clusterapi.MoveRequest{Target: &clusterapi.Target{What: &clusterapi.Target_Pid{Pid: 123}, Host: "host1"}, Destination: "host2"})
	if err != nil {
		t.Fatal(err)
	}
	if reply.GetWorkload() != "pid-123@host1" {
		t.Errorf("it is called %q", reply.GetWorkload())
	}
	if m, _ := w.await(reply.GetId()); m.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED {
		t.Fatalf("%v", m)
	}
	// By its new pid it is the same workload.
	plan, err := w.cluster.Plan(t.Context(), &clusterapi.PlanRequest{Target: &clusterapi.Target{What: &clusterapi.Target_Pid{Pid: 456}, Host: "host2"}, Destination: "host1"})
	if err != nil || plan.GetWorkload() != "pid-123@host1" {
		t.Errorf("plan by its new pid: %v, %v", plan, err)
	}
}

// TestOneEntry counts the log's entries between the source's freeze and the destination's resume: Commit and nothing else.
func TestOneEntry(t *testing.T) {
	w := start(t, true)
	w.run("w")
	index := func() (i uint64) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, s := range w.servers {
			if s.Leads() {
				s.node.store.Read(func(st *fsm.State) { i = st.LastIndex })
			}
		}
		return i
	}
	var froze, resumed atomic.Uint64
	for _, a := range w.agents {
		a.setHook(func(_ handoff.Role, act handoff.Action) error {
			switch act.Kind {
			case handoff.ActFreeze:
				froze.Store(index())
			case handoff.ActResume:
				resumed.Store(index())
			}
			return nil
		})
	}
	w.await(w.begin("w", "host2"))
	if n := resumed.Load() - froze.Load(); n != 1 {
		t.Errorf("%d entries in the blackout, want 1", n)
	}
}

// BenchmarkCommit is one entry on three servers of this machine, flushed by a majority.
func BenchmarkCommit(b *testing.B) {
	w := start(b, false)
	if _, err := w.cluster.Nodes(b.Context(), &clusterapi.NodesRequest{}); err != nil {
		b.Fatal(err)
	}
	s := w.servers[w.leader()]
	for b.Loop() {
		if _, err := s.node.propose(fsm.Noop()); err != nil {
			b.Fatal(err)
		}
	}
}
