package coordinator

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/handoff"
)

// TestRestart stops all servers in the middle of a move and starts them again: the log knows where it was.
func TestRestart(t *testing.T) {
	w := start(t, true)
	w.run("w")
	reached, on := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.agents["host1"].setHook(func(role handoff.Role, a handoff.Action) error {
		if role == handoff.RoleSource && a.Kind == handoff.ActFinish {
			once.Do(func() { close(reached); <-on })
		}
		return nil
	})
	id := w.begin("w", "host2")
	<-reached
	for _, h := range hosts {
		w.stopServer(h)
	}
	close(on)
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() { w.startServer(t, h) })
	}
	wg.Wait()
	m, said := w.await(id)
	t.Log(said)
	if x := w.owner("w"); m.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED || x.GetHost() != "host2" || w.book.get(x.GetInstance()) != "running" {
		t.Errorf("%v, owner %v", m, x)
	}
}

// TestWipedServer loses a server's disk: it must not make a cluster of its own, and gets everything from the leader.
func TestWipedServer(t *testing.T) {
	w := start(t, true)
	w.run("w")
	var victim string
	for _, h := range hosts {
		if h != w.leader() {
			victim = h
		}
	}
	w.stopServer(victim)
	if err := os.RemoveAll(w.configs[victim].DataDir); err != nil {
		t.Fatal(err)
	}
	w.startServer(t, victim)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		var have bool
		changed := w.servers[victim].node.store.Changed()
		w.servers[victim].node.store.Read(func(st *fsm.State) { have = st.Workloads["w"] != nil && st.Incarnation != 0 })
		if have {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("the wiped server did not get the log")
		case <-changed:
		}
	}
}

// TestResolve: the destination is gone for good, between its vote's Commit and its word. Only an operator can say so.
func TestResolve(t *testing.T) {
	w := start(t, true)
	first := w.run("w")
	committed := make(chan struct{})
	var once sync.Once
	w.agents["host2"].setHook(func(_ handoff.Role, a handoff.Action) error {
		if a.Kind == handoff.ActPersist || a.Kind == handoff.ActResume {
			if w.agents["host2"].isResuming() {
				w.agents["host2"].goSilent(true)
				once.Do(func() { close(committed) })
				return context.Canceled
			}
		}
		return nil
	})
	id := w.begin("w", "host2")
	<-committed
	resolve := func(runAt, fenced string, loss bool) error {
		_, err := w.cluster.Resolve(t.Context(), &clusterapi.ResolveRequest{Id: id, RunAt: runAt, Fenced: fenced, AcceptLoss: loss, Operator: "test"})
		return err
	}
	for _, c := range []struct {
		runAt, fenced string
		loss          bool
		code          codes.Code
		says          string
	}{
		{"host3", "host2", true, codes.InvalidArgument, "neither"},
		{"host1", "", true, codes.InvalidArgument, "--fenced host2"},
		{"host1", "host2", false, codes.FailedPrecondition, "--accept-loss"},
	} {
		if err := resolve(c.runAt, c.fenced, c.loss); status.Code(err) != c.code || !strings.Contains(status.Convert(err).Message(), c.says) {
			t.Errorf("run at %s, fenced %q: %v", c.runAt, c.fenced, err)
		}
	}
	if st := w.book.get(first.GetInstance()); st != "stopped" {
		t.Fatalf("after the commit the source is %s", st)
	}
	if err := resolve("host1", "host2", true); err != nil {
		t.Fatal(err)
	}
	m, _ := w.await(id)
	if x := w.owner("w"); m.GetOutcome() != clusterapi.Outcome_OUTCOME_SOURCE_RUNNING || x.GetHost() != "host1" || x.GetEpoch() != 3 || w.book.get(x.GetInstance()) != "running" {
		t.Errorf("%v, owner %v", m, x)
	}
}

// isResuming says whether a migration has been committed to this host. The caller is the hook, under the move's lock.
func (a *fakeAgent) isResuming() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.moves {
		if m.dest.Phase == handoff.DestinationResuming {
			return true
		}
	}
	return false
}

// TestDev is the smallest cluster: one server that needs nobody.
func TestDev(t *testing.T) {
	w := start(t, false)
	c := w.configs["host1"]
	for _, h := range hosts {
		w.stopServer(h)
	}
	c.Servers, c.BootstrapExpect, c.DataDir = nil, 0, t.TempDir()
	s, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if r, err := w.cluster.Nodes(ctx, &clusterapi.NodesRequest{}); err != nil || r.GetLeader() != "host1" {
		t.Errorf("%v, %v", r, err)
	}
}

func TestConfig(t *testing.T) {
	good := Config{Name: "a", Bind: "127.0.0.1", DataDir: "d", TLS: noTLS{}, Servers: []string{"a", "b=10.0.0.2"}}
	if _, err := good.complete(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"a server needs a name":           func(c *Config) { c.Name = "" },
		"a server needs a data directory": func(c *Config) { c.DataDir = "" },
		"a server needs certificates":     func(c *Config) { c.TLS = nil },
		"is not an IP address":            func(c *Config) { c.Bind = "host" },
		"is not one of the servers":       func(c *Config) { c.Name = "x" },
		"bootstrap_expect is 3":           func(c *Config) { c.BootstrapExpect = 3 },
	} {
		c := good
		change(&c)
		if _, err := c.complete(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}

type noTLS struct{ TLS }
