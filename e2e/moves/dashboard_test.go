//go:build linux

package moves

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestDashboard moves a program by HTTP, through the door that the page uses, and hears of its end on the page's stream.
func TestDashboard(t *testing.T) {
	s := begin(t, 2*time.Minute)
	s.Workload("clicked", "", "sh", "-c", "while :; do sleep 0.1; done")
	host := cluster.Hosts.Host("host1")
	const address, file = "127.0.0.1:7410", "/run/dashboard-token"
	ctx, cancel := context.WithCancel(s.Ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = host.Exec(ctx, cluster.Migrate, "dashboard", "--listen", address, "--token-file", file)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	var token []byte
	for {
		var err error
		if token, err = host.ReadFile(s.Ctx, file); err == nil && len(token) > 0 {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ended:
			t.Fatal("the dashboard has ended")
		case <-s.Ctx.Done():
			t.Fatalf("no token: %v", err)
		}
	}
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return host.Dial(ctx, network, addr)
	}}}
	defer c.CloseIdleConnections()
	do := func(method, path, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		req.Header.Set("Content-Type", "application/json")
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Body.Close() })
		return r
	}
	stream := do("GET", "/api/stream?events=new", "")
	in := bufio.NewScanner(stream.Body)
	in.Buffer(nil, 8<<20)
	for in.Scan() && in.Text() != "event: history" { // what there is comes first
	}
	begun := do("POST", "/api/move", `{"workload":"clicked","to":"host2"}`)
	var move struct{ ID string }
	if err := json.NewDecoder(begun.Body).Decode(&move); err != nil || begun.StatusCode != http.StatusOK || move.ID == "" {
		t.Fatalf("%s, %v, %v", begun.Status, move, err)
	}
	for outcome := ""; outcome != "moved"; {
		if !in.Scan() {
			t.Fatalf("the stream ended before the move: %v", in.Err())
		}
		data, ok := strings.CutPrefix(in.Text(), "data: {")
		if !ok {
			continue
		}
		var e struct{ Kind, Migration, Outcome, Text string }
		if err := json.Unmarshal([]byte("{"+data), &e); err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		if e.Migration == move.ID && e.Kind == "move_ended" {
			if outcome = e.Outcome; outcome != "moved" {
				t.Fatal(e.Text)
			}
		}
	}
	var list []struct{ Name, Host string }
	if err := json.NewDecoder(do("GET", "/api/workloads", "").Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	for _, w := range list {
		if w.Name == "clicked" && w.Host != "host2" {
			t.Errorf("it is on %s", w.Host)
		}
	}
	if r := do("POST", "/api/move", `{"workload":"clicked","to":"host9"}`); r.StatusCode < 400 {
		t.Errorf("to a host that is not there: %s", r.Status)
	}
	if r := do("POST", "/api/cancel", `{"id":"`+move.ID+`"}`); r.StatusCode != http.StatusConflict {
		t.Errorf("cancelled when it was over: %s", r.Status)
	}
}
