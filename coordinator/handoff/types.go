package handoff

import "fmt"

// Ref names what a message is about.
type Ref struct {
	Incarnation uint64 // of the cluster; changes when it is restored from a backup
	Migration   string
	Attempt     uint32 // the switch within the migration, from 1; 0 before the first
	Instance    uint64 // the copy that is meant
}

func (r Ref) String() string {
	return fmt.Sprintf("%s/%d copy %d (incarnation %d)", r.Migration, r.Attempt, r.Instance, r.Incarnation)
}

// Hash is what a vote agrees on: a digest of the whole state of a copy. Its bytes mean nothing here.
type Hash string

// Role is a side of a migration.
type Role uint8

const (
	RoleNone Role = iota
	RoleSource
	RoleDestination
)

var roleNames = [...]string{"none", "source", "destination"}

func (r Role) String() string { return name(roleNames[:], int(r)) }

// Phase is where a migration stands in the log.
type Phase uint8

const (
	PhaseNone Phase = iota
	PhasePreparing
	PhaseCopying
	PhaseSwitching
	PhaseCommitted
	PhaseResumed
	PhaseReleased // ended: the destination runs, the source's copy is gone
	PhaseAborted
	PhaseReverted
	PhaseConfirmed // ended: the source runs and has said so
	PhaseNeedsOperator
	PhaseLost // ended: no copy is left that may run
	phaseCount
)

var phaseNames = [...]string{"none", "preparing", "copying", "switching", "committed", "resumed", "released", "aborted",
	"reverted", "confirmed", "needs-operator", "lost"}

func (p Phase) String() string { return name(phaseNames[:], int(p)) }

// BeforeCommit says whether the migration can still be aborted.
func (p Phase) BeforeCommit() bool { return p >= PhasePreparing && p <= PhaseSwitching }

// OrderKind is what the leader, or a read of the log, tells an agent.
type OrderKind uint8

const (
	OrderNone OrderKind = iota
	OrderPrepareDestination
	OrderPrepareSource
	OrderCopy
	OrderSwitch
	OrderEndAttempt
	OrderAbort
	OrderCommit
	OrderRevert
	OrderRelease
	OrderDestroyCopy
	OrderPostCopy // refused with Unsupported by both sides
	orderCount
)

var orderNames = [...]string{"none", "prepare-destination", "prepare-source", "copy", "switch", "end-attempt", "abort",
	"commit", "revert", "release", "destroy-copy", "post-copy"}

func (o OrderKind) String() string { return name(orderNames[:], int(o)) }

// ReportKind is what an agent says to the leader. Each report but Converged is repeated until it is answered.
type ReportKind uint8

const (
	ReportNone ReportKind = iota
	ReportReady
	ReportPrepared
	ReportConverged
	ReportVote
	ReportAttemptEnded
	ReportFailed
	ReportConfirmed
	ReportReleased
	ReportLostCopy
	ReportResumed
	ReportDeclined
	ReportCopyDestroyed
	reportCount
)

var reportNames = [...]string{"none", "ready", "prepared", "converged", "vote", "attempt-ended", "failed", "confirmed",
	"released", "lost-copy", "resumed", "declined", "copy-destroyed"}

func (r ReportKind) String() string { return name(reportNames[:], int(r)) }

// ActionKind is something that a caller of Step has to do.
type ActionKind uint8

const (
	ActNone ActionKind = iota
	// Of the leader.
	ActPropose // Entry, into the log; whatever becomes of it, the leader is told the record (LeaderApplied)
	ActOrder   // Order to the agent of Role, with Ref
	ActAnswer  // the destination's waiting request: Order is Commit, EndAttempt or Abort
	// Of both agents.
	ActPersist // the Disk of the new state, flushed, before anything that follows
	ActReport  // Report with Ref, Hash
	ActAsk     // read the migration from any server, again and again, until an order follows from it (OrderFor)
	ActDestroy // the copy Ref.Instance
	// Of the source.
	ActBuild  // Peer.Prepare: the skeleton; then SourceSkeleton
	ActCopy   // track and copy in rounds while it runs; SourceConverged when a switch would keep the bound
	ActFreeze // stop the tree, close its cgroup and gate; no tracer is left attached afterwards
	ActFinish // send the rest, Peer.Finish; then SourceFinished with the agreed hash, or SourceFault
	ActThaw   // let the tree run, open its gate; does nothing to a tree that runs
	ActStop   // stop copying and tracking
	ActHold   // nothing: the copy stays frozen until Release or Revert
	// Of the destination.
	ActExpect        // accept Peer.Prepare of this migration
	ActAnswerFinish  // answer Peer.Finish with Hash
	ActRequestCommit // send the vote, wait for the log's decision; again until there is one
	ActRewind        // make the finished copy a skeleton again, or say DestinationBroken
	ActResume        // let the copy run; then DestinationRan
)

var actionNames = [...]string{"none", "propose", "order", "answer", "persist", "report", "ask", "destroy", "build", "copy",
	"freeze", "finish", "thaw", "stop", "hold", "expect", "answer-finish", "request-commit", "rewind", "resume"}

func (a ActionKind) String() string { return name(actionNames[:], int(a)) }

// Action is one thing to do. Only the fields that its kind names are set.
type Action struct {
	Kind   ActionKind
	Ref    Ref
	Role   Role       // ActOrder: to whom
	Order  OrderKind  // ActOrder, ActAnswer
	Report ReportKind // ActReport
	Hash   Hash
	Entry  Entry // ActPropose
	Ran    bool  // ActReport(lost-copy): the copy ran after the last vote; ActReport(lost-copy) of a destination: it resumed
}

func (a Action) String() string {
	switch a.Kind {
	case ActPropose:
		return fmt.Sprintf("propose %v", a.Entry)
	case ActOrder:
		return fmt.Sprintf("order %v to %v", a.Order, a.Role)
	case ActAnswer:
		return fmt.Sprintf("answer %v", a.Order)
	case ActReport:
		return fmt.Sprintf("report %v/%d", a.Report, a.Ref.Attempt)
	}
	return a.Kind.String()
}

// Code is why a Step refused its event.
type Code uint8

const (
	StaleIncarnation Code = iota + 1
	OtherMigration
	OtherInstance
	StaleAttempt
	WrongPhase
	TooLate     // a cancel after the commit
	Unsupported // not built
)

var codeNames = [...]string{"ok", "stale incarnation", "other migration", "other copy instance", "stale attempt",
	"wrong phase", "too late", "unsupported"}

func (c Code) String() string { return name(codeNames[:], int(c)) }

// Refusal is the error of every Step and Apply: the event was not taken and nothing changed. Two refusals are equal
// for errors.Is if their codes are.
type Refusal struct {
	Code  Code
	Where fmt.Stringer // the state
	What  fmt.Stringer // the event
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%s: %s refused while %s", r.Code, r.What, r.Where)
}

// Is makes errors.Is(err, &Refusal{Code: c}) work.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Code == r.Code
}

func refuse(c Code, where, what fmt.Stringer) error {
	return &Refusal{Code: c, Where: where, What: what}
}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}
