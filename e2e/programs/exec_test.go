//go:build linux

package programs

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestExec: a program that executes another while it is being copied stays where it is, and is moved the next time.
func TestExec(t *testing.T) {
	s := begin(t, time.Minute)
	s.Workload("exec", "", "/bin/bash", s.Script("again.sh"), "1")
	s.Logs("exec", "at 3\n")
	id := strings.TrimSpace(s.On("host1", cluster.Migrate, "move", "exec", "--to", "host2", "--detach", "--bandwidth", "128KiB"))
	var m struct {
		PID       int    `json:"pid"`
		PagesSent uint64 `json:"pages_sent"`
		State     string `json:"state"`
	}
	for m.PagesSent == 0 || m.PID == 0 {
		if err := json.Unmarshal([]byte(s.On("host1", cluster.Migrate, "status", id, "-o", "json")), &m); err != nil {
			t.Fatal(err)
		}
		if s.Ctx.Err() != nil || m.State != "preparing" && m.State != "copying" {
			t.Fatalf("no copy has been seen: %+v", m)
		}
	}
	s.On("host1", "kill", "-USR1", strconv.Itoa(m.PID))
	if out := s.Fails(1, "host1", cluster.Migrate, "watch", id); !strings.Contains(out, "execve") {
		t.Errorf("the move ended with %s", out)
	}
	now := lastNumber(s.Logs("exec", "at "), "at")
	s.Logs("exec", fmt.Sprintf("at %d\n", now+3))
	s.Move("exec", "host2", "--max-downtime", "5s")
	now = lastNumber(s.Logs("exec", "at "), "at")
	s.Logs("exec", fmt.Sprintf("at %d\n", now+3))
}
