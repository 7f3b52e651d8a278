//go:build linux

package moves

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// eager writes 40,000 pages of random contents for each second of processor time that it gets: twenty times what the link carries, unless it is
// slowed down. Its memory is so small that a round takes a second.
const eager = `
import mmap, os, random, sys, time
pages = 2048
m = mmap.mmap(-1, pages * 4096)
m[:] = os.urandom(len(m))
print("ready", flush=True)
due = time.process_time()
while True:
    if time.process_time() < due:
        continue
    due += 1 / 40000
    at = random.randrange(pages) * 4096
    m[at:at + 8] = random.randbytes(8)
`

// eagerFlags are those of moves that such a program would not come through by itself.
var eagerFlags = []string{"--bandwidth", "8MiB", "--max-downtime", "300ms", "--compress", "off"}

// eagerly starts such a program.
func (s *scope) eagerly(name string) instance {
	s.Helper()
	s.Workload(name, "", "python3", "-c", eager)
	s.Logs(name, "ready")
	return s.ps(name)
}

// throttled is what status says of a move in this matter.
type throttled struct {
	Outcome         string `json:"outcome"`
	Copying         string `json:"copying"`
	ThrottlePercent int    `json:"throttle_percent"`
}

// awaitThrottle returns once the move's status is as wanted.
func (s *scope) awaitThrottle(id string, is func(throttled) bool) throttled {
	s.Helper()
	for {
		var m throttled
		if err := json.Unmarshal([]byte(s.On("host2", cluster.Migrate, "status", id, "-o", "json")), &m); err != nil {
			s.Fatal(err)
		}
		if is(m) {
			return m
		}
		select {
		case <-s.Ctx.Done():
			s.Fatalf("the move is %+v", m)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// limits are the cgroups of a process, among which that of a limit would be.
func (s *scope) limits(host string, pid int) string {
	s.Helper()
	return s.On(host, "cat", "/proc/"+strconv.Itoa(pid)+"/cgroup")
}

// staysAs waits until the cluster no longer calls a program moving, and checks that it is as it was, with all its processor time.
func (s *scope) staysAs(before instance, places string) {
	s.Helper()
	if at := s.limits("host1", before.PID); at != places {
		s.Errorf("the program is in these cgroups:\n%s\nit was in these:\n%s", at, places)
	}
	for s.psOn("host2", before.Name).Migration != "" {
		select {
		case <-s.Ctx.Done():
			s.Fatalf("%s is still called moving", before.Name)
		case <-time.After(50 * time.Millisecond): // the last acknowledgement is not announced to anybody
		}
	}
	s.unmoved(before)
}

const limitName = "migrate-limit-"

// slowedDown begins a move that slows its program down, but not by enough, and returns when it has.
func (s *scope) slowedDown(name string, before instance) (id string) {
	s.Helper()
	args := append([]string{cluster.Migrate, "move", name, "--to", "host2", "--detach", "--throttle-max", "30"}, eagerFlags...)
	id = strings.TrimSpace(s.On("host1", args...))
	s.awaitThrottle(id, func(m throttled) bool { return m.ThrottlePercent >= 20 })
	if at := s.limits("host1", before.PID); !strings.Contains(at, limitName) {
		s.Errorf("the program is in these cgroups:\n%s", at)
	}
	return id
}

// TestThrottledMove moves a program that writes faster than the link carries.
func TestThrottledMove(t *testing.T) {
	s := begin(t, 4*time.Minute)
	before := s.eagerly("eager")
	places := s.limits("host1", before.PID)
	began := time.Now()
	r := s.Move("eager", "host2", append([]string{"--throttle-max", "99"}, eagerFlags...)...)
	m := s.awaitThrottle(r.ID, func(m throttled) bool { return m.Outcome == "moved" })
	t.Logf("slowed down by %d %%, moved after %v; its cgroups were\n%s", m.ThrottlePercent, time.Since(began), places)
	if m.ThrottlePercent < 20 || m.ThrottlePercent > 99 || !strings.Contains(m.Copying, "slowed down by") {
		t.Errorf("the move was %+v", m)
	}
	if at := s.limits("host2", s.ps("eager").PID); strings.Contains(at, limitName) {
		t.Errorf("at the destination the program is in these cgroups:\n%s", at)
	}
}

// TestThrottleIsTakenBack lets go a program that was slowed down: by an operator who allows it no longer, and by the end of the move.
func TestThrottleIsTakenBack(t *testing.T) {
	s := begin(t, 3*time.Minute)
	before := s.eagerly("let-go")
	places := s.limits("host1", before.PID)
	id := s.slowedDown("let-go", before)
	s.On("host3", cluster.Migrate, "set", id, "--throttle-max", "0")
	s.awaitThrottle(id, func(m throttled) bool { return m.ThrottlePercent == 0 })
	if at := s.limits("host1", before.PID); at != places {
		t.Errorf("the program is in these cgroups:\n%s\nit was in these:\n%s", at, places)
	}
	s.On("host3", cluster.Migrate, "set", id, "--throttle-max", "50")
	s.awaitThrottle(id, func(m throttled) bool { return m.ThrottlePercent >= 20 })
	s.On("host1", cluster.Migrate, "cancel", id)
	s.awaitThrottle(id, func(m throttled) bool { return m.Outcome == "source_running" })
	s.staysAs(before, places)
}

// TestAgentDiesWhileThrottled kills the agent of a program that it has slowed down. The next agent lets it go.
func TestAgentDiesWhileThrottled(t *testing.T) {
	s := begin(t, 3*time.Minute)
	before := s.eagerly("left-slow")
	places := s.limits("host1", before.PID)
	id := s.slowedDown("left-slow", before)
	host := cluster.Hosts.Host("host1")
	started := false
	s.Cleanup(func() {
		if !started {
			if err := host.StartAgent(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	if err := host.SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if at := s.limits("host1", before.PID); !strings.Contains(at, limitName) {
		t.Errorf("before the next agent is there, the program is in these cgroups:\n%s", at)
	}
	started = true
	if err := host.StartAgent(s.Ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AwaitNodes(s.Ctx, 3); err != nil {
		t.Fatal(err)
	}
	s.awaitThrottle(id, func(m throttled) bool { return m.Outcome == "source_running" })
	s.staysAs(before, places)
}
