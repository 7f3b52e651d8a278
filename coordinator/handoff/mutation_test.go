package handoff

import (
	"strings"
	"testing"
)

// mutations are the guards of the protocol, each taken out. The exploration must find what each of them is for.
var mutations = map[string]mutation{
	"the source runs on silence after its vote": {onSource: func(s Source, ev SourceEvent) (Source, []Action, bool) {
		if s.Phase != SourceVoted || ev.Kind != SourceFault {
			return s, nil, false
		}
		s.Phase, s.Ended = SourceCopying, s.Ref.Attempt
		return s, []Action{s.act(ActThaw)}, true
	}},
	"a restarted source that may have voted runs": {onSource: func(s Source, ev SourceEvent) (Source, []Action, bool) {
		if ev.Kind != SourceRecovered || ev.Disk.Stage != SourceMayHaveVoted {
			return s, nil, false
		}
		s.Phase, s.Ref, s.Disk, s.Ended = SourceFailed, ev.Disk.Ref, ev.Disk, ev.Disk.Ref.Attempt
		return s, []Action{s.act(ActThaw)}, true
	}},
	"may-have-voted is not durable": {onSource: func(s Source, ev SourceEvent) (Source, []Action, bool) {
		next, as, err := s.Step(ev)
		if err != nil || ev.Order != OrderSwitch || next.Phase != SourceSwitching || len(as) == 0 {
			return s, nil, false
		}
		next.Disk = s.Disk
		return next, as[1:], true
	}},
	"the source is released at Commit": {onSource: func(s Source, ev SourceEvent) (Source, []Action, bool) {
		if s.Phase != SourceVoted || ev.Order != OrderCommit {
			return s, nil, false
		}
		s.Phase = SourceReleased
		return s, []Action{s.act(ActDestroy), s.report(ReportReleased)}, true
	}},
	"the source votes for an attempt that it has ended": {onSource: func(s Source, ev SourceEvent) (Source, []Action, bool) {
		if s.Phase != SourceCopying || ev.Kind != SourceFinished {
			return s, nil, false
		}
		s.Hash = ev.Hash
		v := s.vote()
		v.Ref = ev.Ref
		return s, []Action{v}, true
	}},
	"the destination's copy is destroyed at Abort": {onDest: func(d Destination, ev DestinationEvent) (Destination, []Action, bool) {
		if d.Phase != DestinationPrepared || ev.Order != OrderAbort {
			return d, nil, false
		}
		d.Phase = DestinationGone
		return d, []Action{d.act(ActDestroy), d.report(ReportCopyDestroyed)}, true
	}},
	"resuming is not durable": {onDest: func(d Destination, ev DestinationEvent) (Destination, []Action, bool) {
		next, as, err := d.Step(ev)
		if err != nil || next.Phase != DestinationResuming || len(as) != 2 {
			return d, nil, false
		}
		next.Disk = d.Disk
		return next, as[1:], true
	}},
	"the destination runs on an older attempt's Commit": {onDest: func(d Destination, ev DestinationEvent) (Destination, []Action, bool) {
		if d.Phase != DestinationPrepared || ev.Order != OrderEndAttempt {
			return d, nil, false
		}
		n, as, _ := d.resume()
		return n, as, true
	}},
	"Commit does not compare the phase": {onApply: func(r Record, e Entry) (Record, bool) {
		if e.Kind != EntryCommit || r.Phase != PhaseAborted && r.Phase != PhaseCopying && r.Phase != PhaseConfirmed {
			return r, false
		}
		r.Phase, r.Epoch, r.Owner = PhaseCommitted, r.Epoch+1, RoleDestination
		return r, true
	}},
	"Abort does not compare the phase": {onApply: func(r Record, e Entry) (Record, bool) {
		if e.Kind != EntryAbort || r.Phase != PhaseCommitted && r.Phase != PhaseResumed {
			return r, false
		}
		r.Phase, r.Ended, r.Owner = PhaseAborted, r.Attempt, RoleSource
		return r, true
	}},
	"a lost source is salvaged though it ran after its vote": {onApply: func(r Record, e Entry) (Record, bool) {
		if e.Kind != EntrySourceLost {
			return r, false
		}
		e.Ran, e.Attempt = false, r.Attempt
		if r.Phase != PhaseSwitching {
			r.Undecided = r.Attempt
		}
		n, err := r.Apply(e)
		return n, err == nil
	}},
}

// TestMutations: without any one of its guards the protocol breaks a rule, and the walks find it.
func TestMutations(t *testing.T) {
	budgets := []budget{{}, {leader: 1}, {sourceCrash: 1}, {destCrash: 1, leader: 1}, {destBoot: 1, leader: 1}, {sourceBoot: 1}, {sourceCrash: 1, sourceBoot: 1}}
	aimed := map[string]budget{ // where other bad luck would only be in the way
		"may-have-voted is not durable":                          {sourceCrash: 1},
		"the source runs on silence after its vote":              {},
		"a lost source is salvaged though it ran after its vote": {sourceBoot: 1},
	}
	for name, m := range mutations {
		t.Run(name, func(t *testing.T) {
			x := &explorer{attempts: 2, mutation: m}
			for n := uint64(0); n < 20000; n++ { // the walks are the same every time
				b, ok := aimed[name]
				if !ok {
					b = budgets[n%uint64(len(budgets))]
				}
				first := start(b)
				if _, err := x.walk(n, first, 300, nil); err != nil {
					var trace []string
					_, _ = x.walk(n, first, 300, &trace)
					t.Logf("walk %d: %v, after %d moves, the last:\n%s", n, err, len(trace), strings.Join(trace[max(0, len(trace)-4):], "\n"))
					return
				}
			}
			t.Error("no violation was found: the guard is not needed, or the walks do not come far enough")
		})
	}
}
