package main

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
)

// moving is a cluster with one migration, which ends when it is cancelled.
type moving struct {
	clusterapi.UnimplementedClusterServer
	begun     context.CancelFunc // called within Move: Ctrl-C while the call is on its way
	failures  atomic.Int32       // of Cancel, before one is answered
	refuse    bool
	cancelled chan struct{}
}

func (c *moving) Move(ctx context.Context, _ *clusterapi.MoveRequest) (*clusterapi.MoveReply, error) {
	c.begun()
	return &clusterapi.MoveReply{Id: "m-1"}, ctx.Err()
}

func (c *moving) Cancel(context.Context, *clusterapi.CancelRequest) (*clusterapi.CancelReply, error) {
	if c.failures.Add(-1) >= 0 {
		return nil, status.Error(codes.Unavailable, "no leader")
	}
	defer close(c.cancelled)
	if c.refuse {
		return nil, status.Error(codes.FailedPrecondition, "past its commit")
	}
	return &clusterapi.CancelReply{}, nil
}

func (c *moving) WatchMigration(_ *clusterapi.WatchMigrationRequest, out grpc.ServerStreamingServer[clusterapi.MigrationEvent]) error {
	<-c.cancelled
	m := &clusterapi.Migration{Id: "m-1", Outcome: clusterapi.Outcome_OUTCOME_SOURCE_RUNNING, Final: true, Error: "cancelled"}
	if c.refuse {
		m.Outcome = clusterapi.Outcome_OUTCOME_MOVED
	}
	return out.Send(&clusterapi.MigrationEvent{Migration: m})
}

// TestMoveInterrupted: Ctrl-C during the call that begins a move cancels the move that has begun.
func TestMoveInterrupted(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		c := &moving{begun: cancel, refuse: refuse, cancelled: make(chan struct{})}
		c.failures.Store(2)
		path := filepath.Join(t.TempDir(), "agent.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		clusterapi.RegisterClusterServer(s, c)
		go func() { _ = s.Serve(l) }()
		var said strings.Builder
		code := run(ctx, []string{"--socket", path, "move", "w", "--to", "host2"}, strings.NewReader(""), io.Discard, &said)
		s.Stop()
		if want := map[bool]int{false: 1, true: 0}[refuse]; code != want {
			t.Errorf("refused %v: exit code %d, want %d: %s", refuse, code, want, said.String())
		}
		if refuse != strings.Contains(said.String(), "was not cancelled: past its commit") {
			t.Errorf("refused %v: it says %q", refuse, said.String())
		}
	}
}
