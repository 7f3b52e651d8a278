//go:build linux

package programs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// cacheClient has a counter and a value of its own, which it changes and reads again.
type cacheClient struct {
	name   string
	conn   net.Conn
	in     *bufio.Reader
	rounds atomic.Int64
	failed atomic.Bool
	err    error // when it has failed
}

// run goes on until stop is closed.
func (c *cacheClient) run(stop <-chan struct{}) {
	if c.err = c.ask("STORED", "set %s 0 0 1\r\n0", c.name); c.err != nil {
		c.failed.Store(true)
		return
	}
	for n := int64(1); ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		value := strings.Repeat(fmt.Sprintf("%s-%d.", c.name, n), 100+int(n%7)*1000)
		c.err = errors.Join(c.ask(fmt.Sprint(n), "incr %s 1", c.name), c.ask("STORED", "set %s-value 0 0 %d\r\n%s", c.name, len(value), value), c.get(value))
		if c.err != nil {
			c.failed.Store(true)
			return
		}
		c.rounds.Store(n)
	}
}

// ask makes a request and awaits its answer of one line.
func (c *cacheClient) ask(want, format string, args ...any) error {
	if _, err := fmt.Fprintf(c.conn, format+"\r\n", args...); err != nil {
		return err
	}
	got, err := c.in.ReadString('\n')
	if err == nil && got != want+"\r\n" {
		err = fmt.Errorf("%s: the answer to "+format[:4]+" is %q, want %q", c.name, got, want)
	}
	return err
}

func (c *cacheClient) get(value string) error {
	if err := c.ask(fmt.Sprintf("VALUE %s-value 0 %d", c.name, len(value)), "get %s-value", c.name); err != nil {
		return err
	}
	got := make([]byte, len(value)+len("\r\nEND\r\n"))
	if _, err := io.ReadFull(c.in, got); err != nil {
		return err
	}
	if string(got) != value+"\r\nEND\r\n" {
		return fmt.Errorf("%s: another value than was stored", c.name)
	}
	return nil
}

// TestHaproxy moves haproxy with two memcached behind it, to which it is connected on the loopback device of the workload, while
// clients store and read.
func TestHaproxy(t *testing.T) {
	s := begin(t, time.Minute)
	s.program("memcached")
	s.program("haproxy")
	const endpoint = "10.77.0.83:11000"
	s.Workload("haproxy", "10.77.0.83/24", "/bin/sh", s.Script("haproxy.sh"), s.disk("haproxy"))
	s.AwaitListener(endpoint)
	var clients []*cacheClient
	for i := range 6 {
		conn, err := cluster.Dialer(endpoint)(s.Ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		clients = append(clients, &cacheClient{name: fmt.Sprintf("c%d", i), conn: conn, in: bufio.NewReader(conn)})
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for _, c := range clients {
		running.Go(func() { c.run(stop) })
	}
	end := sync.OnceFunc(func() { close(stop); running.Wait() })
	defer end()
	s.caching(clients)
	for _, to := range []string{"host2", "host3"} {
		s.Move("haproxy", to, "--max-downtime", "5s")
		s.caching(clients)
	}
	end()
	for _, c := range clients {
		if c.err != nil {
			t.Errorf("%s after %d rounds: %v", c.name, c.rounds.Load(), c.err)
		}
	}
}

// caching waits until each client has done ten more rounds.
func (s *scope) caching(clients []*cacheClient) {
	s.Helper()
	for _, c := range clients {
		for want := c.rounds.Load() + 10; c.rounds.Load() < want; time.Sleep(5 * time.Millisecond) {
			if c.failed.Load() {
				s.Fatalf("%s after %d rounds: %v", c.name, c.rounds.Load(), c.err)
			}
			if s.Ctx.Err() != nil {
				s.Fatalf("%s stands at %d rounds", c.name, c.rounds.Load())
			}
		}
	}
}
