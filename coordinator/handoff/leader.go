package handoff

import "fmt"

// LeaderEventKind is what can happen to the leader of the cluster with regard to one migration.
type LeaderEventKind uint8

const (
	LeaderApplied       LeaderEventKind = iota + 1 // Record was read as applied: after an entry, or on taking over
	LeaderReported                                 // Report of Role, with Ref, Hash, Ran
	LeaderRequestCommit                            // the destination's request waits; Ref, Hash
	LeaderRequestGone                              // it does not wait any more
	LeaderCancel                                   // an operator's wish
	LeaderDeadline                                 // the switch Ref.Attempt takes too long
	LeaderTimeout                                  // the migration takes too long, or an agent is silent: it should end
	LeaderRedrive                                  // send again what was not answered
	LeaderResolve                                  // an operator says that Role may run and the other host is fenced
	leaderEvents
)

var leaderEventNames = [...]string{"none", "applied", "report", "request-commit", "request-gone", "cancel", "deadline",
	"timeout", "redrive", "resolve"}

// LeaderEvent is one event. Only the fields that its kind names are set.
type LeaderEvent struct {
	Kind   LeaderEventKind
	Record Record
	Role   Role
	Report ReportKind
	Ref    Ref
	Hash   Hash
	Ran    bool
}

func (e LeaderEvent) String() string {
	if e.Kind == LeaderReported {
		return fmt.Sprintf("report %v of the %v for %v", e.Report, e.Role, e.Ref)
	}
	return name(leaderEventNames[:], int(e.Kind))
}

// Vote is what a side said of one attempt.
type Vote struct {
	Attempt uint32
	Hash    Hash
}

// Leader is what the leader knows of one migration: the record, and what it holds in memory only. A new leader starts
// from the zero value and LeaderApplied. It is comparable.
type Leader struct {
	Record  Record
	Ready   bool // the destination has made room
	Source  Vote
	Dest    Vote // counts only while Waiting
	Waiting bool // the destination's own request is open
}

func (l Leader) String() string { return "migration " + l.Record.String() }

// Step is the leader's one transition. An error is a *Refusal; nothing has changed then and there is nothing to do.
//
// A refused proposal (its compare-and-set failed) and one of unknown result are the same: the caller reads the record
// and feeds LeaderApplied.
func (l Leader) Step(ev LeaderEvent) (Leader, []Action, error) {
	next, actions, err := l.step(ev)
	if err != nil {
		return l, nil, err
	}
	return next, actions, nil
}

func (l Leader) step(ev LeaderEvent) (Leader, []Action, error) {
	switch ev.Kind {
	case LeaderApplied:
		return l.applied(ev)
	case LeaderReported:
		if err := matches(l.Record.Ref(ev.Role), ev.Ref, l, ev); err != nil {
			return l, nil, err
		}
		if ev.Role == RoleSource {
			return l.fromSource(ev)
		}
		return l.fromDestination(ev)
	case LeaderRequestCommit:
		return l.requestCommit(ev)
	case LeaderRequestGone:
		l.Waiting, l.Dest = false, Vote{}
		return l, nil, nil
	case LeaderCancel:
		if !l.Record.Phase.BeforeCommit() {
			if l.Record.Cancelled || l.Record.Phase == PhaseAborted || l.Record.Phase == PhaseConfirmed {
				return l, nil, nil
			}
			return l, nil, refuse(TooLate, l, ev)
		}
		return l, []Action{propose(Entry{Kind: EntryAbort, Cancelled: true})}, nil
	case LeaderDeadline:
		if l.Record.Phase != PhaseSwitching || ev.Ref.Attempt != l.Record.Attempt {
			return l, nil, refuse(StaleAttempt, l, ev)
		}
		return l, []Action{propose(Entry{Kind: EntryEndAttempt, Attempt: ev.Ref.Attempt})}, nil
	case LeaderTimeout:
		if !l.Record.Phase.BeforeCommit() {
			return l, nil, refuse(WrongPhase, l, ev)
		}
		return l, []Action{propose(Entry{Kind: EntryAbort})}, nil
	case LeaderRedrive:
		return l, l.orders(), nil
	case LeaderResolve:
		e := Entry{Kind: EntryResolve, RunAt: ev.Role}
		if _, err := l.Record.Apply(e); err != nil {
			return l, nil, err
		}
		return l, []Action{propose(e)}, nil
	}
	return l, nil, refuse(Unsupported, l, ev)
}

// applied takes over the record; what it decides is said to whom it concerns.
func (l Leader) applied(ev LeaderEvent) (Leader, []Action, error) {
	r := ev.Record
	if l.Record.Migration != "" && r.Migration != l.Record.Migration {
		return l, nil, refuse(OtherMigration, l, ev)
	}
	l.Record = r
	if l.Source.Attempt <= r.Ended {
		l.Source = Vote{}
	}
	var actions []Action
	if l.Waiting {
		if d := decision(r, l.Dest.Attempt); d != OrderNone {
			actions = append(actions, l.answer(d, l.Dest.Attempt))
			l.Waiting, l.Dest = false, Vote{}
		}
	}
	return l, append(actions, l.orders()...), nil
}

// decision is the answer to a request for attempt k, if the log has one.
func decision(r Record, k uint32) OrderKind {
	switch {
	case r.Phase == PhaseAborted, r.Phase == PhaseLost, r.Phase == PhaseConfirmed, r.Phase == PhaseReverted:
		return OrderAbort
	case k <= r.Ended:
		return OrderEndAttempt
	case k == r.Attempt && r.Owner == RoleDestination:
		return OrderCommit
	}
	return OrderNone
}

// orders is what each side has to be told in this phase. The destination hears the end of an attempt, an abort and a
// commit from the log too; it hears them here first.
func (l Leader) orders() []Action {
	r := l.Record
	var out []Action
	for _, role := range []Role{RoleDestination, RoleSource} {
		kind, ref := OrderFor(role, r)
		switch {
		case kind == OrderNone:
			continue
		case kind == OrderPrepareSource && !l.Ready:
			continue
		case r.Closed():
			continue
		case r.Phase == PhaseConfirmed && role == RoleSource, r.Phase == PhaseResumed && role == RoleDestination:
			continue // it has said so
		}
		out = append(out, Action{Kind: ActOrder, Role: role, Order: kind, Ref: ref})
	}
	return out
}

func (l Leader) fromSource(ev LeaderEvent) (Leader, []Action, error) {
	r, k := l.Record, ev.Ref.Attempt
	switch ev.Report {
	case ReportPrepared:
		if r.Phase == PhasePreparing {
			return l, []Action{propose(Entry{Kind: EntryStartCopy})}, nil
		}
	case ReportConverged:
		if r.Phase == PhaseCopying && k == r.Attempt {
			return l, []Action{propose(Entry{Kind: EntryStartSwitch, Attempt: k + 1})}, nil
		}
	case ReportVote:
		return l.sourceVote(ev)
	case ReportAttemptEnded:
		if r.Phase == PhaseSwitching && k == r.Attempt {
			return l, []Action{propose(Entry{Kind: EntryEndAttempt, Attempt: k})}, nil
		}
	case ReportFailed:
		if r.Phase.BeforeCommit() {
			return l, []Action{propose(Entry{Kind: EntryAbort})}, nil
		}
	case ReportConfirmed:
		if r.Phase == PhaseAborted || r.Phase == PhaseReverted {
			return l, []Action{propose(Entry{Kind: EntryConfirmed})}, nil
		}
	case ReportReleased:
		if r.Phase == PhaseResumed {
			return l, []Action{propose(Entry{Kind: EntryReleased})}, nil
		}
	case ReportLostCopy:
		if !r.SourceGone && !r.Closed() && r.Phase != PhaseConfirmed {
			return l, []Action{propose(Entry{Kind: EntrySourceLost, Attempt: k, Ran: ev.Ran})}, nil
		}
	default:
		return l, nil, refuse(Unsupported, l, ev)
	}
	return l.known(ev)
}

// known is a report that says nothing new: a repeated one, or one from a phase that is over.
func (l Leader) known(ev LeaderEvent) (Leader, []Action, error) {
	if ev.Ref.Attempt > l.Record.Attempt { // the log has never begun it
		return l, nil, refuse(StaleAttempt, l, ev)
	}
	return l, nil, nil
}

func (l Leader) sourceVote(ev LeaderEvent) (Leader, []Action, error) {
	if l.Record.Phase != PhaseSwitching {
		return l.known(ev)
	}
	if ev.Ref.Attempt != l.Record.Attempt || ev.Hash == "" {
		return l, nil, refuse(StaleAttempt, l, ev)
	}
	l.Source = Vote{Attempt: ev.Ref.Attempt, Hash: ev.Hash}
	return l.decide()
}

func (l Leader) requestCommit(ev LeaderEvent) (Leader, []Action, error) {
	if err := matches(l.Record.Ref(RoleDestination), ev.Ref, l, ev); err != nil {
		return l, nil, err
	}
	k := ev.Ref.Attempt
	if k == 0 || k > l.Record.Attempt || ev.Hash == "" {
		return l, nil, refuse(StaleAttempt, l, ev)
	}
	if d := decision(l.Record, k); d != OrderNone {
		return l, []Action{l.answer(d, k)}, nil
	}
	if l.Record.Phase != PhaseSwitching {
		return l, nil, refuse(WrongPhase, l, ev)
	}
	l.Dest, l.Waiting = Vote{Attempt: k, Hash: ev.Hash}, true
	return l.decide()
}

// decide proposes Commit: the destination's own request waits, both votes are of the running attempt, and they agree.
func (l Leader) decide() (Leader, []Action, error) {
	r := l.Record
	if !l.Waiting || l.Dest.Attempt != r.Attempt || l.Source.Attempt != r.Attempt {
		return l, nil, nil
	}
	if l.Source.Hash != l.Dest.Hash {
		return l, []Action{propose(Entry{Kind: EntryAbort})}, nil
	}
	return l, []Action{propose(Entry{Kind: EntryCommit, Attempt: r.Attempt, Epoch: r.Epoch,
		Source: l.Source.Hash, Dest: l.Dest.Hash})}, nil
}

func (l Leader) fromDestination(ev LeaderEvent) (Leader, []Action, error) {
	r := l.Record
	switch ev.Report {
	case ReportReady:
		if r.Phase == PhasePreparing && !l.Ready {
			l.Ready = true
			return l, l.orders(), nil
		}
	case ReportFailed:
		if r.Phase.BeforeCommit() {
			return l, []Action{propose(Entry{Kind: EntryAbort})}, nil
		}
	case ReportResumed:
		if r.Phase == PhaseCommitted {
			return l, []Action{propose(Entry{Kind: EntryResumed})}, nil
		}
	case ReportDeclined:
		switch {
		case r.Phase.BeforeCommit():
			return l, []Action{propose(Entry{Kind: EntryAbort})}, nil
		case r.Phase == PhaseCommitted:
			return l, []Action{propose(Entry{Kind: EntryRevert, Epoch: r.Epoch})}, nil
		}
	case ReportLostCopy:
		if ev.Ran && r.Phase == PhaseCommitted {
			return l, []Action{propose(Entry{Kind: EntryDestinationRan})}, nil
		}
	case ReportCopyDestroyed:
		if (r.Phase == PhaseConfirmed || r.Phase == PhaseLost) && !r.DestinationGone {
			return l, []Action{propose(Entry{Kind: EntryDestinationGone})}, nil
		}
	default:
		return l, nil, refuse(Unsupported, l, ev)
	}
	return l.known(ev)
}

func propose(e Entry) Action { return Action{Kind: ActPropose, Entry: e} }

func (l Leader) answer(d OrderKind, k uint32) Action {
	ref := l.Record.Ref(RoleDestination)
	ref.Attempt = k
	return Action{Kind: ActAnswer, Order: d, Ref: ref, Role: RoleDestination}
}
