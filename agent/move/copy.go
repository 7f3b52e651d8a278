package move

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	"migrate/agent/policy"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
	"migrate/engine/span"
	"migrate/pagexfer"
)

// A copier is one stretch of copying: from the order to copy, or the end of an attempt, until a freeze or a fault.
// halt ends it after the round that runs, so that no page is left between tracker and wire.
type copier struct {
	halt     chan struct{}
	halted   sync.Once
	sender   *pagexfer.Sender
	progress *progress
	throttle throttle
	err      error // why it ended, if not by halt; read once its task has ended
}

func (c *copier) finishRound() { c.halted.Do(func() { close(c.halt) }) }

// converged is what the report of that name says.
func (c *copier) converged() *clusterapi.Converged {
	if c == nil {
		return &clusterapi.Converged{}
	}
	f, forced := c.progress.last()
	return &clusterapi.Converged{PredictedDowntimeMs: ms(f.Blackout), Forced: forced}
}

// fixedCost is what a blackout is taken to cost beside its pages and what a round costs beside its own.
const fixedCost = 15 * time.Millisecond

func (s *source) startCopy() error {
	if s.tree == nil || s.sender == nil || s.peer == nil {
		return errors.New("there is no tree or no way to the destination any more")
	}
	if s.begun.IsZero() {
		s.begun = time.Now()
	}
	if s.copying == nil {
		s.copying = &copier{progress: newProgress(s.tree.Tracker())}
	}
	// The counters of earlier stretches go on, and so does what it took to follow the program.
	c := &copier{halt: make(chan struct{}), progress: s.copying.progress, throttle: s.copying.throttle}
	s.copying = c
	s.work.start(s.ctx, func(ctx context.Context) {
		var err error
		if s.spent {
			err = s.anew(ctx)
		}
		if err == nil {
			err = s.stretch(ctx, c)
		}
		if err != nil {
			s.copyFault(ctx, c, err)
		}
	})
	return nil
}

// stretch copies over the page stream that there is now.
func (s *source) stretch(outer context.Context, c *copier) error {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	c.sender = s.sender
	// Of an attempt that has ended, pages may be under way; the layout changes only when none are.
	if _, err := s.sender.Flush(outer); err != nil {
		return err
	}
	var told sync.WaitGroup
	told.Go(func() { // a link that dies between two rounds must not wait for the next one
		select {
		case <-c.sender.Failed():
			cancel()
		case <-ctx.Done():
		}
	})
	told.Go(func() { s.tell(ctx, c) })
	s.slowAgain(c)
	err := s.copy(ctx, c)
	cancel()
	told.Wait()
	if err != nil { // else a freeze follows, until which what is left to send must not grow
		err = errors.Join(err, s.letGo())
	}
	return err
}

// copyFault tells the loop that copying has failed. When a freeze already waits for this stretch, the loop cannot take
// an event, and the freeze finds the failure in err.
func (s *source) copyFault(ctx context.Context, c *copier, err error) {
	if errors.Is(err, errSuperseded) {
		return
	}
	c.err = err
	s.view.set(func(v *view) { v.reason = err.Error() })
	s.log.Warn("copying has failed", "error", err)
	select {
	case s.loop.inbox <- message[handoff.SourceEvent]{ev: handoff.SourceEvent{Kind: handoff.SourceFault, Ref: s.id}, from: ctx}:
	case <-c.halt:
	case <-ctx.Done():
	}
}

// copy sends rounds until it is halted (nil) or cannot go on.
func (s *source) copy(ctx context.Context, c *copier) error {
	for {
		f := policy.Forecast{Decision: policy.Switch, Wait: policy.KeepingUp, Reason: "everything is sent while the program stands still"}
		if opts := s.opts(); !opts.stop {
			if err := s.round(ctx, c); err != nil {
				return err
			}
			f = c.progress.decide(policy.Bounds{MaxDowntime: opts.maxDowntime, Fixed: s.fixed()})
		}
		wait, err := s.decide(ctx, c, f)
		if err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-c.halt:
			t.Stop()
			return nil
		case <-ctx.Done():
			t.Stop()
			return s.linkError(ctx)
		case <-t.C:
		}
	}
}

// linkError is why ctx ended: the page stream's own error says more.
func (s *source) linkError(ctx context.Context) error {
	select {
	case <-s.sender.Failed():
		_, err := s.sender.Flush(context.WithoutCancel(ctx)) // returns the reason at once
		return fmt.Errorf("the pages to %s: %w", s.peerNode.GetName(), err)
	default:
		return context.Cause(ctx)
	}
}

// decide acts on a forecast and returns how long to wait before the next round.
func (s *source) decide(ctx context.Context, c *copier, f policy.Forecast) (time.Duration, error) {
	opts := s.opts()
	c.sender.SetBandwidth(opts.bandwidth)
	late := time.Since(s.begun) > opts.timeout
	forced := opts.force && f.Blackout <= opts.hardLimit
	if !late && s.step(c, f, opts.throttleMax) {
		c.progress.set(f, false)
		return 0, nil
	}
	waits := time.Until(get(&s.view, func(v *view) time.Time { return v.notBefore }))
	switch {
	case waits > 0 && !late:
		c.progress.set(f, false)
		return min(waits, policy.Hopeless), nil
	case f.Decision == policy.Switch:
		return f.Wait, s.offer(ctx, c, f, false)
	case (f.Decision == policy.CannotConverge || late) && forced:
		return policy.KeepingUp, s.offer(ctx, c, f, true)
	case late:
		return 0, fmt.Errorf("the copy did not come near enough to the program within %v: %s; give a larger --max-downtime or --on-timeout force", opts.timeout, f.Reason)
	}
	c.progress.set(f, false)
	return f.Wait, nil
}

// offer tells the machine that a switch would keep the bound.
func (s *source) offer(ctx context.Context, c *copier, f policy.Forecast, forced bool) error {
	c.progress.set(f, forced)
	if !c.progress.offerDue() {
		return nil
	}
	if err := s.measureClock(ctx); err != nil {
		return err
	}
	select {
	case s.loop.inbox <- message[handoff.SourceEvent]{ev: handoff.SourceEvent{Kind: handoff.SourceConverged, Ref: s.id}, from: ctx}:
	default: // the loop is busy, perhaps with the order to switch; the next round offers again
	}
	return nil
}

// measureClock takes the offset of the destination's clock anew.
func (s *source) measureClock(ctx context.Context) error {
	o, err := s.peer.measure(ctx, clockExchanges)
	if err != nil {
		return err
	}
	s.view.set(func(*view) { s.clock = o })
	return nil
}

// fixed estimates what a blackout costs beside its pages and what a round costs beside its own, such as the files.
func (s *source) fixed() time.Duration {
	return fixedCost + 4*get(&s.view, func(*view) time.Duration { return s.clock.err })
}

// round brings the destination's layout up to date, sends what is dirty, and returns when it is written there.
func (s *source) round(ctx context.Context, c *copier) error {
	start := time.Now()
	rec := span.New(start)
	ctx = span.With(ctx, rec)
	defer func() { s.log.Debug("round", "steps", rec.Spans()) }()
	err := span.Do(ctx, "layout", func(ctx context.Context) error { return s.follow(ctx, 0) })
	if err != nil {
		return err
	}
	c.progress.begin(start, s.tree.Resident())
	if _, err := s.fileRound(ctx); err != nil {
		return err
	}
	stats, err := s.tree.Round(ctx, c.progress.counting(s.sender))
	if err != nil {
		return s.better(err)
	}
	_, end := span.Begin(ctx, "flush")
	_, err = s.sender.Flush(ctx)
	end()
	if err != nil {
		return err
	}
	c.progress.end(stats, time.Since(start), s.sender.Stats(), false)
	return nil
}

// better is the page stream's own error, if it has failed, in the place of one that follows from it.
func (s *source) better(err error) error {
	if e := s.senderError(); e != nil {
		return e
	}
	return err
}

func (s *source) senderError() error {
	select {
	case <-s.sender.Failed():
		return s.linkError(context.Background())
	default:
		return nil
	}
}

// follow sends the layout if it has changed.
func (s *source) follow(ctx context.Context, attempt uint32) error {
	l, err := s.tree.Layout(ctx)
	if err != nil {
		return err
	}
	if bytes.Equal(l, s.layout) {
		return nil
	}
	if _, err := s.peer.client.Follow(ctx, &agentapi.FollowRequest{Session: s.session(attempt), Layout: l}); err != nil {
		return s.better(fmt.Errorf("%s could not follow the tree's changes: %w", s.peerNode.GetName(), plain(err)))
	}
	s.layout = l
	return nil
}

// tellEvery is how often progress is told to the cluster.
const tellEvery = 200 * time.Millisecond

// tell sends progress for people to see until ctx ends.
func (s *source) tell(ctx context.Context, c *copier) {
	ticks := time.NewTicker(tellEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			s.tellOnce(ctx, c)
		case <-ctx.Done():
			return
		}
	}
}

func (s *source) tellOnce(ctx context.Context, c *copier) {
	req := s.link.request(s.id)
	req.Event = &clusterapi.ReportRequest_Progress{Progress: c.progress.message(c.sender.Stats())}
	s.link.once(ctx, req)
}

// progress is the counters of a migration's copying, for the policy and for people.
type progress struct {
	mu       sync.Mutex
	tracker  string
	done     []*clusterapi.Round
	policy   policy.Policy
	began    time.Time     // the round that runs, or the last one
	since    time.Duration // from the start of the round before until then; 0 if there was none
	forecast policy.Forecast
	forced   bool
	offered  time.Time
	resident uint64 // pages, when the round that runs began
	pages    uint64 // of the round that runs
	rate     float64
	bytes    uint64             // on the wire, when the round that runs began
	earlier  pagexfer.Totals    // of page streams that were given up for another
	steps    []*clusterapi.Step // of the last switch
	// By how many percent the program is slowed down, and why it cannot be.
	throttled   int
	unthrottled error
}

// took notes the steps of a switch.
func (p *progress) took(steps []*clusterapi.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steps = steps
}

func newProgress(tracker string) *progress { return &progress{tracker: tracker} }

// begin tells that a round began at the given time.
func (p *progress) begin(start time.Time, resident uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = 0
	if !p.began.IsZero() {
		p.since = start.Sub(p.began)
	}
	p.resident, p.pages, p.began = resident, 0, start
}

// another says that a page stream has ended, and that a new one counts from zero and begins with all pages.
func (p *progress) another(totals pagexfer.Totals) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.earlier = totals.Plus(p.earlier)
	p.bytes = p.earlier.WireBytes
	p.policy, p.began = policy.Policy{}, time.Time{}
}

func (p *progress) end(st RoundStats, took time.Duration, totals pagexfer.Totals, final bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	totals = totals.Plus(p.earlier)
	sent := totals.WireBytes - p.bytes
	p.bytes = totals.WireBytes
	r := &clusterapi.Round{N: uint32(len(p.done) + 1), Pages: st.Pages, ZeroPages: st.ZeroPages, SkippedPages: st.Skipped, BytesSent: sent, Ms: ms(took), Final: final}
	if n := len(p.done); n > 0 && p.done[n-1].DirtyPagesAfter == 0 {
		before := proto.CloneOf(p.done[n-1])                          // messages that are under way hold the one that was told
		before.DirtyPagesAfter = st.Pages + st.ZeroPages + st.Skipped // what this round found had been left by the one before
		p.done[n-1] = before
	}
	p.done = append(p.done, r)
	if len(p.done) > maxRounds {
		p.done = append(p.done[:1], p.done[2:]...) // the first tells how large the tree was
	}
	if took > 0 {
		p.rate = float64(sent) / took.Seconds()
	}
	if !final {
		p.policy.Add(policy.Round{Pages: st.Pages, ZeroPages: st.ZeroPages, Skipped: st.Skipped, Since: p.since, Took: took, Scan: st.Scan})
	}
}

// maxRounds bounds the rounds that are told: while a switch is waited for there are a hundred small ones a second.
const maxRounds = 100

func (p *progress) decide(b policy.Bounds) policy.Forecast {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.policy.Decide(b)
}

func (p *progress) set(f policy.Forecast, forced bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forecast, p.forced = f, forced
}

func (p *progress) last() (policy.Forecast, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.forecast, p.forced
}

// offerAgain is how long to wait for the leader's answer before saying again that a switch is possible.
const offerAgain = time.Second

func (p *progress) offerDue() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.offered) < offerAgain {
		return false
	}
	p.offered = time.Now()
	return true
}

// message is the progress as the API has it.
func (p *progress) message(totals pagexfer.Totals) *clusterapi.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	totals = totals.Plus(p.earlier)
	m := &clusterapi.Progress{
		Rounds: append([]*clusterapi.Round(nil), p.done...), PagesSent: totals.Pages, BytesSent: totals.WireBytes,
		DirtyPagesPerSecond: p.forecast.DirtyPerSecond, PredictedDowntimeMs: ms(p.forecast.Blackout), Tracker: p.tracker,
		Round: uint32(len(p.done) + 1), BytesPerSecond: p.rate, PagesRemaining: p.forecast.Pages, Steps: p.steps, Reason: p.forecast.Reason, ThrottlePercent: uint32(p.throttled),
	}
	if m.Reason != "" {
		m.Reason += p.slowness()
	}
	expected := p.forecast.Pages
	if len(p.done) == 0 {
		expected = p.resident
	}
	if expected > p.pages {
		m.PagesRemaining = expected - p.pages
		m.RoundFraction = float64(p.pages) / float64(expected)
	}
	if d := time.Since(p.began); len(p.done) == 0 && !p.began.IsZero() && d > 0 {
		m.BytesPerSecond = float64(totals.WireBytes) / d.Seconds()
	}
	return m
}

// counting is sink, counted.
func (p *progress) counting(sink PageSink) PageSink { return countingSink{sink, p} }

type countingSink struct {
	PageSink
	p *progress
}

func (c countingSink) Send(ctx context.Context, space uint32, runs []pagexfer.Run, data []byte) error {
	var n uint64
	for _, r := range runs {
		n += uint64(r.Pages)
	}
	err := c.PageSink.Send(ctx, space, runs, data)
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.pages += n
	return err
}
