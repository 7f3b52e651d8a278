package move

import (
	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
)

// This file turns the protocol's messages into the machines' words and back.

func refOf(r *agentapi.Ref) handoff.Ref {
	return handoff.Ref{Incarnation: r.GetIncarnation(), Migration: r.GetMigration(), Attempt: r.GetAttempt(), Instance: r.GetInstance()}
}

func refTo(r handoff.Ref, epoch uint64) *agentapi.Ref {
	return &agentapi.Ref{Incarnation: r.Incarnation, Migration: r.Migration, Attempt: r.Attempt, Instance: r.Instance, Epoch: epoch}
}

func roleOf(r agentapi.Role) handoff.Role {
	switch r {
	case agentapi.Role_ROLE_SOURCE:
		return handoff.RoleSource
	case agentapi.Role_ROLE_DESTINATION:
		return handoff.RoleDestination
	}
	return handoff.RoleNone
}

func roleTo(r handoff.Role) agentapi.Role {
	switch r {
	case handoff.RoleSource:
		return agentapi.Role_ROLE_SOURCE
	case handoff.RoleDestination:
		return agentapi.Role_ROLE_DESTINATION
	}
	return agentapi.Role_ROLE_UNSPECIFIED
}

func orderOf(req *agentapi.OrderRequest) handoff.OrderKind {
	switch req.GetOrder().(type) {
	case *agentapi.OrderRequest_PrepareDestination:
		return handoff.OrderPrepareDestination
	case *agentapi.OrderRequest_PrepareSource:
		return handoff.OrderPrepareSource
	case *agentapi.OrderRequest_Copy:
		return handoff.OrderCopy
	case *agentapi.OrderRequest_Switch:
		return handoff.OrderSwitch
	case *agentapi.OrderRequest_EndAttempt:
		return handoff.OrderEndAttempt
	case *agentapi.OrderRequest_Abort:
		return handoff.OrderAbort
	case *agentapi.OrderRequest_Commit:
		return handoff.OrderCommit
	case *agentapi.OrderRequest_Revert:
		return handoff.OrderRevert
	case *agentapi.OrderRequest_Release:
		return handoff.OrderRelease
	case *agentapi.OrderRequest_DestroyCopy:
		return handoff.OrderDestroyCopy
	}
	return handoff.OrderNone
}

var phases = map[clusterapi.Phase]handoff.Phase{
	clusterapi.Phase_PHASE_PLANNED:        handoff.PhasePreparing,
	clusterapi.Phase_PHASE_PREPARING:      handoff.PhasePreparing,
	clusterapi.Phase_PHASE_COPYING:        handoff.PhaseCopying,
	clusterapi.Phase_PHASE_SWITCHING:      handoff.PhaseSwitching,
	clusterapi.Phase_PHASE_VOTED:          handoff.PhaseSwitching,
	clusterapi.Phase_PHASE_COMMITTED:      handoff.PhaseCommitted,
	clusterapi.Phase_PHASE_RESUMED:        handoff.PhaseResumed,
	clusterapi.Phase_PHASE_RELEASED:       handoff.PhaseReleased,
	clusterapi.Phase_PHASE_ABORTED:        handoff.PhaseAborted,
	clusterapi.Phase_PHASE_CONFIRMED:      handoff.PhaseConfirmed,
	clusterapi.Phase_PHASE_REVERTED:       handoff.PhaseReverted,
	clusterapi.Phase_PHASE_NEEDS_OPERATOR: handoff.PhaseNeedsOperator,
	clusterapi.Phase_PHASE_LOST:           handoff.PhaseLost,
}

// recordOf is the migration as the log has it. ok is false when the answer names no phase that this program knows:
// nothing may be concluded from it.
func recordOf(r *clusterapi.ReadMigrationReply) (rec handoff.Record, ok bool) {
	phase, ok := phases[r.GetPhase()]
	if !ok {
		return handoff.Record{}, false
	}
	rec = handoff.Record{
		Incarnation: r.GetIncarnation(), Migration: r.GetId(), Phase: phase, Attempt: r.GetAttempt(), Ended: r.GetEndedAttempt(),
		Source: r.GetSourceInstance(), Destination: r.GetDestinationInstance(), Epoch: r.GetEpoch(), Owner: handoff.RoleSource,
	}
	if r.GetOwnerInstance() == rec.Destination {
		rec.Owner = handoff.RoleDestination
	}
	return rec, true
}

var refusals = map[handoff.Code]agentapi.Refusal{
	handoff.StaleIncarnation: agentapi.Refusal_REFUSAL_STALE_INCARNATION,
	handoff.OtherMigration:   agentapi.Refusal_REFUSAL_UNKNOWN_MIGRATION,
	handoff.OtherInstance:    agentapi.Refusal_REFUSAL_WRONG_INSTANCE,
	handoff.StaleAttempt:     agentapi.Refusal_REFUSAL_STALE_ATTEMPT,
	handoff.WrongPhase:       agentapi.Refusal_REFUSAL_WRONG_PHASE,
	handoff.TooLate:          agentapi.Refusal_REFUSAL_WRONG_PHASE,
	handoff.Unsupported:      agentapi.Refusal_REFUSAL_UNSUPPORTED,
}
