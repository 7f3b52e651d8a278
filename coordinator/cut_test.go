package coordinator

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
)

// cuts is a network in which an address can be cut off: its connections stay, and nothing comes through any more.
type cuts struct {
	mu  sync.Mutex
	off string
}

func (c *cuts) cut(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = addr
}

func (c *cuts) hit(a, b string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off != "" && (a == c.off || b == c.off)
}

func (c *cuts) dialer(from string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if c.hit(from, to) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		raw, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: raw, cuts: c, from: from, to: to}, nil
	}
}

type cutConn struct {
	net.Conn
	cuts     *cuts
	from, to string
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.cuts.hit(c.from, c.to) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.cuts.hit(c.from, c.to) {
			return n, err
		}
	}
}

// TestLeaderCutOff: the leader is cut off in the middle of a move, and nobody is told. Watchers, votes and reports find
// their way to the next one.
func TestLeaderCutOff(t *testing.T) {
	w := start(t, true)
	for i, point := range []handoff.ActionKind{handoff.ActBuild, handoff.ActFinish, handoff.ActRequestCommit} {
		t.Run(point.String(), func(t *testing.T) {
			w.t, w.book.t = t, t
			name := string(rune('a' + i))
			healed := make(chan struct{})
			w.run(name)
			var once sync.Once
			hook := func(_ handoff.Role, a handoff.Action) error {
				if a.Kind == point {
					once.Do(func() { go w.cutLeader(t, healed) })
				}
				return nil
			}
			for _, a := range w.agents {
				a.setHook(hook)
			}
			begin := time.Now()
			m, said := w.await(w.begin(name, "host2"))
			x := w.owner(name)
			t.Logf("%v after %v: %v", m.GetOutcome(), time.Since(begin).Round(time.Millisecond), said)
			want := map[clusterapi.Outcome]string{clusterapi.Outcome_OUTCOME_MOVED: "host2", clusterapi.Outcome_OUTCOME_SOURCE_RUNNING: "host1"}[m.GetOutcome()]
			if want == "" || x.GetHost() != want || w.book.get(x.GetInstance()) != "running" {
				t.Errorf("%v, owner %v, copies %v", m, x, w.book.copies)
			}
			<-healed
			w.allUp()
		})
	}
}

// cutLeader cuts the leader off until another one leads.
func (w *world) cutLeader(t *testing.T, healed chan<- struct{}) {
	defer close(healed)
	old := w.leader()
	w.cuts.cut(w.configs[old].Bind)
	defer w.cuts.cut("")
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(10 * time.Millisecond) { // no server tells of all others' terms
		if l := w.leader(); l != old && l != "" {
			return
		}
	}
	t.Error("no other leader within 10 s")
}

// allUp waits until every host was heard by the leader again.
func (w *world) allUp() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	for {
		up := 0
		r, err := w.cluster.Nodes(ctx, &clusterapi.NodesRequest{})
		for _, n := range r.GetNodes() {
			if n.GetUp() {
				up++
			}
		}
		if up == len(hosts) {
			return
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("%d hosts are up: %v", up, err)
		case <-time.After(50 * time.Millisecond): // the API has no event for it
		}
	}
}
