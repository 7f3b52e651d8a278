package move

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	agentapi "migrate/agent/api"
	"migrate/agent/volume"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
	"migrate/pagexfer"
)

// source is the hands of a source: the tree, its port, the way to the destination.
type source struct {
	m    *Manager
	log  *slog.Logger
	loop *loop[handoff.Source, handoff.SourceEvent]
	link *link
	ctx  context.Context // of everything that outlives one action; ends with the Manager

	id   handoff.Ref // incarnation, migration, instance; never changes
	rec  Record      // as it is on disk
	file *file

	workload     string
	spec         *agentapi.WorkloadSpec
	peerNode     *agentapi.NodeInfo
	peerInstance uint64
	options      options // of the loop's goroutine; tasks read them under view.mu
	begun        time.Time

	// Of the loop's goroutine, and of the task that runs.
	tree       Source // nil after a restart of the agent
	held       Held   // the tree, or what was adopted after a restart
	port       Port
	peer       *peerLink
	sender     *pagexfer.Sender
	files      *filesOut     // nil where there are none to bring over
	units      []volume.Unit // of files; under view.mu
	frames     *forwarder
	owed       [][]byte // frames of an attempt that has ended, until the port takes them
	work       task
	copying    *copier
	layout     []byte // as the destination knows it
	neighbours []byte
	shut       bool   // the port, in whole or in part
	tracked    bool   // the tree's writes are watched
	adopted    bool   // found after a restart of the agent, which may have left it in any state
	spent      bool   // the destination was told to complete its copy: another attempt needs a new one
	clock      offset // of the destination's monotonic clock
	frozen     time.Duration
	bound      time.Duration // of the attempt
	stopped    time.Time     // zero while the tree runs
	// stoppedAt is the same instant on CLOCK_MONOTONIC.
	stoppedAt time.Duration
	view      view
}

func (s *source) session(k uint32) *agentapi.Session {
	return &agentapi.Session{Incarnation: s.id.Incarnation, Migration: s.id.Migration, Attempt: k,
		SourceInstance: s.id.Instance, DestinationInstance: s.peerInstance}
}

// do carries out one action of the machine.
func (s *source) do(ctx context.Context, a handoff.Action, next handoff.Source) error {
	switch a.Kind {
	case handoff.ActPersist:
		return s.persist(next)
	case handoff.ActReport:
		s.report(a)
	case handoff.ActAsk:
		s.link.ask(s.ctx, a.Ref.Migration, s.asking)
	case handoff.ActBuild:
		s.work.start(s.ctx, s.build)
	case handoff.ActCopy:
		return s.startCopy()
	case handoff.ActFreeze:
		return s.freeze(ctx)
	case handoff.ActFinish:
		k := a.Ref.Attempt
		s.work.start(s.ctx, func(ctx context.Context) { s.finish(ctx, k) })
	case handoff.ActThaw:
		return s.thaw(ctx)
	case handoff.ActStop:
		return s.stop()
	case handoff.ActHold:
		s.log.Info("the other copy has the ownership; this one stays stopped")
	case handoff.ActDestroy:
		return s.destroy(ctx)
	default:
		return fmt.Errorf("the source has no action %v", a)
	}
	return nil
}

// failed: before its vote, what goes wrong while the tree is to be copied or frozen ends the attempt by a fault. What
// the log has ordered is done again until it is done.
func (s *source) failed(ev handoff.SourceEvent, a handoff.Action, next handoff.Source, err error) (handoff.SourceEvent, verdict) {
	fault := handoff.SourceEvent{Kind: handoff.SourceFault, Ref: next.Ref}
	starts := ev.Kind == handoff.SourceOrdered &&
		(ev.Order == handoff.OrderPrepareSource || ev.Order == handoff.OrderCopy || ev.Order == handoff.OrderSwitch)
	switch {
	case starts:
		s.view.set(func(v *view) { v.reason = err.Error() })
		s.attemptFailed(err)
		return fault, feed
	case ev.Kind == handoff.SourceFault && a.Kind == handoff.ActPersist:
		// No vote has left, so the tree runs whatever the disk says: a restarted agent that finds `may-have-voted`
		// and a running tree concludes the same.
		return fault, ignore
	case a.Kind == handoff.ActStop:
		return fault, ignore // what was not closed in order ends with the agent
	}
	return fault, again
}

func (s *source) settled(st handoff.Source) {
	s.m.settled(s.id, handoff.RoleSource, s.over(st))
}

// over says that the machine is in a final state: the table keeps it until the cluster has closed the migration.
func (s *source) over(st handoff.Source) bool {
	return st.Phase == handoff.SourceRunning || st.Phase == handoff.SourceReleased || st.Phase == handoff.SourceLost
}

// asking is called by the asking task; the state is read through the loop's last settled phase.
func (s *source) asking() bool {
	switch s.m.phaseOfSource(s.id) {
	case handoff.SourceVoted, handoff.SourceUndecided, handoff.SourceHeld, handoff.SourceFailed:
		return true
	}
	return false
}

func (s *source) fault(ctx context.Context, err error) {
	if errors.Is(err, errSuperseded) || errors.Is(err, errStopped) {
		return
	}
	s.view.set(func(v *view) { v.reason = err.Error() })
	s.log.Warn("the source cannot go on", "error", err)
	s.loop.post(ctx, handoff.SourceEvent{Kind: handoff.SourceFault, Ref: s.id})
}

// persist writes the machine's disk, with what is needed to find the tree again.
func (s *source) persist(next handoff.Source) error {
	rec := s.rec
	rec.Source = next.Disk
	rec.Units = get(&s.view, func(*view) []volume.Unit { return s.units })
	if s.file == nil {
		f, err := claim(&rec, recordPath(s.m.cfg.Dir, next.Disk.Ref, handoff.RoleSource))
		if err != nil {
			return err
		}
		s.file = f
	}
	if err := s.file.write(&rec); err != nil {
		return err
	}
	s.rec = rec // read by the loop's goroutine only
	return nil
}

func (s *source) report(a handoff.Action) {
	req := s.link.request(a.Ref)
	frozenMS := ms(get(&s.view, func(v *view) time.Duration { return v.frozen }))
	reason := get(&s.view, func(v *view) string { return v.reason })
	switch a.Report {
	case handoff.ReportPrepared:
		req.Event = &clusterapi.ReportRequest_Prepared{Prepared: &clusterapi.Prepared{Pid: int32(s.rec.Handle.PID)}}
	case handoff.ReportConverged:
		// Said once per event; the copy says it again while it is true.
		c := s.copying.converged()
		req.Event = &clusterapi.ReportRequest_Converged{Converged: c}
		s.m.tasks.Go(func() { s.link.once(s.ctx, req) })
		return
	case handoff.ReportVote:
		req.Event = &clusterapi.ReportRequest_Vote{Vote: &clusterapi.Vote{Hash: []byte(a.Hash)}}
	case handoff.ReportAttemptEnded:
		req.Event = &clusterapi.ReportRequest_AttemptEnded{AttemptEnded: &clusterapi.AttemptEnded{Reason: reason, FrozenMs: frozenMS, GiveUp: get(&s.view, func(v *view) bool { return v.failures >= maxFailures })}}
	case handoff.ReportFailed:
		req.Event = &clusterapi.ReportRequest_Failed{Failed: &clusterapi.Failed{Reason: reason, FrozenMs: frozenMS}}
	case handoff.ReportConfirmed:
		req.Event = &clusterapi.ReportRequest_Confirmed{Confirmed: &clusterapi.Confirmed{FrozenMs: frozenMS}}
	case handoff.ReportReleased:
		req.Event = &clusterapi.ReportRequest_Released{Released: &clusterapi.Released{}}
	case handoff.ReportLostCopy:
		req.Event = &clusterapi.ReportRequest_LostCopy{LostCopy: &clusterapi.LostCopy{Reason: reason, Ran: a.Ran}}
	default:
		s.log.Error("a report that the protocol has no message for", "report", a.Report.String())
		return
	}
	s.link.say(a.String()+string(a.Hash), req)
}

// prepareExtra is what agents tell each other beside the layout.
type prepareExtra struct {
	Clocks Clocks   `json:"clocks"`
	Addrs  []string `json:"addrs,omitempty"`
}

// build claims nothing: the claim is durable by now. It checks the tree, has the skeleton made, and dials the pages.
func (s *source) build(ctx context.Context) {
	if err := s.prepare(ctx); err != nil {
		s.fault(ctx, err)
		return
	}
	s.loop.post(ctx, handoff.SourceEvent{Kind: handoff.SourceSkeleton, Ref: s.id})
}

const (
	// maxFailures is how many attempts may fail for reasons that need not pass before the source asks for the end of
	// the migration.
	maxFailures = 3
	// After an attempt that took too long, or met something that passes, the next one waits: twice as long each time.
	firstWait, longestWait = 200 * time.Millisecond, 10 * time.Second
)

// ErrTransient is matched by errors of an attempt that may be gone at the next one, such as a connection that waits to
// be accepted.
var ErrTransient = errors.New("this passes by itself")

var errBound = errors.New("the blackout would exceed its bound")

// attemptFailed tells the view why an attempt has ended, and when another may be made.
func (s *source) attemptFailed(err error) {
	s.view.set(func(v *view) {
		if !errors.Is(err, errBound) && !errors.Is(err, ErrTransient) {
			v.failures++
		}
		v.wait = min(max(firstWait, 2*v.wait), longestWait)
		v.notBefore = time.Now().Add(v.wait)
	})
}

// anew has another skeleton built, in the place of one that was completed for an attempt that has ended, and starts to
// track the tree from the beginning.
func (s *source) anew(ctx context.Context) error {
	s.log.Info("the copy at the destination was completed for an attempt that has ended: it is built anew")
	if err := s.sender.Close(); err != nil {
		s.log.Debug("the page stream had failed", "error", err)
	}
	s.copying.progress.another(s.sender.Stats())
	err := errors.Join(s.tree.Close(), s.peer.close())
	s.peer = nil
	if err != nil {
		return err
	}
	tree, port, err := s.m.cfg.Host.Open(ctx, s.id.Instance, s.spec, s.options.asked)
	if err != nil {
		return err
	}
	s.tree, s.held, s.port, s.spent, s.tracked = tree, tree, port, false, false
	// Until the destination has heard that the attempt is over, it refuses.
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := s.prepare(ctx)
		if err == nil || status.Code(err) != codes.FailedPrecondition || !pause(ctx, wait) {
			return err
		}
	}
}

// prepareTime bounds the building of a skeleton; what takes longer is a peer that is gone.
const prepareTime = 60 * time.Second

// prepare has the destination make room and build the skeleton. The files come first, for the skeleton maps them.
func (s *source) prepare(ctx context.Context) error {
	if err := s.meet(ctx); err != nil {
		return err
	}
	if err := s.bringFiles(ctx); err != nil {
		return err
	}
	return s.prepareCopy(ctx)
}

// meet checks the tree and connects to the destination's agent.
func (s *source) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	obstacles, err := s.tree.Obstacles(ctx)
	if err != nil {
		return err
	}
	if len(obstacles) > 0 {
		return fmt.Errorf("%d obstacles, the first: %v", len(obstacles), obstacles[0])
	}
	if s.peer == nil { // else it is another try
		s.peer, err = dialPeer(ctx, s.m.cfg.Peers, s.peerNode)
	}
	return err
}

func (s *source) prepareCopy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	if err := s.measureClock(ctx); err != nil {
		return err
	}
	clocks, err := s.m.cfg.Host.Clocks(ctx, s.tree.Handle())
	if err != nil {
		return err
	}
	clocks.At += get(&s.view, func(*view) offset { return s.clock }).add
	extra, err := json.Marshal(prepareExtra{Clocks: clocks, Addrs: s.tree.Handle().Addrs})
	if err != nil {
		return err
	}
	if !s.tracked {
		if err := s.tree.Track(ctx); err != nil {
			return fmt.Errorf("tracking the tree's writes: %w", err)
		}
		s.tracked = true
	}
	if s.layout, err = s.tree.Layout(ctx); err != nil {
		return err
	}
	opts := s.opts()
	reply, err := s.peer.client.Prepare(ctx, &agentapi.PrepareRequest{Session: s.session(0), Layout: s.layout,
		Streams: opts.streams, Compress: opts.codec.String(), Extra: extra})
	if err != nil {
		return &peerError{fmt.Sprintf("%s could not prepare the copy", s.peerNode.GetName()), err}
	}
	if o := reply.GetObstacles(); len(o) > 0 {
		return fmt.Errorf("%s cannot take the copy: %s: %s", s.peerNode.GetName(), o[0].GetWhere(), o[0].GetReason())
	}
	conns, err := pagexfer.Dial(ctx, s.peer.dialPages(reply.GetPagesAddress()), int(opts.streams), reply.GetToken())
	if err != nil {
		return err
	}
	s.sender = pagexfer.NewSender(conns, pagexfer.Options{Codec: opts.codec, Bandwidth: opts.bandwidth})
	return nil
}

// thaw ends whatever holds the tree still. Frames that were captured meanwhile are given back to it. A limit of its processor
// time that cannot be taken away is an error, but only after the tree runs and has its network: slow is better than still.
func (s *source) thaw(ctx context.Context) (err error) {
	s.work.stop(errSuperseded)
	if s.held == nil {
		return nil // it was never opened
	}
	defer func() { err = errors.Join(err, s.letGo()) }()
	if s.adopted || !s.stopped.IsZero() { // else it was never stopped
		if err := s.held.Thaw(ctx); errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("the tree has ended; there is nothing to let run", "error", err) // a cgroup goes only when nobody is in it
		} else if err != nil {
			return fmt.Errorf("letting the tree run: %w", err)
		}
	}
	if !s.stopped.IsZero() {
		s.frozen += time.Since(s.stopped)
		s.stopped = time.Time{}
		s.view.set(func(v *view) { v.frozen = s.frozen })
	}
	if s.port == nil || !s.adopted && !s.shut {
		return nil
	}
	if err := s.reopen(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The program has ended, and its port went with it: a gate that is gone shuts nothing.
	s.log.Warn("the tree's port is gone, as after the end of the program")
	s.shut = false
	return nil
}

// reopen connects the tree again: what it sends leaves, what was captured goes in first, in order.
func (s *source) reopen() error {
	s.owed = append(s.owed, s.frames.close()...)
	s.frames = nil
	if err := s.port.OpenEgress(); err != nil {
		return fmt.Errorf("opening the tree's port: %w", err)
	}
	if len(s.owed) > 0 {
		n, err := s.port.Deliver(s.owed)
		if err != nil { // the program must get its network back; TCP sends again what is lost
			s.log.Warn("captured frames are lost", "dropped", len(s.owed)-n, "error", err)
		}
		s.owed = nil
	}
	if err := s.port.OpenIngress(); err != nil {
		return fmt.Errorf("opening the tree's port: %w", err)
	}
	s.shut = false
	return nil
}

// stop ends the copying for good, and with it the tracking and the connections.
func (s *source) stop() error {
	s.work.stop(errSuperseded)
	s.frames.close()
	var errs []error
	if s.port != nil && s.stopped.IsZero() {
		errs = append(errs, s.port.Disarm())
	}
	if s.sender != nil {
		if err := s.sender.Close(); err != nil {
			s.log.Debug("the page stream had failed", "error", err)
		}
		s.sender = nil
	}
	if err := s.closeFiles(); err != nil {
		s.log.Debug("the connection for files had failed", "error", err)
	}
	if s.peer != nil {
		if s.held != nil { // it was not moved
			s.peer.giveUp(s.ctx, s.session(0), get(&s.view, func(v *view) string { return v.reason }))
		}
		errs = append(errs, s.peer.close())
		s.peer = nil
	}
	if s.tree != nil {
		errs = append(errs, s.tree.Close())
		s.tree = nil // held stays: the tree can still be let go
	} else if a, ok := s.held.(Adopted); ok {
		errs = append(errs, a.Leave(s.ctx))
	}
	return errors.Join(errs...)
}

// destroy ends the named copy, which the log shows to have been replaced.
func (s *source) destroy(ctx context.Context) error {
	s.work.stop(errSuperseded)
	s.frames.close()
	if s.held != nil {
		if err := s.held.Destroy(ctx); err != nil {
			return fmt.Errorf("destroying the copy that has moved away: %w", err)
		}
		s.held = nil
	}
	s.leaveFiles()
	return s.stop()
}

// opts returns the options as they are now.
func (s *source) opts() options { return get(&s.view, func(*view) options { return s.options }) }

// retune changes them.
func (s *source) retune(o *agentapi.MoveOptions) {
	s.view.set(func(*view) { s.options = s.options.retuned(o) }) // the copy reads them after each round
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func specJSON(spec *agentapi.WorkloadSpec) []byte {
	b, err := protojson.Marshal(spec)
	if err != nil {
		return nil // strings that are not UTF-8 do not get through gRPC in the first place
	}
	return b
}
