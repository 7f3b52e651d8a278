//go:build linux

package moves

import (
	"syscall"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/demo"
)

// TestFiftyMoves moves one workload back and forth; the fiftieth move is like the first.
func TestFiftyMoves(t *testing.T) {
	s := begin(t, 5*time.Minute)
	const endpoint = "10.77.0.62:6379"
	s.Workload("shuttle", "10.77.0.62/24", redisCommand(t)...)
	s.AwaitListener(endpoint)
	clients, err := demo.StartClients(s.Ctx, 8, cluster.Dialer(endpoint))
	if err != nil {
		t.Fatal(err)
	}
	defer clients.Stop()
	for i := range 50 {
		to := "host2"
		if i%2 == 1 {
			to = "host1"
		}
		r := s.Move("shuttle", to)
		if want := uint64(i + 2); r.Epoch != want {
			t.Errorf("move %d: epoch %d, want %d", i, r.Epoch, want)
		}
		s.progress(clients, clients.Report().Increments+20)
	}
	clients.Stop()
	if wrong, err := clients.Verify(s.Ctx, cluster.Dialer(endpoint)); err != nil || wrong != 0 {
		t.Fatalf("%d increments are wrong, %v", wrong, err)
	}
}

// TestNameOfAStopped starts a workload under the name of one that was stopped, and moves it to where that one was.
func TestNameOfAStopped(t *testing.T) {
	for range 2 {
		t.Run("round", func(t *testing.T) {
			s := begin(t, time.Minute)
			s.Workload("again", "", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
			s.Move("again", "host2")
		})
	}
}

// TestAgentDiesAfterACopyHasGoneOn kills an agent that still has the record of a copy which came and has gone on to another host. The
// next one keeps nothing of it.
func TestAgentDiesAfterACopyHasGoneOn(t *testing.T) {
	s := begin(t, time.Minute)
	first, between, last := s.roles() // the leader stays
	s.Run("traveller", []string{"--host", first}, "sleep", "1000")
	s.Move("traveller", between)
	s.Move("traveller", last)
	if s.On(between, "ls", records) == "" {
		t.Fatal("the records are gone by now: the test shows nothing")
	}
	host := cluster.Hosts.Host(between)
	if err := host.SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := host.StartAgent(s.Ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AwaitNodes(s.Ctx, 3); err != nil {
		t.Fatal(err)
	}
	s.noRecords(between)
	if now := s.ps("traveller"); now.Host != last || now.State != "running" {
		t.Errorf("traveller is %+v", now)
	}
}
