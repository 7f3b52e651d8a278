package move

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
	"migrate/engine/span"
	"migrate/pagexfer"
)

// destination is the hands of a destination: the skeleton, its port, the pages that arrive.
type destination struct {
	m    *Manager
	log  *slog.Logger
	loop *loop[handoff.Destination, handoff.DestinationEvent]
	link *link
	ctx  context.Context

	id       handoff.Ref // incarnation, migration, instance; never changes
	epoch    uint64      // before the commit
	peer     uint64      // the source's copy
	from     string      // the source's host
	rec      Record      // as it is on disk
	file     *file
	workload string
	spec     *agentapi.WorkloadSpec
	options  *agentapi.MoveOptions // of the order
	work     task                  // the request to commit
	held     Held                  // the skeleton, or what was adopted after a restart

	mu       sync.Mutex // of what the peer's calls and the loop share
	skeleton Skeleton
	port     Port
	token    []byte
	receiver *pagexfer.Receiver
	filesIn  *filesIn           // nil until files are expected
	call     context.CancelFunc // of the peer's call that works on the skeleton; nil when none does
	called   chan struct{}      // closed when that call has ended
	closing  bool               // the copy is being destroyed for good: no call may work on it any more
	stopped  time.Duration
	steps    *span.Recorder // of the last switch; nil when none was begun
	quiet    time.Duration
	timeouts []Timeouts // at the source, in the last switch
	arriving frames
	answer   chan handoff.Hash // of the Finish that waits; nil when none does
	view     view
}

// do carries out one action of the machine.
func (d *destination) do(ctx context.Context, a handoff.Action, next handoff.Destination) error {
	switch a.Kind {
	case handoff.ActPersist:
		return d.persist(next)
	case handoff.ActReport:
		d.report(a)
	case handoff.ActAsk:
		d.link.ask(d.ctx, a.Ref.Migration, d.asking)
	case handoff.ActExpect:
		// From here on the peer's Prepare finds this migration in the table.
	case handoff.ActAnswerFinish:
		d.answerFinish(a.Hash)
	case handoff.ActRequestCommit:
		d.work.start(d.ctx, func(ctx context.Context) { d.requestCommit(ctx, a) })
	case handoff.ActRewind:
		// A finished copy holds sockets, descriptors and registers that a later state need not have: there is no way
		// back to a skeleton. It stays frozen until the source has another one built in its place (prepare).
	case handoff.ActResume:
		return d.resume(ctx)
	case handoff.ActDestroy:
		return d.destroy(ctx)
	default:
		return fmt.Errorf("the destination has no action %v", a)
	}
	return nil
}

// failed: a destination that cannot even make its record has not heard of the migration. Until `resuming` is ordered one that cannot
// go on declines. After it there is only trying again.
func (d *destination) failed(ev handoff.DestinationEvent, a handoff.Action, next handoff.Destination, err error) (handoff.DestinationEvent, verdict) {
	broken := handoff.DestinationEvent{Kind: handoff.DestinationBroken, Ref: next.Ref}
	d.view.set(func(v *view) { v.reason = err.Error() })
	switch {
	case d.file == nil && a.Kind == handoff.ActPersist:
		return broken, undo
	case next.Phase == handoff.DestinationSkeleton, next.Phase == handoff.DestinationExpecting, next.Phase == handoff.DestinationPrepared:
		return broken, feed
	}
	return broken, again
}

func (d *destination) settled(st handoff.Destination) {
	over := st.Phase == handoff.DestinationRunning || st.Phase == handoff.DestinationGone || st.Phase == handoff.DestinationLost
	d.m.settled(d.id, handoff.RoleDestination, over)
	if st.Phase == handoff.DestinationDeclined || st.Phase == handoff.DestinationGone || st.Phase == handoff.DestinationAborted {
		d.answerFinish("")
	}
}

func (d *destination) asking() bool {
	switch d.m.phaseOfDestination(d.id) {
	case handoff.DestinationAborted, handoff.DestinationDeclined:
		return true
	}
	return false
}

func (d *destination) persist(next handoff.Destination) error {
	rec := d.rec
	rec.Destination = next.Disk
	d.mu.Lock()
	if d.skeleton != nil {
		rec.Handle = d.skeleton.Handle()
	}
	defer d.step("make durable")()
	d.mu.Unlock()
	if d.file == nil {
		f, err := claim(&rec, recordPath(d.m.cfg.Dir, next.Disk.Ref, handoff.RoleDestination))
		if err != nil {
			return err
		}
		d.file = f
	}
	if err := d.file.write(&rec); err != nil {
		return err
	}
	d.rec = rec
	return nil
}

func (d *destination) report(a handoff.Action) {
	req := d.link.request(a.Ref)
	reason := get(&d.view, func(v *view) string { return v.reason })
	switch a.Report {
	case handoff.ReportReady:
		req.Event = &clusterapi.ReportRequest_Ready{Ready: &clusterapi.Ready{}}
	case handoff.ReportResumed:
		req.Event = &clusterapi.ReportRequest_Resumed{Resumed: d.resumed()}
	case handoff.ReportDeclined:
		req.Event = &clusterapi.ReportRequest_Declined{Declined: &clusterapi.Declined{Reason: reason}}
	case handoff.ReportCopyDestroyed:
		req.Event = &clusterapi.ReportRequest_CopyDestroyed{CopyDestroyed: &clusterapi.CopyDestroyed{}}
	case handoff.ReportLostCopy:
		req.Event = &clusterapi.ReportRequest_LostCopy{LostCopy: &clusterapi.LostCopy{Reason: reason, Ran: a.Ran}}
	default:
		d.log.Error("a report that the protocol has no message for", "report", a.Report.String())
		return
	}
	d.link.say(a.String(), req)
}

// step begins a step of the switch, if one was begun; the function that it returns ends it. The lock must be held.
func (d *destination) step(name string) (end func()) {
	if d.steps == nil {
		return func() {}
	}
	rec, start := d.steps, time.Now()
	return func() { rec.Add(name, start, time.Since(start)) }
}

func (d *destination) resumed() *clusterapi.Resumed {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &clusterapi.Resumed{Pid: int32(d.rec.Handle.PID), DowntimeMs: ms(get(&d.view, func(v *view) time.Duration { return v.down }))}
	if d.skeleton != nil {
		r.Connections = d.skeleton.Connections()
	}
	r.Steps = stepsOf(d.steps, d.m.cfg.Node)
	return r
}

// requestCommit brings the vote and waits for the log's decision, again and again until there is one.
func (d *destination) requestCommit(ctx context.Context, a handoff.Action) {
	d.mu.Lock()
	end := d.step("decide")
	d.mu.Unlock()
	req := &clusterapi.RequestCommitRequest{Ref: refTo(a.Ref, d.epoch), Node: d.m.cfg.Node, BootId: d.m.cfg.BootID, Hash: []byte(a.Hash)}
	for wait := 10 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, time.Second) {
		reply, err := d.m.cfg.Cluster.RequestCommit(ctx, req)
		order := handoff.OrderNone
		if err == nil {
			order = decisions[reply.GetDecision()]
		}
		if order != handoff.OrderNone {
			end()
			d.loop.post(ctx, handoff.DestinationEvent{Kind: handoff.DestinationOrdered, Order: order, Ref: a.Ref})
			return
		}
		d.log.Debug("no decision yet", "error", err)
		if !pause(ctx, wait) {
			return
		}
		if r, err := d.link.read(ctx, a.Ref.Migration); err == nil {
			d.link.follow(ctx, r)
		}
	}
}

var decisions = map[clusterapi.Decision]handoff.OrderKind{
	clusterapi.Decision_DECISION_COMMITTED:     handoff.OrderCommit,
	clusterapi.Decision_DECISION_ATTEMPT_ENDED: handoff.OrderEndAttempt,
	clusterapi.Decision_DECISION_ABORTED:       handoff.OrderAbort,
}

// resume lets the copy run. `resuming` is durable by now.
func (d *destination) resume(ctx context.Context) error {
	d.mu.Lock()
	sk, port := d.skeleton, d.port
	end := d.step("resume")
	d.mu.Unlock()
	if d.held == nil {
		return fmt.Errorf("copy %d is not here any more", d.id.Instance)
	}
	d.endFiles()
	if port != nil {
		if err := port.OpenEgress(); err != nil {
			return err
		}
	}
	var probes [][]byte
	if sk != nil {
		var err error
		if probes, err = sk.Release(ctx); err != nil {
			return err
		}
	}
	if err := d.held.Thaw(ctx); err != nil {
		return err
	}
	end()
	if d.stopped != 0 {
		down := monotonic() - d.stopped
		d.view.set(func(v *view) { v.down = down })
	}
	if port != nil {
		d.m.tasks.Go(func() { d.connect(d.m.ctx, port, probes) })
	} else {
		d.ran(d.m.ctx)
	}
	if err := d.m.cfg.Host.Owned(ctx, d.rec.Handle, d.epoch+1); err != nil {
		d.log.Error("the copy runs, but its record could not be written", "error", err)
	}
	d.m.tasks.Go(func() {
		if err := d.m.cfg.Store.Keep(d.id.Instance); err != nil {
			d.log.Error("the record of the copy's files could not be written", "error", err)
		}
	})
	return nil
}

// settleTime bounds how long the report that the copy runs waits for the connections. A restored connection that has not measured the
// round trip sends a probe after 1 s, and its first time-out passes 3 s later (TCP_TIMEOUT_INIT, TCP_TIMEOUT_FALLBACK of net/tcp.h).
const settleTime = 5 * time.Second

// ran reports that the copy runs, once it is known how its connections took the move. The loop does not wait for it.
func (d *destination) ran(ctx context.Context) {
	d.m.tasks.Go(func() {
		d.mu.Lock()
		sk, before := d.skeleton, d.timeouts
		d.mu.Unlock()
		if sk != nil {
			bounded, cancel := context.WithTimeout(ctx, settleTime)
			defer cancel()
			if err := sk.Settled(bounded, before); err != nil {
				d.log.Warn("how the connections took the move is not known", "error", err)
			}
		}
		d.loop.post(d.ctx, handoff.DestinationEvent{Kind: handoff.DestinationRan, Ref: d.id})
	})
}

// announcePauses are between repeated announcements: one can get lost.
var announcePauses = []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second}

// connect lets the network in, in the order of agent/port: the address is announced, what the source had captured goes
// in first, then what was captured here.
func (d *destination) connect(ctx context.Context, port Port, probes [][]byte) {
	report := func(what string, err error) {
		if err != nil {
			d.log.Error("connecting the moved tree", "step", what, "error", err)
		}
	}
	report("announce", port.Announce(ctx))
	n, err := d.arriving.drain(ctx, d.quiet, port.Deliver)
	report("deliver", err)
	report("probe", port.DeliverPackets(probes))
	report("open", port.OpenIngress())
	d.arriving.pass(port.Deliver)
	d.ran(ctx)
	d.log.Info("the network is connected", "captured frames delivered", n)
	if lost := d.arriving.lost(); lost > 0 {
		d.log.Warn("captured frames found no room", "dropped", lost)
	}
	if err := port.Announce(ctx, announcePauses...); err != nil {
		d.log.Debug("the address was not announced again", "error", err) // the copy may have moved on by now
	}
	if err := port.Disarm(); err != nil {
		d.log.Debug("the capture was not taken away", "error", err)
	}
}

// destroy removes the stopped copy, complete or not.
func (d *destination) destroy(ctx context.Context) error {
	d.work.stop(errSuperseded)
	d.mu.Lock()
	d.closing, d.token = true, nil // no call and no page connection is accepted any more
	d.mu.Unlock()
	d.interrupt()
	d.mu.Lock()
	pages := d.receiver
	d.mu.Unlock()
	if pages != nil {
		pages.Close() // nor does one that was write to the copy
	}
	d.endFiles()
	if d.held != nil {
		if err := d.held.Destroy(ctx); err != nil {
			return fmt.Errorf("destroying the copy: %w", err)
		}
		d.held = nil
	}
	if err := d.m.cfg.Store.Abort(d.id.Instance); err != nil {
		return fmt.Errorf("removing the copy's files: %w", err)
	}
	return nil
}

// refuseCall is the error of a peer's call that does not fit the state.
func refuseCall(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}

// enter claims the skeleton for one call of the peer's; leave gives it back. The context ends with interrupt.
func (d *destination) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closing:
		return nil, nil, refuseCall("the copy is being destroyed")
	case d.call != nil:
		return nil, nil, refuseCall("another call works on the copy")
	}
	ctx, d.call = context.WithCancel(ctx)
	cancel, called := d.call, make(chan struct{})
	d.called = called
	return ctx, func() {
		cancel()
		d.mu.Lock()
		d.call = nil
		d.mu.Unlock()
		close(called)
	}, nil
}

// interrupt ends the peer's call that works on the skeleton, if there is one.
func (d *destination) interrupt() {
	d.mu.Lock()
	cancel, called := d.call, d.called
	d.mu.Unlock()
	if cancel != nil {
		cancel()
		<-called
	}
}

// prepare builds the skeleton.
func (d *destination) prepare(ctx context.Context, req *agentapi.PrepareRequest) (*agentapi.PrepareReply, error) {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	first := false
	switch d.m.phaseOfDestination(d.id) {
	case handoff.DestinationExpecting:
		first = true
	case handoff.DestinationSkeleton:
		if err := d.removeOld(ctx); err != nil {
			d.broken(err)
			return nil, status.Error(codes.Internal, err.Error())
		}
	default:
		return nil, refuseCall("this host does not expect the copy, or does not know yet that an attempt is over")
	}
	var extra prepareExtra
	if err := json.Unmarshal(req.GetExtra(), &extra); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "what goes with the layout: %v", err)
	}
	sk, port, obstacles, err := d.m.cfg.Host.Build(ctx, Build{Instance: d.id.Instance, Epoch: d.epoch, Spec: d.spec,
		Layout: req.GetLayout(), Clocks: extra.Clocks, Addrs: extra.Addrs})
	if err != nil {
		d.broken(err)
		return nil, status.Error(codes.Internal, err.Error())
	}
	if len(obstacles) > 0 {
		return &agentapi.PrepareReply{Obstacles: ObstaclesTo(d.m.cfg.Node, obstacles)}, nil
	}
	d.held = sk
	token := []byte(rand.Text())
	d.mu.Lock()
	d.skeleton, d.port, d.token, d.receiver = sk, port, token, pagexfer.NewReceiver(sk)
	d.mu.Unlock()
	if port != nil {
		if err := port.Arm(ctx); err != nil {
			d.broken(err)
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	if !first {
		return &agentapi.PrepareReply{PagesAddress: d.m.cfg.PagesAddress, Token: token}, nil
	}
	if err := d.loop.call(ctx, handoff.DestinationEvent{Kind: handoff.DestinationPeer, Ref: d.id}); err != nil {
		// Ended meanwhile; whoever ended it has waited for this call and now removes the copy.
		return nil, refuseCall("%v", err)
	}
	return &agentapi.PrepareReply{PagesAddress: d.m.cfg.PagesAddress, Token: token}, nil
}

// removeOld destroys a copy that was completed for an attempt that has ended, so that another can be built. The machine's
// phase says that it does not run and has not been voted for.
func (d *destination) removeOld(ctx context.Context) error {
	d.mu.Lock()
	old := d.receiver
	d.skeleton, d.port, d.token, d.receiver = nil, nil, nil, nil
	d.mu.Unlock()
	if old != nil {
		old.Close()
	}
	d.arriving.take()
	if d.held == nil {
		return nil
	}
	if err := d.held.Destroy(ctx); err != nil {
		return err
	}
	d.held = nil
	return nil
}

// broken tells the machine that the copy cannot be completed.
func (d *destination) broken(err error) {
	d.log.Warn("the copy cannot be completed", "error", err)
	d.view.set(func(v *view) { v.reason = err.Error() })
	d.loop.post(d.ctx, handoff.DestinationEvent{Kind: handoff.DestinationBroken, Ref: d.id})
}

func (d *destination) follow(ctx context.Context, layout []byte) error {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if d.skeleton == nil || d.m.phaseOfDestination(d.id) != handoff.DestinationSkeleton {
		return refuseCall("there is no skeleton that could follow")
	}
	if err := d.skeleton.Follow(ctx, layout); err != nil {
		d.broken(err)
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// finish completes the copy. It returns when the machine has made it durable and its vote may leave.
func (d *destination) finish(ctx context.Context, h *agentapi.FinishHeader, checkpoint []byte) (*agentapi.FinishReply, error) {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if d.skeleton == nil || d.m.phaseOfDestination(d.id) != handoff.DestinationSkeleton {
		return nil, refuseCall("there is no skeleton that could be completed")
	}
	var extra finishExtra
	if err := json.Unmarshal(h.GetExtra(), &extra); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "header of the checkpoint: %v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(h.GetDeadlineNs())-monotonic())
	defer cancel()
	rec := sinceStop(time.Duration(h.GetStoppedAtNs()))
	d.mu.Lock()
	d.steps = rec
	d.mu.Unlock()
	in, end := span.Begin(span.With(ctx, rec), "complete")
	digest, err := d.complete(in, extra, checkpoint)
	end()
	if err != nil {
		// The source ends the attempt. What has become of the copy is not known: the next attempt builds another.
		d.log.Warn("the copy could not be completed", "error", err)
		return nil, status.Error(codes.Internal, err.Error())
	}
	hash := stateHash(checkpoint, digest)
	answer := make(chan handoff.Hash, 1)
	d.mu.Lock()
	d.answer, d.stopped, d.quiet, d.timeouts = answer, time.Duration(h.GetStoppedAtNs()), extra.Quiet, extra.Timeouts
	d.mu.Unlock()
	ref := withAttempt(d.id, h.GetSession().GetAttempt())
	if err := d.loop.call(ctx, handoff.DestinationEvent{Kind: handoff.DestinationFinished, Ref: ref, Hash: hash}); err != nil {
		return nil, refuseCall("%v", err)
	}
	select {
	case voted := <-answer:
		if voted != hash {
			return nil, refuseCall("the copy was given up")
		}
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return &agentapi.FinishReply{Digest: digest, Hash: []byte(hash)}, nil
}

func (d *destination) complete(ctx context.Context, extra finishExtra, checkpoint []byte) ([]byte, error) {
	if d.port != nil && len(extra.Neighbours) > 0 {
		if err := d.port.InstallNeighbours(ctx, extra.Neighbours); err != nil {
			return nil, err
		}
	}
	if err := d.skeleton.Finish(ctx, checkpoint); err != nil {
		return nil, err
	}
	return d.skeleton.Digest(ctx)
}

// answerFinish lets the Finish that waits answer its peer, with the hash of the vote or, when there is none, an error.
func (d *destination) answerFinish(hash handoff.Hash) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.answer != nil {
		d.answer <- hash
		d.answer = nil
	}
}

// accepts says whether a page connection presents this migration's token.
func (d *destination) accepts(token []byte) *pagexfer.Receiver {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.token) == 0 || subtle.ConstantTimeCompare(token, d.token) != 1 {
		return nil
	}
	return d.receiver
}
