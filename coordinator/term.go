package coordinator

import (
	"context"
	"sync"
	"time"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
)

// term is one leadership of this server. What it holds in memory only is what may be lost with it.
type term struct {
	s   *Server
	ctx context.Context // ends with the leadership
	wg  sync.WaitGroup

	mu       sync.Mutex
	began    time.Time
	nodes    map[string]heard
	sessions map[string]*session
	errands  map[string]bool // workloads that are being started, stopped or drained
	drains   drains
	changed  chan struct{} // closed and replaced when a session's view has changed
}

// heard is what a node said last.
type heard struct {
	at     time.Time
	bootID string
	free   uint64
	copies []*agentapi.CopyInfo
}

func newTerm(ctx context.Context, s *Server) *term {
	return &term{s: s, ctx: ctx, began: time.Now(), nodes: map[string]heard{}, sessions: map[string]*session{},
		errands: map[string]bool{}, drains: drains{refused: map[drainMove]refusal{}, begun: map[string]drainMove{}}, changed: make(chan struct{})}
}

// run opens a session for every migration that is not closed, sees to workloads that are neither started nor stopped
// for good and to hosts that are being emptied, and returns when the leadership and all that it owns has ended.
func (t *term) run() {
	defer t.wg.Wait()
	tick := time.NewTicker(t.s.c.Limits.Redrive)
	defer tick.Stop()
	t.wg.Go(t.listen)
	for {
		changed := t.s.node.store.Changed()
		t.openSessions()
		t.settle()
		t.drain()
		select {
		case <-t.ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// openSessions: one for each open migration.
func (t *term) openSessions() {
	var open []*logpb.Migration
	t.s.node.store.Read(func(st *fsm.State) { open = st.Open() })
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range open {
		id := m.GetRecord().GetMigration()
		if t.sessions[id] == nil {
			t.sessions[id] = newSession(t, m)
			t.wg.Go(t.sessions[id].run)
		}
	}
}

// session is that of a migration, opened if the log has just begun it; nil if there is none to drive.
func (t *term) session(id string) *session {
	t.openSessions()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sessions[id]
}

// ended takes a session out once its migration is closed.
func (t *term) ended(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sessions, id)
}

// settle finishes what was begun with workloads: a leader may have died between the log's word and the agent's.
func (t *term) settle() {
	var todo []*logpb.Workload
	t.s.node.store.Read(func(st *fsm.State) {
		for _, w := range st.Workloads {
			switch w.GetState() {
			case clusterapi.WorkloadState_WORKLOAD_STATE_STARTING, clusterapi.WorkloadState_WORKLOAD_STATE_STOPPING:
				todo = append(todo, w)
			}
		}
	})
	for _, w := range todo {
		if !t.up(w.GetHost()) {
			continue // there is a tick for when it is back
		}
		if t.errand(w.GetSpec().GetName()) {
			t.wg.Go(func() {
				defer t.errandDone(w.GetSpec().GetName())
				ctx, cancel := context.WithTimeout(t.ctx, t.s.c.Limits.StartGrace)
				defer cancel()
				var err error
				if w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_STARTING {
					_, err = t.start(ctx, w)
				} else {
					_, err = t.stop(ctx, w, 0)
				}
				if err != nil {
					t.s.c.Log.Warn("workload is not settled yet", "workload", w.GetSpec().GetName(), "state", w.GetState(), "error", err)
				}
			})
		}
	}
}

// errand claims the work on a workload, so that one goroutine does it at a time.
func (t *term) errand(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.errands[name] {
		return false
	}
	t.errands[name] = true
	return true
}

func (t *term) errandDone(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.errands, name)
}

// hear takes a node's word.
func (t *term) hear(name string, h heard) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nodes[name] = h
}

// lastHeard is what a node said last. A node that was never heard by this leader counts from the start of the term.
func (t *term) lastHeard(name string) heard {
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok := t.nodes[name]
	if !ok {
		h.at = t.began
	}
	return h
}

// up says whether a node was heard lately. It is a hint.
func (t *term) up(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok := t.nodes[name]
	return ok && time.Since(h.at) < t.s.c.Limits.Silence/2
}

// copyOf is what the owner's agent said last of a workload's copy.
func (t *term) copyOf(w *logpb.Workload) *agentapi.CopyInfo {
	for _, c := range t.lastHeard(w.GetHost()).copies {
		if c.GetInstance() == w.GetInstance() {
			return c
		}
	}
	return nil
}

// touch wakes all watchers.
func (t *term) touch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *term) touched() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// nodeInfo is a registered node; nil if there is none of this name.
func (t *term) nodeInfo(name string) *agentapi.NodeInfo {
	var info *agentapi.NodeInfo
	t.s.node.store.Read(func(st *fsm.State) { info = st.Nodes[name].GetInfo() })
	return info
}
