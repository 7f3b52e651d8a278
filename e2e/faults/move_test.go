//go:build linux

package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"migrate/e2e/cluster"
)

// move is a move in which something goes wrong.
type move struct {
	*program
	step     string
	fault    fault
	id       string
	before   workload
	now      workload
	outcome  string // as `migrate status` has it
	blackout time.Duration
}

// maxDowntime is what the moves ask for: time enough for a busy machine, and less than the second in which a source has to run again.
const maxDowntime = 500 * time.Millisecond

func (m *move) make() (err error) {
	if m.before, err = m.ps(m.r.Ctx); err != nil {
		return err
	}
	reached := m.r.watch.begin(m.step)
	defer m.r.watch.goOn()
	m.clients.Report()
	stood := watchStalls()
	defer stood.end()
	out, err := m.on.do(m.r.Ctx, "move", m.name, "--to", m.on.destination, "--detach", "--max-downtime", maxDowntime.String(), "--timeout", "30s")
	if err != nil {
		return err
	}
	m.id = strings.TrimSpace(out)
	bound := time.Second
	if m.step != "" {
		select {
		case <-reached:
		case <-time.After(20 * time.Second):
			return errors.New("the step was not reached")
		}
		began := time.Now()
		if err := m.fault.strike(m.r.Ctx, m.on); err != nil {
			return fmt.Errorf("%s: %w", m.fault.name, err)
		}
		bound += time.Since(began) // the agent was held for so long
		m.r.watch.goOn()
	}
	ended := m.ends(*lasts)
	voted, early := m.r.watch.voted(), m.clients.Report().Longest
	if err := m.mended(); err != nil {
		return err
	}
	if ended != nil {
		ended = m.ends(time.Minute)
	}
	m.blackout = max(early, m.clients.Report().Longest)
	if ended != nil {
		return fmt.Errorf("%w: it is %s, %+v", ended, m.outcome, m.now)
	}
	if over := early - stood.longest(); !voted && over > bound && !m.fault.election && !m.fault.holder && m.outcome == "source_running" {
		err = fmt.Errorf("before the vote a client has waited for %v", over)
	}
	return errors.Join(err, m.judge())
}

// mended puts things right again.
func (m *move) mended() error {
	if m.step == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(m.r.Ctx, time.Minute)
	defer cancel()
	if err := m.fault.mend(ctx, m.on); err != nil {
		return fmt.Errorf("after %s: %w", m.fault.name, err)
	}
	for _, host := range m.fault.reboots {
		if err := m.r.watch.listen(ctx, host(m.on)); err != nil {
			return err
		}
	}
	return nil
}

// rebooted says whether a host has lost what ran on it.
func (m *move) rebooted(host string) bool {
	return slices.ContainsFunc(m.fault.reboots, func(f func(roles) string) bool { return f(m.on) == host })
}

// ends waits for the end of the move, no longer than it may take: while a fault lasts the cluster need not answer.
func (m *move) ends(d time.Duration) error {
	ctx, cancel := context.WithTimeout(m.r.Ctx, d)
	defer cancel()
	return m.r.until("the end of the move", d, func() bool { return m.over(ctx) })
}

// over says whether the move has ended, and notes how.
func (m *move) over(ctx context.Context) bool {
	var err error
	if m.now, err = m.ps(ctx); err != nil {
		return false
	}
	out, err := m.on.do(ctx, "status", m.id, "-o", "json")
	if err != nil {
		return false
	}
	var s struct {
		Outcome string `json:"outcome"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return false
	}
	m.outcome = s.Outcome
	if m.now.State == "lost" {
		m.outcome = "lost" // with the host that it had moved to
	}
	if m.rebooted(m.now.Host) && m.now.State == "running" && !m.there(ctx) {
		return false // its host has not said so yet
	}
	return m.outcome == "lost" || s.Outcome == "needs_operator" || m.now.Migration == "" && m.now.State == "running" && s.Outcome != "undecided"
}

// there says whether the server runs where the cluster says.
func (m *move) there(ctx context.Context) bool {
	comm, err := cluster.Hosts.Host(m.now.Host).Exec(ctx, "cat", fmt.Sprintf("/proc/%d/comm", m.now.PID))
	return err == nil && comm == "redis-server\n"
}

// judge says whether what has become of the move is what may.
func (m *move) judge() error {
	switch m.outcome {
	case "moved", "source_running":
		where := map[string]string{"moved": m.on.destination, "source_running": m.on.source}[m.outcome]
		if m.now.Host != where {
			return fmt.Errorf("it is called %s, and runs on %s", m.outcome, m.now.Host)
		}
		return errors.Join(m.goesOn(10*time.Second), m.sound(), m.alone(where))
	case "lost":
		if !m.rebooted(m.on.source) && !m.rebooted(m.on.destination) {
			return errors.New("the program is lost, though its host was not")
		}
		return errors.Join(m.still(), m.alone(""))
	case "needs_operator":
		if !m.rebooted(m.on.destination) {
			return errors.New("an operator is asked for, though the destination has lost nothing")
		}
		err := m.still()
		_, resolved := m.on.do(m.r.Ctx, "resolve", m.id, "--run-at", m.on.source, "--fenced", m.on.destination, "--accept-loss")
		return errors.Join(err, resolved, m.r.until("the program to run at the source", 20*time.Second, func() bool {
			m.outcome = "needs_operator" // and was decided
			now, err := m.ps(m.r.Ctx)
			return err == nil && now.Migration == "" && now.State == "running" && now.Host == m.on.source
		}))
	}
	return fmt.Errorf("what has become of the move is %q: %+v", m.outcome, m.now)
}

// sound checks what the program and its clients have seen.
func (p *program) sound() error {
	_, strangers, err := p.stamps()
	if err != nil {
		return err
	}
	if strangers > 0 {
		err = fmt.Errorf("two copies have run: %d times one found a number that was not its own", strangers)
	}
	return errors.Join(err, errors.Join(p.clients.Report().Errors...))
}

// still checks that no copy runs.
func (p *program) still() error {
	first, _, err := p.stamps()
	if err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond) // that nothing happens is not announced
	if now, strangers, err := p.stamps(); err != nil || now != first || strangers > 0 {
		return fmt.Errorf("a copy runs: the stamps were %d and are %d, %d by strangers (%v)", first, now, strangers, err)
	}
	return nil
}

// alone checks that processes of the program are on one host only, or on none.
func (p *program) alone(host string) error {
	for _, h := range cluster.Hosts.Hosts() {
		want := 0
		if h.Name() == host {
			want = 1
		}
		n, last := -1, error(nil)
		err := p.r.until("copies to go", 5*time.Second, func() bool { // the source's ends after the move
			var out string
			out, last = h.Exec(p.r.Ctx, "sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null; true")
			n = strings.Count(out, "redis-server\n")
			return last == nil && n == want && strings.Count(out, "stamp\n") == want
		})
		if err != nil {
			return fmt.Errorf("%s has %d copies, want %d (%v): %w", h.Name(), n, want, last, err)
		}
	}
	return nil
}

// stalls finds out for how long the machine gave no time to a program that wanted to run: what clients wait for that reason is not the
// doing of a move.
type stalls struct {
	mu    sync.Mutex
	worst time.Duration
	stop  context.CancelFunc
	done  chan struct{}
}

func watchStalls() *stalls {
	ctx, cancel := context.WithCancel(context.Background())
	w := &stalls{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		const nap = time.Millisecond
		for ctx.Err() == nil {
			began := time.Now()
			time.Sleep(nap) // how late it ends is what is measured
			w.mu.Lock()
			w.worst = max(w.worst, time.Since(began)-nap)
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *stalls) end() { w.stop(); <-w.done }

func (w *stalls) longest() time.Duration { w.mu.Lock(); defer w.mu.Unlock(); return w.worst }
