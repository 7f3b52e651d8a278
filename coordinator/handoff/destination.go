package handoff

import "fmt"

// DestinationPhase is where the destination of a migration stands.
type DestinationPhase uint8

const (
	DestinationIdle      DestinationPhase = iota
	DestinationExpecting                  // Peer.Prepare may come
	DestinationSkeleton                   // stopped, with its mappings; pages arrive
	DestinationPrepared                   // complete, stopped, gate shut; has voted
	DestinationAborted                    // Abort was read; a copy, complete or not, stays stopped
	DestinationResuming
	DestinationRunning  // end
	DestinationDeclined // will never run: broken, or its host rebooted
	DestinationGone     // end: destroyed
	DestinationLost     // end: it ran, and its host rebooted
	destinationPhases
)

var destinationNames = [...]string{"idle", "expecting", "skeleton", "prepared", "aborted", "resuming", "running", "declined",
	"gone", "lost"}

func (p DestinationPhase) String() string { return name(destinationNames[:], int(p)) }

// DestinationStage is how far the destination's durable record has come.
type DestinationStage uint8

const (
	DestinationNone DestinationStage = iota
	DestinationExpects
	DestinationHasPrepared // Ref.Attempt, Hash
	DestinationHasResumed  // `resuming`: written before it runs
	DestinationHasDeclined // `declined`: this instance will never run
	DestinationDestroying
)

var destinationStageNames = [...]string{"none", "expects", "prepared", "resuming", "declined", "destroying"}

func (s DestinationStage) String() string { return name(destinationStageNames[:], int(s)) }

// DestinationDisk is what the destination has durably written about the migration.
type DestinationDisk struct {
	Stage DestinationStage
	Ref   Ref
	Hash  Hash
}

// Destination is the state of the destination's agent for one migration. The zero value knows of none. It is
// comparable.
type Destination struct {
	Ref   Ref // Attempt is that of the finished copy, or the newest heard of
	Phase DestinationPhase
	Ended uint32 // this attempt and all before it are over
	Hash  Hash   // of the vote, while Prepared
	Disk  DestinationDisk
}

func (d Destination) String() string {
	return fmt.Sprintf("destination %v(%d, ended %d)", d.Phase, d.Ref.Attempt, d.Ended)
}

// DestinationEventKind is what can happen to a destination.
type DestinationEventKind uint8

const (
	DestinationOrdered   DestinationEventKind = iota + 1 // Order with Ref, from the leader or from a read of the log
	DestinationPeer                                      // Peer.Prepare: the skeleton was built
	DestinationFinished                                  // Peer.Finish of Ref.Attempt: complete, stopped, files flushed; Hash
	DestinationRan                                       // the copy runs
	DestinationBroken                                    // the copy died or cannot be completed
	DestinationRecovered                                 // the agent started again; Disk and Stopped are what it found
	DestinationRebooted                                  // the host started again; Disk is what it found
	destinationEvents
)

var destinationEventNames = [...]string{"none", "order", "peer", "finished", "ran", "broken", "recovered", "rebooted"}

// DestinationEvent is one event. Only the fields that its kind names are set.
type DestinationEvent struct {
	Kind  DestinationEventKind
	Ref   Ref
	Order OrderKind
	Hash  Hash
	Disk  DestinationDisk
	Whole bool // DestinationRecovered: the complete copy is still there, stopped or running; one that was let run may have ended
}

func (e DestinationEvent) String() string {
	if e.Kind == DestinationOrdered {
		return fmt.Sprintf("order %v for %v", e.Order, e.Ref)
	}
	return name(destinationEventNames[:], int(e.Kind))
}

// Step is the destination's one transition. An error is a *Refusal; the state is then unchanged and there is nothing
// to do. If an action fails the caller carries out no further one and feeds DestinationBroken; after `resuming` it
// tries to resume again instead, for from there nothing else is allowed to happen.
func (d Destination) Step(ev DestinationEvent) (Destination, []Action, error) {
	next, actions, err := d.step(ev)
	if err != nil {
		return d, nil, err
	}
	return next, actions, nil
}

func (d Destination) step(ev DestinationEvent) (Destination, []Action, error) {
	switch ev.Kind {
	case DestinationOrdered:
		return d.order(ev)
	case DestinationPeer:
		return d.peer(ev)
	case DestinationFinished:
		return d.finished(ev)
	case DestinationRan:
		if d.Phase != DestinationResuming {
			return d, nil, refuse(WrongPhase, d, ev)
		}
		d.Phase = DestinationRunning
		return d, []Action{d.report(ReportResumed)}, nil
	case DestinationBroken:
		return d.broken(ev)
	case DestinationRecovered:
		return d.recovered(ev)
	case DestinationRebooted:
		return d.rebooted(ev)
	}
	return d, nil, refuse(Unsupported, d, ev)
}

func (d Destination) order(ev DestinationEvent) (Destination, []Action, error) {
	if d.Phase == DestinationIdle {
		return d.first(ev)
	}
	if err := matches(d.Ref, ev.Ref, d, ev); err != nil {
		return d, nil, err
	}
	switch ev.Order {
	case OrderPrepareDestination:
		return d.again(ev)
	case OrderEndAttempt:
		return d.endAttempt(ev)
	case OrderAbort:
		return d.abort(ev)
	case OrderCommit:
		return d.commit(ev)
	case OrderDestroyCopy:
		return d.destroy(ev)
	}
	return d, nil, refuse(Unsupported, d, ev)
}

// first is an order to a destination that knows of no migration.
func (d Destination) first(ev DestinationEvent) (Destination, []Action, error) {
	switch ev.Order {
	case OrderPrepareDestination:
		d.Ref, d.Phase = ev.Ref, DestinationExpecting
		d.Disk = DestinationDisk{Stage: DestinationExpects, Ref: ev.Ref}
		return d, []Action{d.persist(), d.act(ActExpect), d.report(ReportReady)}, nil
	case OrderAbort: // over before it was heard of: a late PrepareDestination must find it ended
		d.Ref, d.Phase, d.Ended = ev.Ref, DestinationAborted, ev.Ref.Attempt
		d.Disk = DestinationDisk{Stage: DestinationExpects, Ref: ev.Ref}
		return d, []Action{d.persist()}, nil
	case OrderDestroyCopy: // there is none; never will be
		d.Ref, d.Phase = ev.Ref, DestinationGone
		d.Disk = DestinationDisk{Stage: DestinationDestroying, Ref: ev.Ref}
		return d, []Action{d.persist(), d.report(ReportCopyDestroyed)}, nil
	case OrderCommit, OrderEndAttempt: // a disk that was wiped is no evidence that the copy did not run
		return d, nil, refuse(WrongPhase, d, ev)
	}
	return d, nil, refuse(Unsupported, d, ev)
}

func (d Destination) again(ev DestinationEvent) (Destination, []Action, error) {
	switch d.Phase {
	case DestinationExpecting, DestinationSkeleton:
		return d, []Action{d.report(ReportReady)}, nil
	case DestinationDeclined:
		return d, []Action{d.report(ReportDeclined)}, nil
	}
	return d, nil, refuse(WrongPhase, d, ev)
}

func (d Destination) peer(ev DestinationEvent) (Destination, []Action, error) {
	if err := matches(d.Ref, ev.Ref, d, ev); err != nil {
		return d, nil, err
	}
	if d.Phase != DestinationExpecting {
		return d, nil, refuse(WrongPhase, d, ev)
	}
	d.Phase = DestinationSkeleton
	return d, nil, nil
}

// finished: `prepared` is durable before the source hears of it and before the vote leaves.
func (d Destination) finished(ev DestinationEvent) (Destination, []Action, error) {
	if err := matches(d.Ref, ev.Ref, d, ev); err != nil {
		return d, nil, err
	}
	k := ev.Ref.Attempt
	switch {
	case d.Phase != DestinationSkeleton:
		return d, nil, refuse(WrongPhase, d, ev)
	case k == 0 || k <= d.Ended || ev.Hash == "":
		return d, nil, refuse(StaleAttempt, d, ev)
	}
	d.Ref.Attempt, d.Phase, d.Hash = k, DestinationPrepared, ev.Hash
	d.Disk = DestinationDisk{Stage: DestinationHasPrepared, Ref: d.Ref, Hash: d.Hash}
	return d, []Action{d.persist(), d.vote(ActAnswerFinish), d.vote(ActRequestCommit)}, nil
}

func (d Destination) endAttempt(ev DestinationEvent) (Destination, []Action, error) {
	k := ev.Ref.Attempt
	switch d.Phase {
	case DestinationExpecting, DestinationSkeleton:
		d.Ended = max(d.Ended, k)
		return d, nil, nil
	case DestinationPrepared:
		d.Ended = max(d.Ended, k)
		if d.Ref.Attempt > d.Ended { // of an earlier one
			return d, nil, nil
		}
		d.Phase, d.Hash = DestinationSkeleton, ""
		d.Disk = DestinationDisk{Stage: DestinationExpects, Ref: d.Ref}
		return d, []Action{d.persist(), d.act(ActRewind)}, nil
	case DestinationDeclined:
		return d, []Action{d.report(ReportDeclined)}, nil
	}
	return d, nil, refuse(WrongPhase, d, ev)
}

// abort keeps the stopped copy: only DestroyCopy, which rests on the source's own word, ends it.
func (d Destination) abort(ev DestinationEvent) (Destination, []Action, error) {
	switch d.Phase {
	case DestinationExpecting, DestinationSkeleton, DestinationPrepared:
		if ev.Ref.Attempt < d.Ref.Attempt {
			return d, nil, refuse(StaleAttempt, d, ev)
		}
		d.Phase, d.Ended = DestinationAborted, ev.Ref.Attempt
		return d, []Action{d.act(ActAsk)}, nil
	case DestinationAborted, DestinationDeclined, DestinationGone:
		return d, nil, nil
	}
	return d, nil, refuse(WrongPhase, d, ev)
}

// commit is what lets it run: exactly one of `resuming` and `declined` is ever written.
func (d Destination) commit(ev DestinationEvent) (Destination, []Action, error) {
	switch d.Phase {
	case DestinationPrepared:
		if ev.Ref.Attempt != d.Ref.Attempt {
			return d, nil, refuse(StaleAttempt, d, ev)
		}
		return d.resume()
	case DestinationAborted: // the source lost its copy without having run: this one is all there is, if it is whole
		if d.Hash != "" && ev.Ref.Attempt == d.Ref.Attempt {
			return d.resume()
		}
		return d.decline()
	case DestinationExpecting, DestinationSkeleton: // likewise; the Abort was missed
		return d.decline()
	case DestinationResuming:
		return d, nil, nil
	case DestinationRunning:
		return d, []Action{d.report(ReportResumed)}, nil
	case DestinationDeclined:
		return d, []Action{d.report(ReportDeclined)}, nil
	case DestinationLost:
		return d, []Action{d.lost()}, nil
	}
	return d, nil, refuse(WrongPhase, d, ev)
}

func (d Destination) resume() (Destination, []Action, error) {
	d.Phase = DestinationResuming
	d.Disk.Stage = DestinationHasResumed
	return d, []Action{d.persist(), d.act(ActResume)}, nil
}

// destroy names the instance (matches has compared it). It never hits a copy that may run.
func (d Destination) destroy(ev DestinationEvent) (Destination, []Action, error) {
	switch d.Phase {
	case DestinationExpecting, DestinationSkeleton, DestinationPrepared, DestinationAborted, DestinationDeclined:
		d.Phase, d.Hash, d.Ended = DestinationGone, "", max(d.Ended, ev.Ref.Attempt)
		d.Disk = DestinationDisk{Stage: DestinationDestroying, Ref: d.Ref}
		return d, []Action{d.persist(), d.act(ActDestroy), d.report(ReportCopyDestroyed)}, nil
	case DestinationGone, DestinationLost:
		return d, []Action{d.report(ReportCopyDestroyed)}, nil
	}
	return d, nil, refuse(WrongPhase, d, ev)
}

func (d Destination) broken(ev DestinationEvent) (Destination, []Action, error) {
	switch d.Phase {
	case DestinationExpecting, DestinationSkeleton, DestinationPrepared:
		return d.decline()
	case DestinationAborted: // it may have been all there is
		return d.decline()
	case DestinationDeclined, DestinationGone:
		return d, nil, nil
	}
	return d, nil, refuse(WrongPhase, d, ev)
}

func (d Destination) decline() (Destination, []Action, error) {
	d.Phase, d.Hash = DestinationDeclined, ""
	d.Disk = DestinationDisk{Stage: DestinationHasDeclined, Ref: d.Ref}
	return d, []Action{d.persist(), d.report(ReportDeclined), d.act(ActAsk)}, nil
}

// recovered: a skeleton dies with its tracer, a finished copy outlives the agent in its frozen cgroup.
func (d Destination) recovered(ev DestinationEvent) (Destination, []Action, error) {
	if d.Phase != DestinationIdle {
		return d, nil, refuse(WrongPhase, d, ev)
	}
	d.Disk, d.Ref, d.Hash = ev.Disk, ev.Disk.Ref, ev.Disk.Hash
	switch ev.Disk.Stage {
	case DestinationNone:
		return d, nil, nil
	case DestinationExpects:
		return d.decline()
	case DestinationHasPrepared:
		if !ev.Whole {
			return d.decline()
		}
		d.Phase, d.Ended = DestinationPrepared, d.Ref.Attempt-1
		return d, []Action{d.vote(ActRequestCommit)}, nil
	case DestinationHasResumed:
		if !ev.Whole { // it ran, and has gone on to another host since
			d.Phase, d.Ended = DestinationLost, d.Ref.Attempt
			return d, []Action{d.lost()}, nil
		}
		d.Phase = DestinationResuming
		return d, []Action{d.act(ActResume)}, nil
	case DestinationHasDeclined:
		d.Phase, d.Hash = DestinationDeclined, ""
		return d, []Action{d.report(ReportDeclined), d.act(ActAsk)}, nil
	case DestinationDestroying:
		d.Phase = DestinationGone
		return d, []Action{d.act(ActDestroy), d.report(ReportCopyDestroyed)}, nil
	}
	return d, nil, refuse(Unsupported, d, ev)
}

func (d Destination) rebooted(ev DestinationEvent) (Destination, []Action, error) {
	if d.Phase != DestinationIdle {
		return d, nil, refuse(WrongPhase, d, ev)
	}
	d.Disk, d.Ref, d.Ended = ev.Disk, ev.Disk.Ref, ev.Disk.Ref.Attempt
	switch ev.Disk.Stage {
	case DestinationNone:
		return d, nil, nil
	case DestinationExpects, DestinationHasPrepared, DestinationHasDeclined:
		return d.decline()
	case DestinationHasResumed:
		d.Phase = DestinationLost
		return d, []Action{d.lost()}, nil
	case DestinationDestroying:
		d.Phase = DestinationGone
		return d, []Action{d.report(ReportCopyDestroyed)}, nil
	}
	return d, nil, refuse(Unsupported, d, ev)
}

func (d Destination) act(k ActionKind) Action { return Action{Kind: k, Ref: d.Ref} }

func (d Destination) persist() Action { return d.act(ActPersist) }

func (d Destination) report(r ReportKind) Action {
	return Action{Kind: ActReport, Ref: d.Ref, Report: r}
}

func (d Destination) vote(k ActionKind) Action {
	return Action{Kind: k, Ref: d.Ref, Hash: d.Hash}
}

func (d Destination) lost() Action {
	a := d.report(ReportLostCopy)
	a.Ran = true
	return a
}
