package handoff

import "fmt"

// The world of the exploration: the log, one leader at a time, two hosts, and a network that keeps every message ever
// sent. A message may be delivered at any later time, many times or never: that is loss, duplication, delay and
// reordering at once. An agent does one action at a time, and may crash between any two.

type copyState uint8

const (
	copyNone copyState = iota
	copySkeleton
	copyStopped
	copyRunning
	copyGone
)

type party uint8

const (
	toLeader party = iota
	toSource
	toDestination
)

// message is anything in flight. Only the event of its receiver is set.
type message struct {
	to     party
	leader LeaderEvent
	source SourceEvent
	dest   DestinationEvent
	finish uint32 // to the destination: Peer.Finish of this attempt
}

// queue is what an agent has still to do: the id of an interned list, 0 for none.
type queue uint32

type item struct {
	act  Action
	next queue
}

// set makes the queue of the actions that have an effect in this world.
func (x *explorer) set(q *queue, as []Action) {
	*q = 0
	for i := len(as) - 1; i >= 0; i-- {
		switch as[i].Kind {
		case ActExpect, ActCopy, ActStop, ActHold, ActAsk: // what follows from them may happen at any time here
			continue
		}
		*q = queue(x.items.id(item{as[i], *q}))
	}
}

func (x *explorer) pop(q *queue) Action {
	it := x.items.list[*q]
	*q = it.next
	return it.act
}

type sourceHost struct {
	state Source
	disk  SourceDisk
	copy  copyState
	queue queue
	down  bool // crashed or rebooted, not yet started again
	boot  bool // it was a reboot
}

type destHost struct {
	state Destination
	disk  DestinationDisk
	copy  copyState
	queue queue
	down  bool
	boot  bool
}

type budget struct {
	sourceCrash, destCrash, sourceBoot, destBoot, leader, broken uint8
}

const inflightLen = 3

type world struct {
	record   Record
	leader   Leader
	inflight [inflightLen]Entry
	source   sourceHost
	dest     destHost
	net      [2]uint64
	left     budget
	stale    uint32 // the source ran after the end of this attempt's copy
	ran      bool   // the destination has run
}

// apply is Record.Apply, less the guard that is taken out.
func (x *explorer) apply(r Record, e Entry) (Record, error) {
	if x.onApply != nil {
		if n, ok := x.onApply(r, e); ok {
			return n, nil
		}
	}
	return r.Apply(e)
}

// explorer interns the parts of a world, so that a state is a few words.
type explorer struct {
	attempts uint32
	msgs     map[message]int
	list     []message
	items    interner[item]
	mutation // the guard that is taken out, if any
}

// mutation takes out a guard. Each function may stand in for a Step or Apply; false: it does not.
type mutation struct {
	onSource func(Source, SourceEvent) (Source, []Action, bool)
	onDest   func(Destination, DestinationEvent) (Destination, []Action, bool)
	onApply  func(Record, Entry) (Record, bool)
}

func (x *explorer) send(w *world, m message) {
	i, ok := x.msgs[m]
	if !ok {
		i = len(x.list)
		if i >= 128 {
			panic("more than 128 different messages")
		}
		x.msgs[m] = i
		x.list = append(x.list, m)
	}
	w.net[i/64] |= 1 << (i % 64)
}

func start(b budget) world {
	w := world{record: Begin(1, "m", 1, 2, 1), left: b}
	w.source.copy = copyRunning
	return w
}

// leaderDo carries out the leader's actions at once: it has nothing durable, so that a crash between two of them is
// the loss of a message or of a proposal.
func (x *explorer) leaderDo(w *world, as []Action) {
	for _, a := range as {
		switch a.Kind {
		case ActPropose:
			for i := range w.inflight {
				if w.inflight[i] == a.Entry {
					break
				}
				if w.inflight[i].Kind == EntryNone {
					w.inflight[i] = a.Entry
					break
				}
			}
		case ActOrder, ActAnswer:
			if a.Role == RoleSource {
				x.send(w, message{to: toSource, source: SourceEvent{Kind: SourceOrdered, Order: a.Order, Ref: a.Ref}})
			} else {
				x.send(w, message{to: toDestination, dest: DestinationEvent{Kind: DestinationOrdered, Order: a.Order, Ref: a.Ref}})
			}
		}
	}
}

func (x *explorer) leaderStep(w *world, ev LeaderEvent) {
	next, as, err := w.leader.Step(ev)
	if err == nil {
		w.leader = next
		x.leaderDo(w, as)
	}
}

func (x *explorer) sourceStep(w *world, ev SourceEvent) bool {
	next, as, err := w.source.state.Step(ev)
	if x.onSource != nil {
		if n, a, ok := x.onSource(w.source.state, ev); ok {
			next, as, err = n, a, nil
		}
	}
	if err != nil {
		return false
	}
	w.source.state = next
	x.set(&w.source.queue, as)
	return true
}

func (x *explorer) destStep(w *world, ev DestinationEvent) bool {
	next, as, err := w.dest.state.Step(ev)
	if x.onDest != nil {
		if n, a, ok := x.onDest(w.dest.state, ev); ok {
			next, as, err = n, a, nil
		}
	}
	if err != nil {
		return false
	}
	if ev.Kind == DestinationFinished {
		w.dest.copy = copyStopped
	}
	if ev.Kind == DestinationPeer {
		w.dest.copy = copySkeleton
	}
	w.dest.state = next
	x.set(&w.dest.queue, as)
	return true
}

func (x *explorer) report(w *world, role Role, a Action) {
	x.send(w, message{leader: LeaderEvent{Kind: LeaderReported, Role: role, Report: a.Report, Ref: a.Ref, Hash: a.Hash, Ran: a.Ran}})
}

// sourceAct carries out the next action of the source; an error is a broken rule.
func (x *explorer) sourceAct(w *world) error {
	h := &w.source
	a := x.pop(&h.queue)
	switch a.Kind {
	case ActPersist:
		h.disk = h.state.Disk
	case ActReport:
		x.report(w, RoleSource, a)
	case ActBuild:
		ref := a.Ref
		ref.Instance = w.record.Destination
		x.send(w, message{to: toDestination, dest: DestinationEvent{Kind: DestinationPeer, Ref: ref}})
	case ActFreeze:
		if h.copy == copyRunning {
			h.copy = copyStopped
		}
	case ActFinish:
		if h.copy == copyStopped {
			x.send(w, message{to: toDestination, finish: a.Ref.Attempt})
		}
	case ActThaw:
		if h.copy == copyStopped {
			if w.ran {
				return fmt.Errorf("rule 5: the source runs on after the destination ran")
			}
			h.copy = copyRunning
			w.stale = max(w.stale, h.state.Ended)
		}
	case ActDestroy:
		if w.record.Phase != PhaseResumed && w.record.Phase != PhaseReleased {
			return fmt.Errorf("rule 2: the source's copy is destroyed while the log says %v", w.record)
		}
		h.copy = copyGone
	}
	return nil
}

func (x *explorer) destAct(w *world) error {
	h := &w.dest
	a := x.pop(&h.queue)
	switch a.Kind {
	case ActPersist:
		h.disk = h.state.Disk
	case ActReport:
		x.report(w, RoleDestination, a)
	case ActAnswerFinish:
		ref := a.Ref
		ref.Instance = w.record.Source
		x.send(w, message{to: toSource, source: SourceEvent{Kind: SourceFinished, Ref: ref, Hash: a.Hash}})
	case ActRequestCommit:
		x.send(w, message{leader: LeaderEvent{Kind: LeaderRequestCommit, Ref: a.Ref, Hash: a.Hash}})
	case ActRewind:
		h.copy = copySkeleton
	case ActResume:
		if h.copy != copyStopped && h.copy != copyRunning {
			return fmt.Errorf("the destination resumes a copy that is not whole")
		}
		if h.state.Ref.Attempt <= w.stale {
			return fmt.Errorf("the destination resumes attempt %d, after which the source ran", h.state.Ref.Attempt)
		}
		h.copy, w.ran = copyRunning, true
	case ActDestroy:
		if p := w.record.Phase; p != PhaseConfirmed && p != PhaseLost {
			return fmt.Errorf("rule 2: the destination's copy is destroyed while the log says %v", w.record)
		}
		if h.copy == copyRunning {
			return fmt.Errorf("rule 2: a running copy is destroyed")
		}
		h.copy = copyGone
	}
	return nil
}

// check is what must hold in every state.
func (w *world) check() error {
	switch {
	case w.source.copy == copyRunning && w.dest.copy == copyRunning:
		return fmt.Errorf("rule 1: two copies run")
	case w.source.copy == copyRunning && w.record.Owner == RoleDestination:
		return fmt.Errorf("rule 5: the source runs while the log says %v", w.record)
	case w.dest.copy == copyRunning && w.record.Owner != RoleDestination:
		return fmt.Errorf("the destination runs while the log says %v", w.record)
	case w.record.Phase == PhaseConfirmed && w.source.copy != copyRunning && !w.source.down && w.source.state.Phase == SourceRunning && w.source.queue == 0 && !w.source.boot:
		return fmt.Errorf("the end was confirmed and nothing runs")
	}
	return nil
}

// done is a state in which nothing more has to happen.
func (w *world) done() bool { return w.record.Closed() || w.record.Phase == PhaseNeedsOperator }
