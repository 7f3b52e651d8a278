//go:build linux

package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"migrate/e2e/cluster"
)

// socket is where agents tell of the points that they come to.
const socket = "/run/failpoints.sock"

// watch hears of all points that the agents come to, and can hold an agent at one of them.
type watch struct {
	mu        sync.Mutex
	listeners map[string]net.Listener // by host
	seen      map[string]int          // points of this move
	all       []string                // in the order in which they came
	wanted    string
	reached   chan struct{} // closed when an agent is held at the point that was wanted
	release   chan struct{}
	done      sync.WaitGroup
}

// begin forgets what was before, and has the next agent that comes to a point held there. With "" none is held.
func (w *watch) begin(point string) (reached <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen, w.all, w.wanted = map[string]int{}, nil, point
	w.reached, w.release = make(chan struct{}), make(chan struct{})
	return w.reached
}

// goOn lets the agent that is held go on.
func (w *watch) goOn() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted = ""
	select {
	case <-w.release:
	default:
		close(w.release)
	}
}

// points are those that have come since begin.
func (w *watch) points() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.all...)
}

// voted says whether the source has come to a vote since begin.
func (w *watch) voted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.all {
		if strings.HasPrefix(p, "source.report vote/") {
			return true
		}
	}
	return false
}

// listen hears the agent of a host, from each start of that host on.
func (w *watch) listen(ctx context.Context, host string) error {
	l, err := cluster.Hosts.Host(host).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("the failpoints of %s: %w", host, err)
	}
	w.mu.Lock()
	if w.listeners == nil {
		w.listeners = map[string]net.Listener{}
	}
	old := w.listeners[host]
	w.listeners[host] = l
	w.mu.Unlock()
	if old != nil {
		_ = old.Close() // of a boot that is over
	}
	w.done.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err == nil {
				w.done.Go(func() { w.serve(c) })
			}
		}
	})
	return nil
}

func (w *watch) close() {
	w.goOn()
	w.mu.Lock()
	for _, l := range w.listeners {
		_ = l.Close()
	}
	w.mu.Unlock()
	w.done.Wait()
}

func (w *watch) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	point, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return // the agent was killed
	}
	w.mu.Lock()
	point = numbered(w.seen, strings.TrimSpace(point))
	w.all = append(w.all, point)
	hold, release := point == w.wanted, w.release
	if hold {
		w.wanted = ""
		close(w.reached)
	}
	w.mu.Unlock()
	if hold {
		<-release
	}
}
