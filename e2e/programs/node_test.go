//go:build linux

package programs

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// nodeState is what e2e/workloads/scripts/threads.js answers.
type nodeState struct {
	Wrong []string
	// How often each of its parts has done something.
	Ticks, Answers, Reads, Lines, Requests, Counted, Asked int64
}

// TestNode moves a program of node.js with timers, worker threads, a child and a client.
func TestNode(t *testing.T) {
	s := begin(t, 2*time.Minute)
	const endpoint = "10.77.0.82:8080"
	s.Workload("node", "10.77.0.82/24", s.program("node"), s.Script("threads.js"))
	s.AwaitListener(endpoint)
	client := s.DialHTTP(endpoint)
	state := func() (st nodeState) {
		t.Helper()
		var text bytes.Buffer
		if err := client.Get("/state", &text); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text.Bytes(), &st); err != nil || len(st.Wrong) > 0 {
			t.Fatalf("%v, wrong: %q", err, st.Wrong)
		}
		return st
	}
	// All of its parts go on.
	progress := func(from nodeState) {
		t.Helper()
		const few = 5
		for {
			now := state()
			if now.Requests <= from.Requests {
				t.Fatalf("%d requests after %d", now.Requests, from.Requests)
			}
			if now.Ticks >= from.Ticks+few && now.Answers >= from.Answers+few && now.Reads >= from.Reads+few &&
				now.Lines >= from.Lines+few && now.Counted >= from.Counted+few && now.Asked >= from.Asked+few {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	progress(state())
	for _, to := range []string{"host2", "host3"} {
		before := state()
		s.Move("node", to, "--max-downtime", "5s")
		progress(before)
		progress(state())
	}
}
