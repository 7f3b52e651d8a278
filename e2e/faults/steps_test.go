//go:build linux

package faults

import (
	"fmt"
	"slices"
	"strings"

	"migrate/coordinator/handoff"
)

// plan has the state machines of the three parties make a move among themselves, in which all goes well, and notes what they do.
type plan struct {
	leader handoff.Leader
	source handoff.Source
	dest   handoff.Destination
	queue  []func()
	steps  []string
	seen   map[string]int
}

// steps are the points of a move, in an order in which they may come: "source.freeze.before".
func steps() []string {
	p := &plan{seen: map[string]int{}}
	p.lead(handoff.LeaderEvent{Kind: handoff.LeaderApplied, Record: handoff.Begin(1, "m", 1, 2, 1)})
	for len(p.queue) > 0 {
		next := p.queue[0]
		p.queue = p.queue[1:]
		next()
	}
	return p.steps
}

func (p *plan) later(f func()) { p.queue = append(p.queue, f) }

func (p *plan) lead(ev handoff.LeaderEvent) {
	next, actions, err := p.leader.Step(ev)
	if err != nil {
		return // a refusal is a word that comes too late
	}
	p.leader = next
	for _, a := range actions {
		switch a.Kind {
		case handoff.ActPropose:
			if rec, err := p.leader.Record.Apply(a.Entry); err == nil {
				p.later(func() { p.lead(handoff.LeaderEvent{Kind: handoff.LeaderApplied, Record: rec}) })
			}
		case handoff.ActOrder, handoff.ActAnswer:
			if a.Role == handoff.RoleSource {
				p.toSource(handoff.SourceEvent{Kind: handoff.SourceOrdered, Order: a.Order, Ref: a.Ref})
			} else {
				p.toDestination(handoff.DestinationEvent{Kind: handoff.DestinationOrdered, Order: a.Order, Ref: a.Ref})
			}
		}
	}
}

func (p *plan) toSource(ev handoff.SourceEvent) {
	p.later(func() {
		next, actions, err := p.source.Step(ev)
		if err != nil {
			return
		}
		p.source = next
		for _, a := range actions {
			p.note(handoff.RoleSource, a)
			switch a.Kind {
			case handoff.ActReport:
				p.report(handoff.RoleSource, a)
			case handoff.ActBuild:
				p.toDestination(handoff.DestinationEvent{Kind: handoff.DestinationPeer, Ref: p.dest.Ref})
				p.toSource(handoff.SourceEvent{Kind: handoff.SourceSkeleton, Ref: next.Ref})
			case handoff.ActCopy:
				p.toSource(handoff.SourceEvent{Kind: handoff.SourceConverged, Ref: next.Ref})
			case handoff.ActFinish:
				ref := p.dest.Ref
				ref.Attempt = a.Ref.Attempt
				p.toDestination(handoff.DestinationEvent{Kind: handoff.DestinationFinished, Ref: ref, Hash: "h"})
			}
		}
	})
}

func (p *plan) toDestination(ev handoff.DestinationEvent) {
	p.later(func() {
		next, actions, err := p.dest.Step(ev)
		if err != nil {
			return
		}
		p.dest = next
		for _, a := range actions {
			p.note(handoff.RoleDestination, a)
			switch a.Kind {
			case handoff.ActReport:
				p.report(handoff.RoleDestination, a)
			case handoff.ActAnswerFinish:
				p.toSource(handoff.SourceEvent{Kind: handoff.SourceFinished, Ref: p.source.Ref, Hash: a.Hash})
			case handoff.ActRequestCommit:
				p.later(func() {
					p.lead(handoff.LeaderEvent{Kind: handoff.LeaderRequestCommit, Role: handoff.RoleDestination, Ref: a.Ref, Hash: a.Hash})
				})
			case handoff.ActResume:
				p.toDestination(handoff.DestinationEvent{Kind: handoff.DestinationRan, Ref: next.Ref})
			}
		}
	})
}

func (p *plan) report(role handoff.Role, a handoff.Action) {
	p.later(func() {
		p.lead(handoff.LeaderEvent{Kind: handoff.LeaderReported, Role: role, Report: a.Report, Ref: a.Ref, Hash: a.Hash})
	})
}

func (p *plan) note(role handoff.Role, a handoff.Action) {
	for _, when := range []string{"before", "after"} {
		step := numbered(p.seen, fmt.Sprintf("%v.%v.%s", role, a, when))
		if !slices.Contains(p.steps, step) {
			p.steps = append(p.steps, step)
		}
	}
}

// numbered tells the records that a move writes, which have one name, by their number. What else is repeated is the same step.
func numbered(seen map[string]int, point string) string {
	if !strings.Contains(point, ".persist.") {
		return point
	}
	seen[point]++
	return fmt.Sprintf("%s%d", point, seen[point])
}
