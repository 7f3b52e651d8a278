package handoff

import "fmt"

// EntryKind is a change of a Record, as it stands in the log.
type EntryKind uint8

const (
	EntryNone EntryKind = iota
	EntryBegin
	EntryStartCopy
	EntryStartSwitch
	EntryEndAttempt
	EntryCommit
	EntryAbort
	EntryResumed
	EntryRevert
	EntryConfirmed
	EntryReleased
	EntryDestinationGone
	EntryDestinationRan
	EntrySourceLost
	EntryResolve
	entryCount
)

var entryNames = [...]string{"none", "begin", "start-copy", "start-switch", "end-attempt", "commit", "abort", "resumed",
	"revert", "confirmed", "released", "destination-gone", "destination-ran", "source-lost", "resolve"}

func (k EntryKind) String() string { return name(entryNames[:], int(k)) }

// Entry is one change, compare-and-set on the phase and, where it has one, on the attempt.
type Entry struct {
	Kind      EntryKind
	Attempt   uint32 // StartSwitch: the new one; EndAttempt, Commit: the one meant; SourceLost: the newest that may have been voted for
	Epoch     uint64 // Commit, Revert: the one before
	Source    Hash   // Commit: the votes
	Dest      Hash
	Ran       bool // SourceLost: the source ran on after its newest vote
	Cancelled bool // Abort: an operator asked for it
	RunAt     Role // Resolve: the side that may run; the other side's host is certainly fenced
}

func (e Entry) String() string { return fmt.Sprintf("%v(%d)", e.Kind, e.Attempt) }

// Record is one migration as the log has it. It is comparable; the zero value is no migration.
type Record struct {
	Incarnation     uint64
	Migration       string
	Phase           Phase
	Attempt         uint32 // the newest that was begun
	Ended           uint32 // this one and all before it are over, their votes worthless
	Source          uint64 // copy instances
	Destination     uint64
	Epoch           uint64 // of the workload: goes up by one at Commit and at Revert
	Owner           Role   // whose copy may run
	SourceGone      bool   // the source's copy is destroyed or lost
	DestinationGone bool   // the destination's copy is destroyed, or was never there
	Cancelled       bool
	Undecided       uint32 // the attempt that an Abort cut off; until the source has run, its copy may be all there is
}

func (r Record) String() string {
	return fmt.Sprintf("%v(%d, ended %d)", r.Phase, r.Attempt, r.Ended)
}

// Begin is the record of a new migration of a workload that is owned by copy source under epoch.
func Begin(incarnation uint64, migration string, source, destination, epoch uint64) Record {
	return Record{Incarnation: incarnation, Migration: migration, Phase: PhasePreparing, Source: source,
		Destination: destination, Epoch: epoch, Owner: RoleSource}
}

// Closed says whether both sides have acknowledged the end, so that the workload may migrate again.
func (r Record) Closed() bool {
	switch r.Phase {
	case PhaseReleased:
		return true
	case PhaseConfirmed, PhaseLost:
		return r.DestinationGone
	}
	return false
}

// Ref names the copy of a role under this record.
func (r Record) Ref(role Role) Ref {
	ref := Ref{Incarnation: r.Incarnation, Migration: r.Migration, Attempt: r.Attempt, Instance: r.Source}
	if role == RoleDestination {
		ref.Instance = r.Destination
	}
	return ref
}

// Apply is the record after an entry, or a *Refusal (WrongPhase, StaleAttempt): then the entry has no effect. It is
// deterministic, for every server applies it.
func (r Record) Apply(e Entry) (Record, error) {
	wrong := &Refusal{Code: WrongPhase, Where: r, What: e}
	switch e.Kind {
	case EntryStartCopy:
		if r.Phase != PhasePreparing {
			return r, wrong
		}
		r.Phase = PhaseCopying
	case EntryStartSwitch:
		if r.Phase != PhaseCopying {
			return r, wrong
		}
		if e.Attempt != r.Attempt+1 {
			return r, refuse(StaleAttempt, r, e)
		}
		r.Phase, r.Attempt = PhaseSwitching, e.Attempt
	case EntryEndAttempt, EntryCommit:
		return r.applyAttempt(e)
	case EntryAbort:
		if !r.Phase.BeforeCommit() {
			return r, wrong
		}
		if r.Phase == PhaseSwitching {
			r.Undecided = r.Attempt
		}
		r.Phase, r.Ended, r.Cancelled = PhaseAborted, r.Attempt, e.Cancelled
	case EntrySourceLost:
		return r.applySourceLost(e)
	case EntryResolve:
		return r.applyResolve(e)
	default:
		return r.applyEnd(e)
	}
	return r, nil
}

// applyAttempt is EndAttempt and Commit: of one attempt, and only one of them can be the first.
func (r Record) applyAttempt(e Entry) (Record, error) {
	if r.Phase != PhaseSwitching {
		return r, refuse(WrongPhase, r, e)
	}
	if e.Attempt != r.Attempt {
		return r, refuse(StaleAttempt, r, e)
	}
	if e.Kind == EntryEndAttempt {
		r.Phase, r.Ended = PhaseCopying, e.Attempt
		return r, nil
	}
	if e.Epoch != r.Epoch || e.Source != e.Dest || e.Source == "" {
		return r, refuse(WrongPhase, r, e)
	}
	r.Phase, r.Epoch, r.Owner = PhaseCommitted, r.Epoch+1, RoleDestination
	return r, nil
}

// applyEnd is what follows a Commit or an Abort.
func (r Record) applyEnd(e Entry) (Record, error) {
	wrong := refuse(WrongPhase, r, e)
	switch e.Kind {
	case EntryResumed:
		if r.Phase != PhaseCommitted {
			return r, wrong
		}
		r.Phase = PhaseResumed
		if r.SourceGone {
			r.Phase = PhaseReleased
		}
	case EntryRevert:
		if r.Phase != PhaseCommitted || e.Epoch != r.Epoch {
			return r, wrong
		}
		r = r.revert()
	case EntryConfirmed:
		if r.Phase != PhaseAborted && r.Phase != PhaseReverted {
			return r, wrong
		}
		r.Phase = PhaseConfirmed
	case EntryReleased:
		if r.Phase != PhaseResumed {
			return r, wrong
		}
		r.Phase, r.SourceGone = PhaseReleased, true
	case EntryDestinationGone:
		if r.Phase != PhaseConfirmed && r.Phase != PhaseLost {
			return r, wrong
		}
		r.DestinationGone = true
	case EntryDestinationRan:
		if r.Phase != PhaseCommitted {
			return r, wrong
		}
		r.Phase = PhaseNeedsOperator
		if r.SourceGone {
			r.Phase = PhaseLost
		}
	default:
		return r, refuse(Unsupported, r, e)
	}
	return r, nil
}

func (r Record) revert() Record {
	r.Phase, r.Epoch, r.Owner = PhaseReverted, r.Epoch+1, RoleSource
	if r.SourceGone {
		r.Phase = PhaseLost
	}
	return r
}

// applySourceLost: the source's host came back without its copy. If the source may have voted for the attempt that
// was cut off, and has not run since, the destination's copy is committed: it is complete, or the destination declines.
func (r Record) applySourceLost(e Entry) (Record, error) {
	switch r.Phase {
	case PhasePreparing, PhaseCopying, PhaseSwitching, PhaseAborted:
		k := r.Undecided
		if r.Phase == PhaseSwitching {
			k = r.Attempt
		}
		r.SourceGone = true
		if k == 0 || e.Attempt != k || e.Ran {
			r.Phase, r.Ended = PhaseLost, r.Attempt
			return r, nil
		}
		r.Phase, r.Ended, r.Epoch, r.Owner = PhaseCommitted, k-1, r.Epoch+1, RoleDestination
	case PhaseReverted: // the destination has declined
		r.SourceGone, r.Phase = true, PhaseLost
	case PhaseCommitted:
		if r.SourceGone {
			return r, refuse(WrongPhase, r, e)
		}
		r.SourceGone = true
	case PhaseResumed:
		r.SourceGone, r.Phase = true, PhaseReleased
	default:
		return r, refuse(WrongPhase, r, e)
	}
	return r, nil
}

// applyResolve is an operator's word that one side's host is certainly fenced, and that the other may run. What the
// fenced host did before is lost.
func (r Record) applyResolve(e Entry) (Record, error) {
	switch e.RunAt {
	case RoleSource:
		switch r.Phase {
		case PhaseCommitted, PhaseNeedsOperator:
			if r.SourceGone {
				return r, refuse(WrongPhase, r, e)
			}
			r = r.revert()
		case PhaseAborted, PhaseConfirmed, PhaseReverted, PhaseLost:
		default:
			return r, refuse(WrongPhase, r, e)
		}
		r.DestinationGone = true
		return r, nil
	case RoleDestination:
		if r.Phase == PhaseReverted { // the destination has declined
			return r, refuse(WrongPhase, r, e)
		}
		return r.applySourceLost(Entry{Kind: EntrySourceLost, Attempt: max(r.Undecided, r.Attempt)})
	}
	return r, refuse(WrongPhase, r, e)
}

// OrderFor is the order that follows for a role from a record that was read as applied; OrderNone where the role has
// only to wait. The leader sends it, and an agent that asked the log gives it to itself. The attempt of the order is
// that of its Ref.
func OrderFor(role Role, r Record) (OrderKind, Ref) {
	ref := r.Ref(role)
	if role == RoleSource {
		return sourceOrder(r), ref
	}
	switch r.Phase {
	case PhasePreparing:
		return OrderPrepareDestination, ref
	case PhaseCopying:
		if r.Attempt > 0 {
			return OrderEndAttempt, ref
		}
	case PhaseAborted:
		return OrderAbort, ref
	case PhaseCommitted, PhaseResumed, PhaseReleased:
		return OrderCommit, ref
	case PhaseConfirmed, PhaseLost:
		return OrderDestroyCopy, ref
	}
	return OrderNone, ref
}

func sourceOrder(r Record) OrderKind {
	switch r.Phase {
	case PhasePreparing:
		return OrderPrepareSource
	case PhaseCopying:
		if r.Attempt > 0 {
			return OrderEndAttempt
		}
		return OrderCopy
	case PhaseSwitching:
		return OrderSwitch
	case PhaseCommitted:
		return OrderCommit
	case PhaseResumed, PhaseReleased:
		return OrderRelease
	case PhaseAborted:
		return OrderAbort
	case PhaseReverted:
		return OrderRevert
	case PhaseConfirmed:
		if r.Attempt > r.Ended { // it went through Commit and back: an Abort ends all attempts
			return OrderRevert
		}
		return OrderAbort
	}
	return OrderNone
}
