package coordinator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

// session drives one migration while this server leads. All but view belongs to the goroutine of run.
type session struct {
	t      *term
	id     string
	hosts  map[handoff.Role]string // never changes
	events chan sessionEvent
	done   chan struct{} // closed when run has returned

	lead     handoff.Leader
	m        *logpb.Migration // as the log has it
	waiter   *waiter          // the destination's request
	mail     map[handoff.Role]*mailbox
	voted    time.Time // when the source's vote came
	overruns int       // switches that the leader had to end
	phaseAt  time.Time // when this leader saw the phase begin
	reason   string    // why the next entry ends something

	mu   sync.Mutex
	view live
}

// live is what the leader knows beyond the log; it is lost with it.
type live struct {
	progress    *clusterapi.Progress
	pid         int32
	destPID     int32
	downtimeMS  float64
	frozenMS    float64
	connections []*clusterapi.Connection
	steps       []*clusterapi.Step // of the destination
	voted       bool
	silent      map[handoff.Role]string // what an agent that does not take its order says, or why it cannot be reached
}

// sessionEvent is one call into the session. reply gets exactly one error.
type sessionEvent struct {
	ev     handoff.LeaderEvent
	report *clusterapi.ReportRequest // for what it brings besides the event
	waiter *waiter                   // LeaderRequestCommit, LeaderRequestGone
	retune *logpb.Migration          // new options are in the log; no event then
	reason string
	reply  chan error
}

// waiter is a destination's request that waits for a decision.
type waiter struct {
	answer chan handoff.Action
	boot   string // of the host that asks
}

func newSession(t *term, m *logpb.Migration) *session {
	return &session{t: t, id: m.GetRecord().GetMigration(), m: m, events: make(chan sessionEvent), done: make(chan struct{}),
		hosts:   map[handoff.Role]string{handoff.RoleSource: m.GetSource(), handoff.RoleDestination: m.GetDestination()},
		phaseAt: time.Now(), view: live{silent: map[handoff.Role]string{}},
		mail: map[handoff.Role]*mailbox{handoff.RoleSource: newMailbox(), handoff.RoleDestination: newMailbox()}}
}

// run ends when the migration is closed or the leadership is over.
func (s *session) run() {
	ctx, cancel := context.WithCancel(s.t.ctx)
	var wg sync.WaitGroup
	defer close(s.done)
	defer wg.Wait()
	defer cancel()
	for role, box := range s.mail {
		wg.Go(func() { s.deliver(ctx, role, box) })
	}
	if err := s.read(); err != nil {
		s.log("taking over", err)
	}
	tick := time.NewTicker(s.t.s.c.Limits.Redrive / 4)
	defer tick.Stop()
	redriven := time.Now()
	for !s.lead.Record.Closed() {
		select {
		case <-ctx.Done():
			return
		case e := <-s.events:
			e.reply <- s.handle(e)
		case now := <-tick.C:
			s.overdue(now)
			if now.Sub(redriven) >= s.t.s.c.Limits.Redrive {
				redriven = now
				s.log("redrive", s.feed(handoff.LeaderEvent{Kind: handoff.LeaderRedrive}))
			}
		}
	}
	s.t.ended(s.id)
	s.t.touch()
}

func (s *session) log(what string, err error) {
	if err != nil {
		s.t.s.c.Log.Info("handoff", "migration", s.id, "while", what, "state", s.lead.String(), "error", err)
	}
}

// call gives an event to the session and waits for what it says. errClosed: the migration is over, ask the log.
func (s *session) call(ctx context.Context, e sessionEvent) error {
	e.reply = make(chan error, 1)
	select {
	case s.events <- e:
	case <-s.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-e.reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errClosed = errors.New("coordinator: the session has ended")

// handle is one event from outside.
func (s *session) handle(e sessionEvent) error {
	if e.retune != nil {
		s.m = e.retune
		s.retuned()
		return nil
	}
	s.note(e)
	switch e.ev.Kind {
	case handoff.LeaderRequestCommit:
		if s.waiter != nil && s.waiter != e.waiter {
			s.dismiss()
		}
		s.waiter = e.waiter
	case handoff.LeaderRequestGone:
		if s.waiter != e.waiter {
			return nil // a newer request waits
		}
		s.waiter = nil
	case handoff.LeaderReported:
		if e.ev.Report == handoff.ReportNone { // for the eyes only
			return nil
		}
	}
	s.reason = e.reason
	err := s.feed(e.ev)
	s.reason = ""
	if e.ev.Report == handoff.ReportVote && err == nil && s.voted.IsZero() && s.lead.Source.Attempt == s.lead.Record.Attempt {
		s.voted = time.Now()
		s.setVoted(true)
	}
	if err != nil {
		if s.waiter == e.waiter && e.ev.Kind == handoff.LeaderRequestCommit {
			s.waiter = nil
		}
		s.log(e.ev.String(), err)
	}
	return err
}

func (s *session) setVoted(v bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.voted = v
}

// dismiss tells the present waiter that another request of the destination has taken its place.
func (s *session) dismiss() {
	if s.waiter != nil {
		close(s.waiter.answer)
		s.waiter = nil
	}
}

// note keeps what a report brings for the result and for watchers.
func (s *session) note(e sessionEvent) {
	r := e.report
	if r == nil {
		return
	}
	s.mu.Lock()
	v := &s.view
	if p := r.GetProgress(); p != nil {
		v.progress = p
	}
	if p := r.GetPrepared(); p != nil {
		v.pid = p.GetPid()
	}
	if c := r.GetConverged(); c != nil && v.progress != nil {
		v.progress = proto.CloneOf(v.progress)
		v.progress.PredictedDowntimeMs = c.GetPredictedDowntimeMs()
	}
	if d := r.GetResumed(); d != nil {
		v.destPID, v.downtimeMS, v.connections, v.steps = d.GetPid(), d.GetDowntimeMs(), d.GetConnections(), d.GetSteps()
	}
	for _, ms := range []float64{r.GetConfirmed().GetFrozenMs(), r.GetAttemptEnded().GetFrozenMs(), r.GetFailed().GetFrozenMs()} {
		if ms > 0 {
			v.frozenMS = ms
		}
	}
	s.mu.Unlock()
	s.t.touch()
}

// feed is one event into the state machine, and what it wants done.
func (s *session) feed(ev handoff.LeaderEvent) error {
	next, actions, err := s.lead.Step(ev)
	if err != nil {
		return err
	}
	s.lead = next
	for _, a := range actions {
		switch a.Kind {
		case handoff.ActOrder:
			s.mail[a.Role].put(s.order(a))
		case handoff.ActAnswer:
			if s.waiter != nil {
				s.waiter.answer <- a // buffered; each waiter gets one
				s.waiter = nil
			}
		case handoff.ActPropose:
			if err := s.propose(a.Entry); err != nil {
				return err
			}
		}
	}
	return nil
}

// propose puts an entry into the log. Whatever comes of it, the record is what counts: it is read and taken over. The
// error is only that the answer is not known, for the caller to say so.
func (s *session) propose(e handoff.Entry) error {
	c := fsm.EntryCommand(s.id, e)
	c.Reason = s.reason
	if e.Kind == handoff.EntryCommit && s.waiter != nil {
		c.DestinationBootId = s.waiter.boot
	}
	s.mu.Lock()
	c.Progress, c.Pid, c.DestinationPid = s.view.progress, s.view.pid, s.view.destPID
	c.DowntimeMs, c.FrozenMs, c.Connections, c.Steps = s.view.downtimeMS, s.view.frozenMS, s.view.connections, s.view.steps
	s.mu.Unlock()
	res, err := s.t.s.node.propose(&logpb.Command{Command: &logpb.Command_MigrationEntry{MigrationEntry: c}})
	if err == nil && res.Err != nil {
		s.log(e.String(), res.Err)
	}
	return errors.Join(err, s.read())
}

// read takes over the record as applied here. On the leader that is what the log has decided.
func (s *session) read() error {
	var m *logpb.Migration
	s.t.s.node.store.Read(func(st *fsm.State) { m = st.Migrations[s.id] })
	if m == nil {
		return fmt.Errorf("coordinator: migration %s is not in the log", s.id)
	}
	if m.GetRecord().GetPhase() != s.m.GetRecord().GetPhase() || m.GetRecord().GetAttempt() != s.m.GetRecord().GetAttempt() {
		s.phaseAt, s.voted = time.Now(), time.Time{}
		s.setVoted(false)
		s.t.s.c.Log.Info("migration", "migration", s.id, "workload", m.GetWorkload(), "phase", fsm.Record(m).String(), "reason", s.reason)
	}
	s.m = m
	err := s.feed(handoff.LeaderEvent{Kind: handoff.LeaderApplied, Record: fsm.Record(m)})
	s.t.touch()
	return err
}

// overdue proposes an end to what takes too long. Nothing here is evidence; the log decides who was first.
func (s *session) overdue(now time.Time) {
	r, l := s.lead.Record, s.t.s.c.Limits
	if !r.Phase.BeforeCommit() {
		return
	}
	opt := withDefaults(s.m.GetOptions())
	end := func(reason string) {
		s.reason = reason
		s.log(reason, s.feed(handoff.LeaderEvent{Kind: handoff.LeaderTimeout}))
		s.reason = ""
	}
	for _, host := range s.hosts {
		if d := now.Sub(s.t.lastHeard(host).at); d > l.Silence {
			end(fmt.Sprintf("%s was silent for %v", host, d.Round(100*time.Millisecond)))
			return
		}
	}
	limit := time.Duration(opt.MaxDowntimeNs)
	if opt.OnTimeout == onTimeoutForce {
		limit = time.Duration(opt.HardLimitNs)
	}
	switch {
	case r.Phase == handoff.PhaseSwitching && !s.voted.IsZero() && s.waiter == nil && now.Sub(s.voted) > max(l.LoneVote, limit):
		end(fmt.Sprintf("%s was silent after the source's vote", s.m.GetDestination()))
	case r.Phase == handoff.PhaseSwitching && now.Sub(s.phaseAt) > limit+l.Switch && s.overruns > 0:
		end(fmt.Sprintf("two switches took longer than %v each", limit+l.Switch))
	case r.Phase == handoff.PhaseSwitching && now.Sub(s.phaseAt) > limit+l.Switch:
		s.overruns++
		s.reason = fmt.Sprintf("switch %d took longer than %v", r.Attempt, limit+l.Switch)
		s.log(s.reason, s.feed(handoff.LeaderEvent{Kind: handoff.LeaderDeadline, Ref: r.Ref(handoff.RoleSource)}))
		s.reason = ""
	case now.UnixNano()-s.m.GetBegunUnixNs() > opt.TimeoutNs+int64(l.Switch):
		end(fmt.Sprintf("it took longer than %v", time.Duration(opt.TimeoutNs)))
	}
}

// requestCommit waits until the log has decided.
func (s *session) requestCommit(ctx context.Context, ev handoff.LeaderEvent, boot string) (handoff.Action, error) {
	w := &waiter{answer: make(chan handoff.Action, 1), boot: boot}
	if err := s.call(ctx, sessionEvent{ev: ev, waiter: w}); err != nil {
		return handoff.Action{}, err
	}
	select {
	case a, ok := <-w.answer:
		if !ok {
			return a, status.Error(codes.Aborted, "a newer request of this host has taken the place of this one")
		}
		return a, nil
	case <-s.done:
		select {
		case a, ok := <-w.answer:
			if ok {
				return a, nil
			}
		default:
		}
		return handoff.Action{}, errClosed
	case <-ctx.Done():
		gone := handoff.LeaderEvent{Kind: handoff.LeaderRequestGone}
		if err := s.call(s.t.ctx, sessionEvent{ev: gone, waiter: w}); err != nil && !errors.Is(err, errClosed) {
			s.log("request gone", err)
		}
		return handoff.Action{}, ctx.Err()
	}
}
