package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	agentapi "migrate/agent/api"
)

// info is an agent that says who it is, or hangs.
type info struct {
	agentapi.UnimplementedAgentServer
	hang     chan struct{}
	answered atomic.Int32
}

func (i *info) LocalInfo(ctx context.Context, _ *agentapi.LocalInfoRequest) (*agentapi.LocalInfoReply, error) {
	select {
	case <-i.hang:
		<-ctx.Done()
		return nil, ctx.Err()
	default:
		i.answered.Add(1)
		return &agentapi.LocalInfoReply{}, nil
	}
}

// TestNotify: the service manager hears that the agent is ready, that it is well for as long as it answers, and that it stops.
func TestNotify(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	const within = 300 * time.Millisecond
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(int(within.Microseconds())))
	agent := &info{hang: make(chan struct{})}
	socket, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	agentapi.RegisterAgentServer(server, agent)
	go func() { _ = server.Serve(socket) }()
	defer server.Stop()

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- served(ctx, filepath.Join(dir, "agent"), slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	hear := func() string {
		b := make([]byte, 64)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := hear(); got != want {
			t.Fatalf("heard %q, want %q", got, want)
		}
	}
	close(agent.hang)
	// Each word goes back to an answer. There is silence then, for as long as the manager waits, and longer.
	heard := int32(3)
	for {
		if err := l.SetReadDeadline(time.Now().Add(2 * within)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Read(make([]byte, 64)); err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Fatal(err)
			}
			break
		}
		heard++
	}
	if heard > agent.answered.Load() {
		t.Errorf("an agent that answered %d times is said to be well %d times", agent.answered.Load(), heard)
	}
	if err := l.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := hear(); got != "STOPPING=1" {
		t.Errorf("heard %q at the end", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchdogOfAnother(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", "1")
	if d := watchdogTime(); d != 0 {
		t.Errorf("%v, though another process is meant", d)
	}
	t.Setenv("WATCHDOG_PID", "")
	if d := watchdogTime(); d != time.Second {
		t.Error(d)
	}
}
