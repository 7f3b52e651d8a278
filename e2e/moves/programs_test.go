//go:build linux

package moves

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/demo"
)

func redisCommand(t *testing.T) []string {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is not installed; `make deps` installs it")
	}
	return []string{bin, "--port", "6379", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", "/"}
}

// TestRedisUnderLoad moves a redis-server with 1 GiB of data around all hosts while clients write.
func TestRedisUnderLoad(t *testing.T) {
	s := begin(t, 5*time.Minute)
	const endpoint = "10.77.0.60:6379"
	s.Workload("redis", "10.77.0.60/24", redisCommand(t)...)
	s.AwaitListener(endpoint)
	const size = 1 << 30
	s.fill(endpoint, size)
	clients, err := demo.StartClients(s.Ctx, 8, cluster.Dialer(endpoint))
	if err != nil {
		t.Fatal(err)
	}
	defer clients.Stop()
	for _, to := range []string{"host2", "host3", "host1"} {
		clients.Report()
		s.Move("redis", to)
		before := clients.Report()
		s.progress(clients, before.Increments+100)
		r := clients.Report()
		if len(r.Errors) > 0 || r.Clients != 8 {
			t.Fatalf("after the move to %s: %v", to, r.Errors)
		}
		t.Logf("longest wait of a client: %v", before.Longest)
	}
	clients.Stop()
	if wrong, err := clients.Verify(s.Ctx, cluster.Dialer(endpoint)); err != nil || wrong != 0 {
		t.Fatalf("%d increments are wrong, %v", wrong, err)
	}
	s.checkFill(endpoint, size)
}

// progress returns when the clients have made that many increments, or fails when one of them ended.
func (s *scope) progress(c *demo.Clients, increments int64) {
	s.Helper()
	for {
		r := c.Report()
		switch {
		case len(r.Errors) > 0:
			s.Fatal(r.Errors)
		case r.Increments >= increments:
			return
		case s.Ctx.Err() != nil:
			s.Fatalf("the clients stand at %d increments, want %d", r.Increments, increments)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// block is how much one key of the fill holds.
const block = 512 << 10

// blockOf is the value of key i: different for each, and of no use to a compressor.
func blockOf(i int) []byte {
	b := make([]byte, block)
	x := uint64(i)*0x9e3779b97f4a7c15 + 1
	for k := 0; k+8 <= len(b); k += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for n := range 8 {
			b[k+n] = byte(x >> (8 * n))
		}
	}
	return b
}

// fill stores size bytes, as many keys over one connection.
func (s *scope) fill(endpoint string, size int) {
	s.Helper()
	c, err := cluster.Dialer(endpoint)(s.Ctx)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for i := range size / block {
		v := blockOf(i)
		req := append(fmt.Appendf(nil, "*3\r\n$3\r\nSET\r\n$%d\r\nfill:%06d\r\n$%d\r\n", len("fill:000000"), i, len(v)), v...)
		if _, err := c.Write(append(req, "\r\n"...)); err != nil {
			s.Fatal(err)
		}
		ok := make([]byte, 5)
		if _, err := io.ReadFull(c, ok); err != nil || string(ok) != "+OK\r\n" {
			s.Fatalf("SET %d answers %q, %v", i, ok, err)
		}
	}
}

func (s *scope) checkFill(endpoint string, size int) {
	s.Helper()
	c, err := cluster.Dialer(endpoint)(s.Ctx)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	head := fmt.Appendf(nil, "$%d\r\n", block)
	got := make([]byte, len(head)+block+2)
	for i := range size / block {
		if _, err := fmt.Fprintf(c, "*2\r\n$3\r\nGET\r\n$%d\r\nfill:%06d\r\n", len("fill:000000"), i); err != nil {
			s.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil {
			s.Fatalf("GET %d: %v", i, err)
		}
		if !bytes.Equal(got[len(head):len(head)+block], blockOf(i)) {
			s.Fatalf("key %d holds something else than was stored", i)
		}
	}
}

// TestGoServer moves a Go HTTP server whose goroutines are blocked everywhere, while keep-alive clients use it, each over the
// one connection that it has.
func TestGoServer(t *testing.T) {
	s := begin(t, 2*time.Minute)
	const endpoint = "10.77.0.61:8080"
	bin, err := cluster.Build(s.Ctx, "migrate/e2e/workloads/goserver", "goserver")
	if err != nil {
		t.Fatal(err)
	}
	s.Workload("goserver", "10.77.0.61/24", bin, "0.0.0.0:8080")
	s.AwaitListener(endpoint)
	var clients []*keepAlive
	for range 4 {
		clients = append(clients, s.keepAlive(endpoint))
	}
	check := s.DialHTTP(endpoint)
	for _, to := range []string{"host2", "host3", "host1"} {
		s.used(clients, 20)
		s.Move("goserver", to, "--max-downtime", "1s") // its threads wait for the processors of a busy machine
		if got, err := get(check, "/health"); err != nil || !strings.HasPrefix(got, "ok") {
			t.Fatalf("/health answers %q, %v", got, err)
		}
	}
	s.used(clients, 50) // the goroutines go on checking each other
	var counts int64
	for _, c := range clients {
		if err := c.stop(); err != nil {
			t.Error(err)
		}
		counts += c.counts.Load()
	}
	if got, err := get(check, "/count"); err != nil || got != strconv.FormatInt(counts+1, 10) {
		t.Errorf("/count answers %q, %v, after the clients have counted to %d", got, err, counts)
	}
	if got, err := get(check, "/health"); err != nil || !strings.HasPrefix(got, "ok") {
		t.Errorf("/health answers %q, %v", got, err)
	}
}

func get(c *cluster.HTTPConn, path string) (string, error) {
	var body strings.Builder
	err := c.Get(path, &body)
	return strings.TrimSpace(body.String()), err
}

// keepAlive is a client of the Go server that uses it all the time over one connection, until its first error.
type keepAlive struct {
	counts atomic.Int64 // that were answered
	ending atomic.Bool
	done   chan struct{}
	err    error // once done is closed
}

func (s *scope) keepAlive(endpoint string) *keepAlive {
	s.Helper()
	conn, c := s.DialHTTP(endpoint), &keepAlive{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for last := int64(0); !c.ending.Load(); {
			var text string
			if text, c.err = get(conn, "/count"); c.err != nil {
				return
			}
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || n <= last {
				c.err = fmt.Errorf("/count answers %q, %w, after %d", text, err, last)
				return
			}
			last = n
			c.counts.Add(1)
			if text, c.err = get(conn, "/slow?ms=3"); c.err != nil || text != "3" {
				c.err = fmt.Errorf("/slow answers %q, %w", text, c.err)
				return
			}
		}
	}()
	s.Cleanup(func() { _ = c.stop() }) // a test that got this far has asked
	return c
}

func (c *keepAlive) stop() error {
	c.ending.Store(true)
	<-c.done
	return c.err
}

// used returns when each client was answered n times more.
func (s *scope) used(clients []*keepAlive, n int64) {
	s.Helper()
	for _, c := range clients {
		from := c.counts.Load()
		s.until("a client", func() bool {
			select {
			case <-c.done:
				s.Fatal(c.err)
			default:
			}
			return c.counts.Load() >= from+n
		})
	}
}

// TestPython moves a Python program with threads, a child over pipes and an open file.
func TestPython(t *testing.T) {
	s := begin(t, 2*time.Minute)
	bin, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		t.Fatal(err)
	}
	var numbers strings.Builder
	for i := range 4000 {
		fmt.Fprintln(&numbers, i)
	}
	data := filepath.Join(cluster.Share, "numbers")
	if err := os.WriteFile(data, []byte(numbers.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Workload("python", "", bin, s.Script("threads.py"), "1000", data)
	s.Logs("python", "up\n")
	s.Move("python", "host2")
	s.Move("python", "host3")
	s.Logs("python", "done 4000\n")
}

// TestShellPipeline moves a pipeline of several processes in one session.
func TestShellPipeline(t *testing.T) {
	s := begin(t, 2*time.Minute)
	s.Workload("pipeline", "", "/bin/bash", s.Script("pipeline.sh"), "300")
	s.Logs("pipeline", "up\n")
	s.Move("pipeline", "host3", "--max-downtime", "500ms") // each of its processes costs some milliseconds
	s.Logs("pipeline", "sum 135450 lines 300\n")
}
