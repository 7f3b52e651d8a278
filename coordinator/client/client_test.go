package client

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/pki"
)

// server answers Nodes with its name, and counts.
type server struct {
	clusterapi.UnimplementedClusterServer
	name   string
	leader string // said in the header, if set
	calls  atomic.Int32
	fail   atomic.Bool // answer UNAVAILABLE
	ids    chan string // request ids of Run
	grpc   *grpc.Server
	addr   string
}

func (s *server) Nodes(ctx context.Context, _ *clusterapi.NodesRequest) (*clusterapi.NodesReply, error) {
	s.calls.Add(1)
	if s.fail.Load() {
		return nil, status.Error(codes.Unavailable, "no leader")
	}
	if s.leader != "" {
		if err := grpc.SetHeader(ctx, metadata.Pairs(LeaderHeader, s.leader)); err != nil {
			return nil, err
		}
	}
	return &clusterapi.NodesReply{Leader: s.name}, nil
}

func (s *server) Run(_ context.Context, req *clusterapi.RunRequest) (*clusterapi.RunReply, error) {
	s.ids <- req.GetRequestId()
	if s.fail.Load() {
		return nil, status.Error(codes.Unavailable, "lost on the way")
	}
	return &clusterapi.RunReply{}, nil
}

func (s *server) Resolve(context.Context, *clusterapi.ResolveRequest) (*clusterapi.ResolveReply, error) {
	s.calls.Add(1)
	return nil, status.Error(codes.Unavailable, "who knows")
}

func dial(t *testing.T, servers ...*server) *Conn {
	t.Helper()
	ca, err := pki.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	var list []Server
	for _, s := range servers {
		creds, err := ca.Issue(s.name, nil, pki.RoleServer)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.addr, s.ids = l.Addr().String(), make(chan string, 10)
		s.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(creds.ServerTLS())))
		clusterapi.RegisterClusterServer(s.grpc, s)
		go func() { _ = s.grpc.Serve(l) }()
		t.Cleanup(s.grpc.Stop)
		list = append(list, Server{Name: s.name, Address: s.addr})
	}
	me, err := ca.Issue("client", nil, pki.RoleNode)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(Config{Servers: list, TLS: func(name string) (*tls.Config, error) { return me.ClientTLS(name) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func answers(t *testing.T, c *Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := c.Cluster().Nodes(ctx, &clusterapi.NodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetLeader()
}

// TestFollowsLeader: to whoever answers, from there to the leader, and away from it when it dies.
func TestFollowsLeader(t *testing.T) {
	a, b := &server{name: "a", leader: "b"}, &server{name: "b"}
	c := dial(t, a, b)
	for i, want := range []string{"a", "b", "b"} {
		if got := answers(t, c); got != want {
			t.Fatalf("call %d was answered by %s, want %s", i, got, want)
		}
	}
	b.grpc.Stop()
	for range 3 { // and not back to it because a still says that it leads
		if got := answers(t, c); got != "a" {
			t.Fatalf("answered by %s after b died", got)
		}
	}
}

func TestRepeats(t *testing.T) {
	a, b := &server{name: "a"}, &server{name: "b"}
	c := dial(t, a, b)
	a.fail.Store(true)
	if got := answers(t, c); got != "b" {
		t.Errorf("answered by %s", got)
	}
	b.fail.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() {
		for a.calls.Load() < 2 && ctx.Err() == nil { // a server tells nobody of its calls
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := c.Cluster().Nodes(ctx, &clusterapi.NodesRequest{}); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
		t.Errorf("no server can answer: %v", err)
	}
	if n := a.calls.Load(); n < 2 {
		t.Errorf("a was asked %d times", n)
	}
}

// TestRunKeepsItsID: what creates something carries the same id each time it is sent.
func TestRunKeepsItsID(t *testing.T) {
	a, b := &server{name: "a"}, &server{name: "b"}
	c := dial(t, a, b)
	a.fail.Store(true)
	if _, err := c.Cluster().Run(t.Context(), &clusterapi.RunRequest{}); err != nil {
		t.Fatal(err)
	}
	if x, y := <-a.ids, <-b.ids; x == "" || x != y {
		t.Errorf("sent with ids %q and %q", x, y)
	}
}

func TestResolveIsNotRepeated(t *testing.T) {
	a, b := &server{name: "a"}, &server{name: "b"}
	c := dial(t, a, b)
	if _, err := c.Cluster().Resolve(t.Context(), &clusterapi.ResolveRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
	if n := a.calls.Load() + b.calls.Load(); n != 1 {
		t.Errorf("it was sent %d times", n)
	}
}
