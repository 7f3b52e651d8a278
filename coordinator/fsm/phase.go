package fsm

import (
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
)

// phases are the log's phases in the API's words.
var phases = map[handoff.Phase]clusterapi.Phase{
	handoff.PhasePreparing:     clusterapi.Phase_PHASE_PREPARING,
	handoff.PhaseCopying:       clusterapi.Phase_PHASE_COPYING,
	handoff.PhaseSwitching:     clusterapi.Phase_PHASE_SWITCHING,
	handoff.PhaseCommitted:     clusterapi.Phase_PHASE_COMMITTED,
	handoff.PhaseResumed:       clusterapi.Phase_PHASE_RESUMED,
	handoff.PhaseReleased:      clusterapi.Phase_PHASE_RELEASED,
	handoff.PhaseAborted:       clusterapi.Phase_PHASE_ABORTED,
	handoff.PhaseReverted:      clusterapi.Phase_PHASE_REVERTED,
	handoff.PhaseConfirmed:     clusterapi.Phase_PHASE_CONFIRMED,
	handoff.PhaseNeedsOperator: clusterapi.Phase_PHASE_NEEDS_OPERATOR,
	handoff.PhaseLost:          clusterapi.Phase_PHASE_LOST,
}

// Phase is a phase of the log in the API's words.
func Phase(p handoff.Phase) clusterapi.Phase { return phases[p] }

// Outcome is what has become of a migration in a phase; unspecified while that is open.
func Outcome(p handoff.Phase) clusterapi.Outcome {
	switch p {
	case handoff.PhaseResumed, handoff.PhaseReleased:
		return clusterapi.Outcome_OUTCOME_MOVED
	case handoff.PhaseConfirmed:
		return clusterapi.Outcome_OUTCOME_SOURCE_RUNNING
	case handoff.PhaseNeedsOperator:
		return clusterapi.Outcome_OUTCOME_NEEDS_OPERATOR
	case handoff.PhaseLost:
		return clusterapi.Outcome_OUTCOME_LOST
	}
	return clusterapi.Outcome_OUTCOME_UNSPECIFIED
}
