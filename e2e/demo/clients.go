// Package demo is the live demonstration: a cluster of virtual hosts, a real server with clients that can neither
// retry nor reconnect, and moves of that server from host to host under them. The end-to-end tests use its clients.
package demo

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// Dial opens a connection to the server, from wherever the clients stand.
type Dial func(ctx context.Context) (net.Conn, error)

// Clients is a set of connections to one server, each used by a client that increments a counter of its own, checks
// that each reply is the one before plus one, and reads back what it wrote. A client never retries and never
// reconnects: its first error ends it.
type Clients struct {
	mu     sync.Mutex
	all    []*client
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Report is what clients saw in a span of time.
type Report struct {
	Clients    int           // connections still in use
	Increments int64         // acknowledged since the start
	Reads      int64         // verified since the start
	Errors     []error       // what ended clients; empty if all went well
	Longest    time.Duration // longest wait of any client for an answer since the last Report
}

type client struct {
	key  string
	conn net.Conn

	mu         sync.Mutex
	increments int64
	reads      int64
	longest    time.Duration
	waiting    time.Time // since when it waits for an answer; zero when it does not
	err        error
}

// pace is the pause of a client between two requests.
const pace = time.Millisecond

// StartClients connects n clients and lets them work until Stop or the end of ctx.
func StartClients(ctx context.Context, n int, dial Dial) (*Clients, error) {
	ctx, cancel := context.WithCancel(ctx)
	cs := &Clients{cancel: cancel}
	for i := range n {
		conn, err := dial(ctx)
		if err != nil {
			cs.Stop()
			return nil, fmt.Errorf("client %d: %w", i, err)
		}
		c := &client{key: fmt.Sprintf("counter:%d", i), conn: conn}
		cs.all = append(cs.all, c)
		cs.wg.Go(func() { c.work(ctx) })
	}
	return cs, nil
}

// Report sums up what the clients saw, and starts the measure of the longest wait anew.
func (cs *Clients) Report() Report {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var r Report
	for _, c := range cs.all {
		c.mu.Lock()
		r.Increments += c.increments
		r.Reads += c.reads
		longest := c.longest
		if !c.waiting.IsZero() {
			longest = max(longest, time.Since(c.waiting))
		}
		r.Longest = max(r.Longest, longest)
		c.longest = 0
		if c.err != nil {
			r.Errors = append(r.Errors, fmt.Errorf("%s: %w", c.key, c.err))
		} else {
			r.Clients++
		}
		c.mu.Unlock()
	}
	return r
}

// Verify asks the server, over a new connection, for every counter and compares it with the client's ledger. Call it
// after Stop. It returns the number of increments that were lost (negative: repeated), summed over the counters as
// absolute values.
func (cs *Clients) Verify(ctx context.Context, dial Dial) (wrong int64, err error) {
	conn, err := dial(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	for _, c := range cs.all {
		got, err := exchange(conn, r, "GET", c.key)
		if err != nil {
			return wrong, fmt.Errorf("reading %s: %w", c.key, err)
		}
		v, err := strconv.ParseInt(got.text, 10, 64)
		if err != nil {
			return wrong, fmt.Errorf("%s holds %q", c.key, got.text)
		}
		if d := c.increments - v; d < 0 {
			wrong -= d
		} else {
			wrong += d
		}
	}
	return wrong, nil
}

// Stop ends the clients after the request that each is waiting for, and closes their connections.
func (cs *Clients) Stop() {
	cs.cancel()
	cs.wg.Wait()
	for _, c := range cs.all {
		_ = c.conn.Close()
	}
}

func (c *client) work(ctx context.Context) {
	r := bufio.NewReader(c.conn)
	for i := 0; ctx.Err() == nil; i++ {
		if err := c.step(r, i); err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

// step is one increment and, every fourth time, a write with a verified read.
func (c *client) step(r *bufio.Reader, i int) error {
	got, err := c.ask(r, "INCR", c.key)
	if err != nil {
		return err
	}
	if want := c.increments + 1; got.number != want {
		return fmt.Errorf("INCR answers %d, want %d", got.number, want)
	}
	c.mu.Lock()
	c.increments++
	c.mu.Unlock()
	if i%4 != 0 {
		return nil
	}
	key, value := c.key+":value", fmt.Sprintf("value %d of %s", i, c.key)
	if _, err := c.ask(r, "SET", key, value); err != nil {
		return err
	}
	if got, err = c.ask(r, "GET", key); err != nil {
		return err
	}
	if got.text != value {
		return fmt.Errorf("GET answers %q, want %q", got.text, value)
	}
	c.mu.Lock()
	c.reads++
	c.mu.Unlock()
	return nil
}

// ask sends a command and waits for the answer, however long it takes.
func (c *client) ask(r *bufio.Reader, args ...string) (reply, error) {
	start := time.Now()
	c.mu.Lock()
	c.waiting = start
	c.mu.Unlock()
	got, err := exchange(c.conn, r, args...)
	c.mu.Lock()
	c.waiting = time.Time{}
	c.longest = max(c.longest, time.Since(start))
	c.mu.Unlock()
	return got, err
}

func exchange(conn net.Conn, r *bufio.Reader, args ...string) (reply, error) {
	if _, err := conn.Write(appendCommand(nil, args...)); err != nil {
		return reply{}, err
	}
	return readReply(r)
}
