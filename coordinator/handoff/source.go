package handoff

import "fmt"

// SourcePhase is where the source of a migration stands.
type SourcePhase uint8

const (
	SourceIdle SourcePhase = iota
	SourcePreparing
	SourcePrepared
	SourceCopying
	SourceSwitching // frozen or about to be; has not voted
	SourceVoted     // frozen; only the log moves it
	SourceUndecided // frozen, found by a restarted agent: may have voted, never votes again
	SourceHeld      // Commit was read
	SourceFailed    // runs; asks for the end of the migration
	SourceRunning   // end: runs
	SourceReleased  // end: destroyed
	SourceLost      // end: the host rebooted
	sourcePhases
)

var sourceNames = [...]string{"idle", "preparing", "prepared", "copying", "switching", "voted", "undecided", "held", "failed",
	"running", "released", "lost"}

func (p SourcePhase) String() string { return name(sourceNames[:], int(p)) }

// SourceStage is how far the source's durable record has come.
type SourceStage uint8

const (
	SourceNone         SourceStage = iota
	SourceClaimed                  // the tree belongs to this migration
	SourceMayHaveVoted             // for Attempt
	SourceEnded                    // Attempt is over, the tree runs, the migration goes on
	SourceResuming                 // Abort or Revert was read, the tree runs for good
	SourceReleasing                // Release was read
)

var sourceStageNames = [...]string{"none", "claimed", "may-have-voted", "ended", "resuming", "releasing"}

func (s SourceStage) String() string { return name(sourceStageNames[:], int(s)) }

// SourceDisk is what the source has durably written about the migration. Ref.Attempt is the newest attempt.
type SourceDisk struct {
	Stage SourceStage
	Ref   Ref
}

// Source is the state of the source's agent for one migration. The zero value knows of none. It is comparable.
type Source struct {
	Ref   Ref // Attempt is the newest attempt that was heard of
	Phase SourcePhase
	Ended uint32 // this attempt and all before it are over here
	Hash  Hash   // of the vote, while Voted
	Disk  SourceDisk
}

func (s Source) String() string {
	return fmt.Sprintf("source %v(%d, ended %d)", s.Phase, s.Ref.Attempt, s.Ended)
}

// SourceEventKind is what can happen to a source.
type SourceEventKind uint8

const (
	SourceOrdered   SourceEventKind = iota + 1 // Order with Ref, from the leader or from a read of the log
	SourceSkeleton                             // the destination's skeleton stands
	SourceConverged                            // a switch would keep the bound
	SourceFinished                             // Peer.Finish answered for Ref.Attempt; the digests are equal; Hash
	SourceFault                                // a link, the peer, a bound, a write: whatever stops the work at hand
	SourceRecovered                            // the agent started again; Disk and Frozen are what it found
	SourceRebooted                             // the host started again; Disk is what it found
	sourceEvents
)

var sourceEventNames = [...]string{"none", "order", "skeleton", "converged", "finished", "fault", "recovered", "rebooted"}

// SourceEvent is one event. Only the fields that its kind names are set.
type SourceEvent struct {
	Kind   SourceEventKind
	Ref    Ref
	Order  OrderKind
	Hash   Hash
	Disk   SourceDisk
	Frozen bool // SourceRecovered: the cgroup says `frozen 1`
}

func (e SourceEvent) String() string {
	if e.Kind == SourceOrdered {
		return fmt.Sprintf("order %v for %v", e.Order, e.Ref)
	}
	return name(sourceEventNames[:], int(e.Kind))
}

// Step is the source's one transition. An error is a *Refusal; the state is then unchanged and there is nothing to do.
//
// The state that it returns holds once the actions were carried out, in order. If one fails the caller carries out
// no further one and feeds SourceFault: before the vote that ends the attempt, after it only the log does.
func (s Source) Step(ev SourceEvent) (Source, []Action, error) {
	next, actions, err := s.step(ev)
	if err != nil {
		return s, nil, err
	}
	return next, actions, nil
}

func (s Source) step(ev SourceEvent) (Source, []Action, error) {
	switch ev.Kind {
	case SourceOrdered:
		return s.order(ev)
	case SourceSkeleton:
		if s.Phase != SourcePreparing {
			return s, nil, refuse(WrongPhase, s, ev)
		}
		s.Phase = SourcePrepared
		return s, []Action{s.report(ReportPrepared)}, nil
	case SourceConverged:
		if s.Phase != SourceCopying {
			return s, nil, refuse(WrongPhase, s, ev)
		}
		return s, []Action{s.report(ReportConverged)}, nil
	case SourceFinished:
		return s.finished(ev)
	case SourceFault:
		return s.fault(ev)
	case SourceRecovered:
		return s.recovered(ev)
	case SourceRebooted:
		return s.rebooted(ev)
	}
	return s, nil, refuse(Unsupported, s, ev)
}

// order checks the names and goes to the order's own function.
func (s Source) order(ev SourceEvent) (Source, []Action, error) {
	if s.Phase == SourceIdle {
		return s.first(ev)
	}
	if err := matches(s.Ref, ev.Ref, s, ev); err != nil {
		return s, nil, err
	}
	switch ev.Order {
	case OrderPrepareSource:
		return s.again(ev)
	case OrderCopy:
		return s.copy(ev)
	case OrderSwitch:
		return s.startSwitch(ev)
	case OrderEndAttempt:
		return s.endAttempt(ev)
	case OrderAbort:
		return s.abort(ev)
	case OrderCommit:
		return s.commit(ev)
	case OrderRevert:
		return s.revert(ev)
	case OrderRelease:
		return s.release(ev)
	}
	return s, nil, refuse(Unsupported, s, ev)
}

// first is an order to a source that knows of no migration.
func (s Source) first(ev SourceEvent) (Source, []Action, error) {
	switch ev.Order {
	case OrderPrepareSource:
		s.Ref, s.Phase = ev.Ref, SourcePreparing
		s.Disk = SourceDisk{Stage: SourceClaimed, Ref: ev.Ref}
		return s, []Action{s.persist(), s.act(ActBuild)}, nil
	case OrderAbort: // over before it was heard of: a late PrepareSource must find it ended
		s.Ref, s.Phase, s.Ended = ev.Ref, SourceRunning, ev.Ref.Attempt
		s.Disk = SourceDisk{Stage: SourceResuming, Ref: ev.Ref}
		return s, []Action{s.persist(), s.report(ReportConfirmed)}, nil
	case OrderCopy, OrderSwitch, OrderEndAttempt, OrderCommit, OrderRevert, OrderRelease:
		return s, nil, refuse(WrongPhase, s, ev)
	}
	return s, nil, refuse(Unsupported, s, ev)
}

// again is a repeated PrepareSource: say again what became of it.
func (s Source) again(ev SourceEvent) (Source, []Action, error) {
	switch s.Phase {
	case SourcePreparing:
		return s, nil, nil
	case SourcePrepared:
		return s, []Action{s.report(ReportPrepared)}, nil
	case SourceFailed:
		return s, []Action{s.report(ReportFailed)}, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

func (s Source) copy(ev SourceEvent) (Source, []Action, error) {
	switch s.Phase {
	case SourcePrepared:
		s.Phase = SourceCopying
		return s, []Action{s.act(ActCopy)}, nil
	case SourceCopying:
		return s, nil, nil
	case SourceFailed:
		return s, []Action{s.report(ReportFailed)}, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

func (s Source) startSwitch(ev SourceEvent) (Source, []Action, error) {
	k := ev.Ref.Attempt
	switch {
	case s.Phase == SourceFailed, s.Phase == SourceUndecided && k == s.Ref.Attempt:
		return s, []Action{s.report(ReportFailed)}, nil
	case k <= s.Ended && s.Phase == SourceCopying: // ended here by its own decision
		return s, []Action{s.at(k).report(ReportAttemptEnded)}, nil
	case k <= s.Ended || k < s.Ref.Attempt:
		return s, nil, refuse(StaleAttempt, s, ev)
	case s.Phase == SourceCopying:
		s.Ref.Attempt, s.Phase = k, SourceSwitching
		s.Disk = SourceDisk{Stage: SourceMayHaveVoted, Ref: s.Ref}
		return s, []Action{s.persist(), s.act(ActFreeze), s.act(ActFinish)}, nil
	case s.Phase == SourceSwitching && k == s.Ref.Attempt:
		return s, nil, nil
	case s.Phase == SourceVoted && k == s.Ref.Attempt: // the leader may be a new one
		return s, []Action{s.vote()}, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

// finished: the destination holds a complete stopped copy. The vote is the last thing that the source decides.
func (s Source) finished(ev SourceEvent) (Source, []Action, error) {
	if s.Phase != SourceSwitching {
		return s, nil, refuse(WrongPhase, s, ev)
	}
	if ev.Ref.Attempt != s.Ref.Attempt || ev.Hash == "" {
		return s, nil, refuse(StaleAttempt, s, ev)
	}
	s.Phase, s.Hash = SourceVoted, ev.Hash
	return s, []Action{s.vote(), s.act(ActAsk)}, nil
}

// fault: before the vote the source runs, by its own decision; after it silence and errors mean nothing.
func (s Source) fault(ev SourceEvent) (Source, []Action, error) {
	switch s.Phase {
	case SourcePreparing, SourcePrepared, SourceCopying:
		s.Phase = SourceFailed
		return s, []Action{s.act(ActStop), s.report(ReportFailed), s.act(ActAsk)}, nil
	case SourceSwitching:
		k := s.Ref.Attempt
		s.Phase, s.Ended = SourceCopying, k
		s.Disk = SourceDisk{Stage: SourceEnded, Ref: s.Ref}
		return s, []Action{s.persist(), s.act(ActThaw), s.report(ReportAttemptEnded), s.act(ActCopy)}, nil
	case SourceVoted, SourceUndecided:
		return s, []Action{s.act(ActAsk)}, nil
	case SourceFailed, SourceHeld:
		return s, nil, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

// endAttempt: read as applied, so Commit of this attempt can never be.
func (s Source) endAttempt(ev SourceEvent) (Source, []Action, error) {
	k := ev.Ref.Attempt
	switch s.Phase {
	case SourcePrepared: // Copy was missed
		s.Ref.Attempt, s.Ended, s.Phase = max(s.Ref.Attempt, k), max(s.Ended, k), SourceCopying
		return s, []Action{s.act(ActCopy)}, nil
	case SourceCopying:
		s.Ref.Attempt, s.Ended = max(s.Ref.Attempt, k), max(s.Ended, k)
		return s, nil, nil
	case SourceFailed:
		return s, []Action{s.report(ReportFailed)}, nil
	}
	if k <= s.Ended || k < s.Ref.Attempt {
		return s, nil, refuse(StaleAttempt, s, ev)
	}
	s.Ref.Attempt, s.Ended = k, k
	switch s.Phase {
	case SourceSwitching, SourceVoted:
		s.Phase, s.Hash = SourceCopying, ""
		s.Disk = SourceDisk{Stage: SourceEnded, Ref: s.Ref}
		return s, []Action{s.persist(), s.act(ActThaw), s.act(ActCopy)}, nil
	case SourceUndecided: // its tracking died with the agent
		s.Phase = SourceFailed
		s.Disk = SourceDisk{Stage: SourceEnded, Ref: s.Ref}
		return s, []Action{s.persist(), s.act(ActThaw), s.report(ReportFailed), s.act(ActAsk)}, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

func (s Source) abort(ev SourceEvent) (Source, []Action, error) {
	switch s.Phase {
	case SourceRunning:
		return s, []Action{s.report(ReportConfirmed)}, nil
	case SourceHeld, SourceReleased: // the log shows a Commit: this cannot be
		return s, nil, refuse(WrongPhase, s, ev)
	case SourceLost:
		return s, []Action{s.lost()}, nil
	}
	if ev.Ref.Attempt < s.Ref.Attempt {
		return s, nil, refuse(StaleAttempt, s, ev)
	}
	return s.run(ev)
}

// run lets the tree run for good, on an entry that says so.
func (s Source) run(ev SourceEvent) (Source, []Action, error) {
	s.Ref.Attempt = max(s.Ref.Attempt, ev.Ref.Attempt)
	s.Phase, s.Ended, s.Hash = SourceRunning, s.Ref.Attempt, ""
	s.Disk = SourceDisk{Stage: SourceResuming, Ref: s.Ref}
	return s, []Action{s.persist(), s.act(ActThaw), s.act(ActStop), s.report(ReportConfirmed)}, nil
}

func (s Source) commit(ev SourceEvent) (Source, []Action, error) {
	switch s.Phase {
	case SourceVoted, SourceUndecided:
		if ev.Ref.Attempt != s.Ref.Attempt {
			return s, nil, refuse(StaleAttempt, s, ev)
		}
		s.Phase = SourceHeld
		return s, []Action{s.act(ActHold), s.act(ActAsk)}, nil
	case SourceHeld, SourceReleased, SourceRunning: // running: reverted meanwhile
		return s, nil, nil
	case SourceLost:
		return s, []Action{s.lost()}, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

func (s Source) revert(ev SourceEvent) (Source, []Action, error) {
	switch s.Phase {
	case SourceVoted, SourceUndecided, SourceHeld:
		if ev.Ref.Attempt != s.Ref.Attempt {
			return s, nil, refuse(StaleAttempt, s, ev)
		}
		return s.run(ev)
	case SourceRunning:
		return s, []Action{s.report(ReportConfirmed)}, nil
	case SourceLost:
		return s, []Action{s.lost()}, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

// release names the instance (matches has compared it), so that a late one cannot hit another copy.
func (s Source) release(ev SourceEvent) (Source, []Action, error) {
	switch s.Phase {
	case SourceVoted, SourceUndecided, SourceHeld:
		if ev.Ref.Attempt != s.Ref.Attempt {
			return s, nil, refuse(StaleAttempt, s, ev)
		}
		s.Phase = SourceReleased
		s.Disk = SourceDisk{Stage: SourceReleasing, Ref: s.Ref}
		return s, []Action{s.persist(), s.act(ActDestroy), s.report(ReportReleased)}, nil
	case SourceReleased:
		return s, []Action{s.report(ReportReleased)}, nil
	case SourceLost:
		return s, []Action{s.lost()}, nil
	}
	return s, nil, refuse(WrongPhase, s, ev)
}

// recovered: all that is known is the disk and whether the tree is frozen.
func (s Source) recovered(ev SourceEvent) (Source, []Action, error) {
	if s.Phase != SourceIdle {
		return s, nil, refuse(WrongPhase, s, ev)
	}
	s.Disk, s.Ref = ev.Disk, ev.Disk.Ref
	switch ev.Disk.Stage {
	case SourceNone:
		return s, nil, nil
	case SourceMayHaveVoted:
		if ev.Frozen {
			// Whether it voted is not known, so only the log lets it run. Nothing can come of the attempt but a Commit that is in
			// the log by now: the leader need not wait for the attempt's time to pass.
			s.Phase, s.Ended = SourceUndecided, s.Ref.Attempt-1
			return s, []Action{s.report(ReportFailed), s.act(ActAsk)}, nil
		}
		// Nothing thaws it between the freeze and the vote without a record: it was never frozen and did not vote.
		s.Disk.Stage = SourceEnded
		s.Phase, s.Ended = SourceFailed, s.Ref.Attempt
		return s, []Action{s.persist(), s.report(ReportFailed), s.act(ActAsk)}, nil
	case SourceClaimed, SourceEnded:
		s.Phase, s.Ended = SourceFailed, s.Ref.Attempt
		return s, []Action{s.act(ActThaw), s.report(ReportFailed), s.act(ActAsk)}, nil
	case SourceResuming:
		s.Phase, s.Ended = SourceRunning, s.Ref.Attempt
		return s, []Action{s.act(ActThaw), s.report(ReportConfirmed)}, nil
	case SourceReleasing:
		s.Phase = SourceReleased
		return s, []Action{s.act(ActDestroy), s.report(ReportReleased)}, nil
	}
	return s, nil, refuse(Unsupported, s, ev)
}

// rebooted: the copy is gone with the boot.
func (s Source) rebooted(ev SourceEvent) (Source, []Action, error) {
	if s.Phase != SourceIdle {
		return s, nil, refuse(WrongPhase, s, ev)
	}
	if ev.Disk.Stage == SourceNone {
		return s, nil, nil
	}
	s.Disk, s.Ref, s.Ended = ev.Disk, ev.Disk.Ref, ev.Disk.Ref.Attempt
	if ev.Disk.Stage == SourceReleasing {
		s.Phase = SourceReleased
		return s, []Action{s.report(ReportReleased)}, nil
	}
	s.Phase = SourceLost
	return s, []Action{s.lost()}, nil
}

func (s Source) at(k uint32) Source { s.Ref.Attempt = k; return s }

func (s Source) act(k ActionKind) Action { return Action{Kind: k, Ref: s.Ref} }

func (s Source) persist() Action { return s.act(ActPersist) }

func (s Source) report(r ReportKind) Action {
	return Action{Kind: ActReport, Ref: s.Ref, Report: r}
}

func (s Source) vote() Action {
	return Action{Kind: ActReport, Ref: s.Ref, Report: ReportVote, Hash: s.Hash}
}

// lost says whether the tree ran after its newest vote, for then the destination's copy is older than what was lost.
func (s Source) lost() Action {
	a := s.report(ReportLostCopy)
	a.Ran = s.Disk.Stage != SourceMayHaveVoted
	return a
}

// matches compares what names a copy; attempts are the business of each order.
func matches(have, got Ref, state, ev fmt.Stringer) error {
	switch {
	case got.Incarnation != have.Incarnation:
		return refuse(StaleIncarnation, state, ev)
	case got.Migration != have.Migration:
		return refuse(OtherMigration, state, ev)
	case got.Instance != have.Instance:
		return refuse(OtherInstance, state, ev)
	}
	return nil
}
