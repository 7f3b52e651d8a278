//go:build linux

package moves

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/demo"
	"migrate/e2e/lab"
)

// The tests of this file do to hosts what happens to hosts, and put them right again. Their file comes last because the
// other tests use the same cluster.

// slow makes a copy of busyMiB last some 15 s, so that there is time for something to happen.
var slow = []string{"--bandwidth", "4MiB"}

const busyMiB = 64

// busyServer is a redis-server on host1 with data and with clients that write. They can neither retry nor reconnect.
type busyServer struct {
	s        *scope
	name     string
	endpoint string
	clients  *demo.Clients
	before   instance
	machine  *stallWatch
	starved  time.Duration // what queued has seen so far
}

func (s *scope) busy(name, ip string) *busyServer {
	s.Helper()
	g := &busyServer{s: s, name: name, endpoint: ip + ":6379"}
	s.Workload(name, ip+"/24", redisCommand(s.T)...)
	s.AwaitListener(g.endpoint)
	s.fill(g.endpoint, busyMiB<<20)
	var err error
	if g.clients, err = demo.StartClients(s.Ctx, 4, cluster.Dialer(g.endpoint)); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(g.clients.Stop)
	g.machine = watchStalls(s.T)
	g.before = s.ps(name)
	g.goesOn()
	return g
}

// queued is how long the server has waited for a processor since the last look (proc_pid_schedstat(5)); one that is stopped does
// not wait for that. Of a server that has moved away it is not known.
func (g *busyServer) queued() (since time.Duration) {
	g.s.Helper()
	text, err := cluster.Hosts.Host(g.before.Host).Exec(g.s.Ctx, "cat", "/proc/"+strconv.Itoa(g.before.PID)+"/schedstat")
	if err != nil {
		return 0
	}
	var ran, queued int64
	if _, err := fmt.Sscan(text, &ran, &queued); err != nil {
		g.s.Fatalf("schedstat of pid %d: %v in %q", g.before.PID, err, text)
	}
	since, g.starved = time.Duration(queued)-g.starved, time.Duration(queued)
	return since
}

// migration is what `migrate status -o json` says of one.
type migration struct {
	ID        string `json:"id"`
	State     string `json:"state"`
	Workload  string `json:"workload"`
	Outcome   string `json:"outcome"`
	Error     string `json:"error"`
	PagesSent uint64 `json:"pages_sent"`
}

// slowMove begins a move that takes long, and returns its id when pages are on their way.
func (g *busyServer) slowMove(to string, flags ...string) string {
	g.s.Helper()
	args := append([]string{cluster.Migrate, "move", g.name, "--to", to, "--detach"}, slow...)
	return g.awaitCopy(strings.TrimSpace(g.s.On("host1", append(args, flags...)...)))
}

// awaitCopy returns the id of the server's move when pages are on their way. `migrate watch` would tell, but prints for people.
func (g *busyServer) awaitCopy(id string) string {
	g.s.Helper()
	for {
		var list []migration
		if err := json.Unmarshal([]byte(g.s.On("host1", cluster.Migrate, "history", "-o", "json")), &list); err != nil {
			g.s.Fatal(err)
		}
		for _, m := range list {
			if m.Workload != g.name || (id != "" && m.ID != id) {
				continue
			}
			if m.Outcome == "source_running" || m.Outcome == "moved" {
				g.s.Fatalf("the move ended before anything could happen to it: %+v", m)
			}
			if m.PagesSent > 0 {
				return m.ID
			}
		}
		select {
		case <-g.s.Ctx.Done():
			g.s.Fatalf("no copy of %s has begun: %+v", g.name, list)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ended waits for the end of a move and returns it.
func (g *busyServer) ended(id string) migration {
	g.s.Helper()
	_, err := cluster.Hosts.Host("host1").Exec(g.s.Ctx, cluster.Migrate, "watch", id)
	var exit *lab.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.s.Fatal(err)
	}
	var m migration
	if err := json.Unmarshal([]byte(g.s.On("host1", cluster.Migrate, "status", id, "-o", "json")), &m); err != nil {
		g.s.Fatal(err)
	}
	return m
}

// stays waits for the end of a move and checks that the server runs on where it was, with its connections, and that no client
// has waited for long. The move's error must hold one of the reasons. The workload may still be called moving: as long as
// the other side has not said that its copy is gone, no other move may begin.
func (g *busyServer) stays(id string, reasons ...string) {
	g.s.Helper()
	m := g.ended(id)
	if m.Outcome != "source_running" || !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(m.Error, r) }) {
		g.s.Errorf("the move ended as %+v, want source_running and an error with one of %q", m, reasons)
	}
	g.goesOn()
	if now := g.s.ps(g.name); now.Host != g.before.Host || now.PID != g.before.PID || now.Epoch != g.before.Epoch {
		g.s.Errorf("%s was %+v and is %+v", g.name, g.before, now)
	}
	g.s.runs(g.before.Host, g.before.PID)
}

// gone lists the words by which an error may call a host that is lost.
func gone(host string) []string { return []string{host, cluster.Hosts.Host(host).Addr().String()} }

// goesOn checks that every client gets on, and that none has waited for a second or more since the last look.
func (g *busyServer) goesOn() {
	g.s.Helper()
	r := g.clients.Report()
	want, longest := r.Increments+100, r.Longest
	for r.Increments < want && len(r.Errors) == 0 {
		select {
		case <-g.s.Ctx.Done():
			g.s.Fatalf("the clients stand at %d increments, want %d", r.Increments, want)
		case <-time.After(5 * time.Millisecond): // what they do is counted, not announced
		}
		r = g.clients.Report()
		longest = max(longest, r.Longest)
	}
	if len(r.Errors) > 0 || r.Clients != 4 {
		g.s.Fatalf("%d of 4 clients are left: %v", r.Clients, r.Errors)
	}
	if stall, queued := g.machine.take(), g.queued(); longest-stall-queued >= time.Second {
		g.s.Errorf("a client has waited for %v, the server for %v for a processor, and the machine stood still for %v", longest, queued, stall)
	}
}

// stallWatch finds out for how long this machine gave a program no time that wanted to run: what clients wait for that
// reason is not the doing of a move.
type stallWatch struct {
	mu    sync.Mutex
	worst time.Duration
}

func watchStalls(t *testing.T) *stallWatch {
	w := &stallWatch{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		const nap = time.Millisecond
		for ctx.Err() == nil {
			began := time.Now()
			time.Sleep(nap) // how late it ends is what is measured
			late := time.Since(began) - nap
			w.mu.Lock()
			w.worst = max(w.worst, late)
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// take returns the longest stall since the last call.
func (w *stallWatch) take() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.worst
	w.worst = 0
	return d
}

// exits checks the exit code of a command.
func (s *scope) exits(code int, err error) {
	s.Helper()
	var exit *lab.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == code, err == nil && code == 0:
	default:
		s.Errorf("the command ended with %v, want exit code %d", err, code)
	}
}

// repaired puts the cluster right after a test, and waits until it is: all hosts are up, and the server's move is closed.
func (g *busyServer) repaired(what func(ctx context.Context) error) {
	g.s.Helper()
	g.s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := what(ctx); err != nil {
			g.s.Errorf("putting the cluster right: %v", err)
		}
		if err := cluster.AwaitNodes(ctx, 3); err != nil {
			g.s.Errorf("the cluster has not come back: %v", err)
		}
		for late := (&scope{&cluster.Scope{T: g.s.T, Ctx: ctx}}); late.ps(g.name).Migration != ""; {
			select {
			case <-ctx.Done():
				g.s.Errorf("%s is still called moving: %+v", g.name, late.ps(g.name))
				return
			case <-time.After(100 * time.Millisecond): // the last acknowledgement is not announced to anybody
			}
		}
	})
}

// TestAgentDiesDuringCopy kills the destination's agent.
func TestAgentDiesDuringCopy(t *testing.T) {
	s := begin(t, 2*time.Minute)
	g := s.busy("widowed", "10.77.0.76")
	id := g.slowMove("host2")
	g.repaired(func(ctx context.Context) error { return cluster.Hosts.Host("host2").StartAgent(ctx) })
	if err := cluster.Hosts.Host("host2").SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	g.stays(id, gone("host2")...)
}

// TestSourceAgentDiesDuringCopy kills the source's agent: the program runs on without it, and the next agent finds it.
func TestSourceAgentDiesDuringCopy(t *testing.T) {
	s := begin(t, 2*time.Minute)
	g := s.busy("orphaned", "10.77.0.85")
	id := g.slowMove("host2")
	started := false
	g.repaired(func(ctx context.Context) error {
		if started {
			return nil
		}
		return cluster.Hosts.Host("host1").StartAgent(ctx)
	})
	if err := cluster.Hosts.Host("host1").SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	g.goesOn()
	s.runs("host1", g.before.PID)
	started = true
	if err := cluster.Hosts.Host("host1").StartAgent(s.Ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AwaitNodes(s.Ctx, 3); err != nil {
		t.Fatal(err)
	}
	g.stays(id, gone("host1")...)
}

// TestLinkDiesDuringCopy cuts the two hosts off from each other; the third one still reaches both.
func TestLinkDiesDuringCopy(t *testing.T) {
	for _, plane := range []lab.Plane{lab.PlanePages, lab.PlaneAll} {
		name := string(plane)
		if plane == lab.PlaneAll {
			name = "all"
		}
		t.Run(name, func(t *testing.T) {
			s := begin(t, 2*time.Minute)
			g := s.busy("cut-"+name, map[string]string{"pages": "10.77.0.77", "all": "10.77.0.78"}[name])
			id := g.slowMove("host2")
			g.repaired(func(ctx context.Context) error { return cluster.Hosts.Heal(ctx) })
			if err := cluster.Hosts.CutPair(s.Ctx, "host1", "host2", false, plane); err != nil {
				t.Fatal(err)
			}
			g.stays(id, gone("host2")...)
		})
	}
}

// TestDestinationCutOff cuts the destination off from the whole cluster during the copy.
func TestDestinationCutOff(t *testing.T) {
	s := begin(t, 2*time.Minute)
	g := s.busy("cut-off", "10.77.0.79")
	id := g.slowMove("host3")
	g.repaired(func(ctx context.Context) error { return cluster.Hosts.Heal(ctx) })
	if err := cluster.Hosts.Cut(s.Ctx, "host3"); err != nil {
		t.Fatal(err)
	}
	g.stays(id, gone("host3")...)
}

// TestDestinationDown refuses a host that cannot be reached, and one whose agent does not answer.
func TestDestinationDown(t *testing.T) {
	for name, c := range map[string]struct {
		down func(context.Context, *lab.Host) error
		up   func(context.Context, *lab.Host) error
	}{
		"cut":     {func(ctx context.Context, h *lab.Host) error { return cluster.Hosts.Cut(ctx, h.Name()) }, func(ctx context.Context, _ *lab.Host) error { return cluster.Hosts.Heal(ctx) }},
		"stalled": {func(ctx context.Context, h *lab.Host) error { return h.Stall(ctx) }, func(ctx context.Context, h *lab.Host) error { return h.Unstall(ctx) }},
		"killed":  {func(ctx context.Context, h *lab.Host) error { return h.SignalAgent(ctx, syscall.SIGKILL) }, func(ctx context.Context, h *lab.Host) error { return h.StartAgent(ctx) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, 2*time.Minute)
			g := s.busy("homely-"+name, map[string]string{"cut": "10.77.0.80", "stalled": "10.77.0.81", "killed": "10.77.0.82"}[name])
			g.repaired(func(ctx context.Context) error { return c.up(ctx, cluster.Hosts.Host("host3")) })
			if err := c.down(s.Ctx, cluster.Hosts.Host("host3")); err != nil {
				t.Fatal(err)
			}
			s.refused([]string{g.name}, "host3", "host3")
			g.goesOn()
			s.unmoved(g.before)
		})
	}
}

// TestTroubleLeavesNothing looks for what moves that failed might have left on the hosts: the tests before it have made many.
func TestTroubleLeavesNothing(t *testing.T) {
	s := begin(t, time.Minute)
	for _, h := range cluster.Hosts.Hosts() {
		list := strings.Fields(s.On(h.Name(), "sh", "-c", `for p in /proc/[0-9]*; do [ -r "$p/comm" ] && cat "$p/comm"; done | sort | uniq`))
		for _, comm := range []string{"redis-server", "goserver", "python3"} {
			if slices.Contains(list, comm) {
				t.Errorf("%s still runs %s", h.Name(), comm)
			}
		}
	}
}
