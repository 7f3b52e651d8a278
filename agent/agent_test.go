package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
)

// fakeCluster is a server of which the first calls fail, as during a change of leader.
type fakeCluster struct {
	clusterapi.UnimplementedClusterServer
	name     string
	failures int
}

var errNoLeader = status.Error(codes.Unavailable, "there is no leader")

func (f *fakeCluster) fail() bool { f.failures--; return f.failures >= 0 }

func (f *fakeCluster) Nodes(context.Context, *clusterapi.NodesRequest) (*clusterapi.NodesReply, error) {
	if f.fail() {
		return nil, errNoLeader
	}
	return &clusterapi.NodesReply{Leader: f.name}, nil
}

func (f *fakeCluster) Cancel(context.Context, *clusterapi.CancelRequest) (*clusterapi.CancelReply, error) {
	return nil, status.Error(codes.FailedPrecondition, "too late")
}

func (f *fakeCluster) Resolve(context.Context, *clusterapi.ResolveRequest) (*clusterapi.ResolveReply, error) {
	f.failures++
	return nil, errNoLeader
}

// WatchMigration breaks off after one event, as long as there are failures left.
func (f *fakeCluster) WatchMigration(req *clusterapi.WatchMigrationRequest, out grpc.ServerStreamingServer[clusterapi.MigrationEvent]) error {
	if err := out.Send(&clusterapi.MigrationEvent{Message: req.GetId()}); err != nil {
		return err
	}
	if f.fail() {
		return errNoLeader
	}
	return out.Send(&clusterapi.MigrationEvent{Message: "the end"})
}

// serve starts a gRPC server and returns a connection to it.
func serve(t *testing.T, network, address string, register func(*grpc.Server), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(opts...)
	register(s)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	target := l.Addr().String()
	if network == "unix" {
		target = "unix:" + target
	}
	c, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// local is the local socket of an agent whose cluster has the given servers.
func local(t *testing.T, servers ...*fakeCluster) *grpc.ClientConn {
	t.Helper()
	a := &Agent{cluster: &cluster{}}
	for _, f := range servers {
		c := serve(t, "tcp", "127.0.0.1:0", func(s *grpc.Server) { clusterapi.RegisterClusterServer(s, f) })
		a.cluster.conns = append(a.cluster.conns, c)
	}
	return serve(t, "unix", filepath.Join(t.TempDir(), "s"), func(s *grpc.Server) { agentapi.RegisterAgentServer(s, a) },
		grpc.ForceServerCodecV2(newPassing()), grpc.UnknownServiceHandler(a.pass), grpc.UnaryInterceptor(localUnary))
}

func TestTheSocketPassesCallsOnAndOutlastsAChangeOfLeader(t *testing.T) {
	one, two := &fakeCluster{name: "one", failures: 1}, &fakeCluster{name: "two", failures: 1}
	api := clusterapi.NewClusterClient(local(t, one, two))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := api.Nodes(ctx, &clusterapi.NodesRequest{})
	if err != nil || r.GetLeader() == "" {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := api.Cancel(ctx, &clusterapi.CancelRequest{Id: "m"}); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "too late" {
		t.Errorf("an answer that is an error: %v", err)
	}
	one.failures, two.failures = 0, 0
	if _, err := api.Resolve(ctx, &clusterapi.ResolveRequest{}); status.Code(err) != codes.Unavailable || one.failures+two.failures != 1 {
		t.Errorf("Resolve was made %d times: %v", one.failures+two.failures, err)
	}
}

func TestAWatchIsTakenUpAgain(t *testing.T) {
	f := &fakeCluster{failures: 2}
	w, err := clusterapi.NewClusterClient(local(t, f)).WatchMigration(t.Context(), &clusterapi.WatchMigrationRequest{Id: "m"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		e, err := w.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.GetMessage())
	}
	if len(got) != 4 || got[3] != "the end" {
		t.Errorf("events %q", got)
	}
}

func TestTheSocketGivesNoOrders(t *testing.T) {
	c := local(t, &fakeCluster{})
	if _, err := agentapi.NewAgentClient(c).Order(t.Context(), &agentapi.OrderRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Order: %v", err)
	}
	if _, err := agentapi.NewPeerClient(c).Clock(t.Context(), &agentapi.ClockRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("Peer.Clock: %v", err)
	}
}

func TestParseTCP(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 3200004D0A:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`
	if err := parseTCP([]byte(table), map[uint64]tcpSocket{}); err == nil {
		t.Error("an address of five bytes was accepted")
	}
	const good = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 32004D0A:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 32004D0A:18EB 01004D0A:C833 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0 20 4 30 10 -1
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 13 1 0
`
	got := map[uint64]tcpSocket{}
	if err := parseTCP([]byte(good), got); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort("10.77.0.50:6379")
	if s := got[11]; !s.listens || s.local != local {
		t.Errorf("listener %+v", s)
	}
	if s := got[12]; s.listens || s.local != local || s.remote != netip.MustParseAddrPort("10.77.0.1:51251") {
		t.Errorf("connection %+v", s)
	}
	if s := got[13]; s.local != netip.MustParseAddrPort("[::1]:80") {
		t.Errorf("listener %+v", s)
	}
}

func FuzzParseTCP(f *testing.F) {
	f.Add([]byte("h\n0: 32004D0A:18EB 00000000:0000 0A 0 0 0 0 0 0 11\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { _ = parseTCP(b, map[uint64]tcpSocket{}) })
}
