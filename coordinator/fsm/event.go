package fsm

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

// eventsKept is how many events are kept, in memory and in snapshots. With maxEventText it bounds what they take.
const eventsKept = 4096

// maxEventText is how long what people read of an event may be, in bytes.
const maxEventText = 512

// EventsAfter is up to limit events after an index, oldest first. Where some of those are not kept any more, the first one says so.
func (s *State) EventsAfter(index uint64, limit int) []*clusterapi.Event {
	oldest := s.LastEvent - uint64(len(s.events)) // the index before the first that is kept
	if index >= s.LastEvent {
		return nil
	}
	var out []*clusterapi.Event
	if index < oldest {
		missed := min(oldest-index, 1<<32-1)
		out = append(out, &clusterapi.Event{Index: oldest, UnixNs: s.eventTime(0), Kind: clusterapi.EventKind_EVENT_KIND_MISSED, Remaining: uint32(missed),
			Text: fmt.Sprintf("%d earlier events are not kept any more", missed)})
		index = oldest
	}
	rest := s.events[index-oldest:]
	return append(out, rest[:min(limit, len(rest))]...)
}

func (s *State) eventTime(i int) int64 {
	if i < len(s.events) {
		return s.events[i].GetUnixNs()
	}
	return 0
}

// teller turns what one entry has changed into events.
type teller struct {
	s   *State
	now int64
}

func (t *teller) tell(e *clusterapi.Event) {
	t.s.LastEvent++
	e.Index, e.LogIndex, e.UnixNs = t.s.LastEvent, t.s.LastIndex, t.now
	if len(e.Text) > maxEventText {
		e.Text = strings.ToValidUTF8(e.Text[:maxEventText-3], "") + "..."
	}
	t.s.events = append(t.s.events, e)
	t.s.events = t.s.events[max(0, len(t.s.events)-eventsKept):]
}

// watch looks at what a command is about to change. What it returns is called once the command was applied, and tells of it. As applying
// does, it reads no clock, and it goes through maps in order.
func (s *State) watch(c *logpb.Command) func() {
	t := &teller{s, c.GetUnixNs()}
	drains := s.drainCounts()
	tell := t.watch(c)
	return func() {
		tell()
		t.drains(drains)
	}
}

func (t *teller) watch(c *logpb.Command) func() {
	s := t.s
	switch k := c.GetCommand().(type) {
	case *logpb.Command_SetIncarnation:
		return func() {
			t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_CLUSTER_BEGUN, Text: fmt.Sprintf("the cluster has incarnation %d", k.SetIncarnation.GetIncarnation())})
		}
	case *logpb.Command_RegisterNode:
		return t.registered(k.RegisterNode.GetNode().GetName())
	case *logpb.Command_NodeHeard:
		return t.heard(k.NodeHeard.GetNode())
	case *logpb.Command_SetDrain:
		return t.drained(k.SetDrain.GetNode())
	case *logpb.Command_CreateWorkload:
		return t.workload(k.CreateWorkload.GetSpec().GetName())
	case *logpb.Command_WorkloadStarted:
		return t.workload(k.WorkloadStarted.GetName())
	case *logpb.Command_StopWorkload:
		return t.workload(k.StopWorkload.GetName())
	case *logpb.Command_WorkloadEnded:
		return t.workload(k.WorkloadEnded.GetName())
	case *logpb.Command_BeginMigration:
		return t.migration(k.BeginMigration.GetId(), "")
	case *logpb.Command_MigrationEntry:
		migration := t.migration(k.MigrationEntry.GetId(), k.MigrationEntry.GetReason())
		workload := t.workload(s.Migrations[k.MigrationEntry.GetId()].GetWorkload())
		return func() {
			migration()
			workload()
		}
	case *logpb.Command_Retune:
		return func() {
			m := s.Migrations[k.Retune.GetId()]
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_RETUNED, retuned(k.Retune))
		}
	case *logpb.Command_CreateToken:
		return t.tokenCreated(k.CreateToken.GetToken())
	case *logpb.Command_RedeemToken:
		return t.tokenUsed(k.RedeemToken)
	}
	return func() {}
}

// registered is of a host that came, or came back. What it had is lost when it has another boot id.
func (t *teller) registered(name string) func() {
	before := t.s.Nodes[name]
	var lost []func()
	for _, w := range slices.Sorted(maps.Keys(t.s.Workloads)) {
		if t.s.Workloads[w].GetHost() == name && alive(t.s.Workloads[w].GetState()) {
			lost = append(lost, t.workload(w))
		}
	}
	return func() {
		n := t.s.Nodes[name]
		switch {
		case before == nil:
			t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_HOST_JOINED, Host: name, Text: name + " is in the cluster, at " + n.GetInfo().GetControlAddress()})
		case before.GetInfo().GetBootId() != n.GetInfo().GetBootId():
			t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_HOST_RESTARTED, Host: name, Text: name + " has started anew"})
		case before.GetSilentSinceUnixNs() != 0:
			t.back(name, before)
		}
		for _, tell := range lost {
			tell()
		}
	}
}

func (t *teller) back(name string, before *logpb.Node) {
	silent := time.Duration(t.now - before.GetSilentSinceUnixNs()).Round(100 * time.Millisecond)
	t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_HOST_BACK, Host: name, Text: fmt.Sprintf("%s is heard again after %v", name, silent)})
}

func (t *teller) heard(name string) func() {
	before := t.s.Nodes[name]
	return func() {
		n := t.s.Nodes[name]
		switch was, is := before.GetSilentSinceUnixNs() != 0, n.GetSilentSinceUnixNs() != 0; {
		case is && !was:
			t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_HOST_LOST, Host: name, Text: name + " is not heard any more"})
		case was && !is:
			t.back(name, before)
		}
	}
}

func (t *teller) drained(name string) func() {
	before := t.s.Nodes[name].GetDrain()
	return func() {
		d := t.s.Nodes[name].GetDrain()
		switch {
		case d != nil:
			text := fmt.Sprintf("%s is to be empty: %d to move, %d at a time", name, t.s.living(name), d.GetMaxParallel())
			if before != nil {
				text = fmt.Sprintf("the drain of %s has other limits: %d at a time", name, d.GetMaxParallel())
			}
			t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_DRAIN_BEGUN, Host: name, Remaining: uint32(t.s.living(name)), Text: text})
		case before != nil:
			t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_DRAIN_ENDED, Host: name, Remaining: uint32(t.s.living(name)), Text: name + " takes workloads again"})
		}
	}
}

// living is how many workloads a host has.
func (s *State) living(host string) (n int) {
	for _, w := range s.Workloads {
		if w.GetHost() == host && alive(w.GetState()) {
			n++
		}
	}
	return n
}

// drainCounts is how many workloads each host that is drained has.
func (s *State) drainCounts() map[string]int {
	var out map[string]int
	for name, n := range s.Nodes {
		if n.GetDrain() != nil {
			if out == nil {
				out = map[string]int{}
			}
			out[name] = s.living(name)
		}
	}
	return out
}

// drains tells how far drains have come; one that has only begun is done when there was nothing to do.
func (t *teller) drains(before map[string]int) {
	after := t.s.drainCounts()
	for _, name := range slices.Sorted(maps.Keys(after)) {
		n := after[name]
		if was, ok := before[name]; ok && was == n || !ok && n > 0 {
			continue
		}
		e := &clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_DRAIN_PROGRESS, Host: name, Remaining: uint32(n), Text: fmt.Sprintf("%s has %d left to move", name, n)}
		if n == 0 {
			e.Kind, e.Text = clusterapi.EventKind_EVENT_KIND_DRAIN_DONE, name+" has no workloads"
		}
		t.tell(e)
	}
}

// workload tells of another state of a workload. That it moves is told by its migration.
func (t *teller) workload(name string) func() {
	before := t.s.Workloads[name]
	return func() {
		w := t.s.Workloads[name]
		if w == nil || before.GetInstance() == w.GetInstance() && before.GetState() == w.GetState() {
			return
		}
		e := &clusterapi.Event{Host: w.GetHost(), Workload: name}
		switch w.GetState() {
		case clusterapi.WorkloadState_WORKLOAD_STATE_STARTING:
			e.Kind, e.Text = clusterapi.EventKind_EVENT_KIND_WORKLOAD_REGISTERED, name+" is to run on "+w.GetHost()
		case clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING:
			switch {
			case w.GetSpec().GetBare() && before.GetInstance() != w.GetInstance() && before.GetMigration() == "":
				e.Kind, e.Text = clusterapi.EventKind_EVENT_KIND_WORKLOAD_REGISTERED, fmt.Sprintf("%s is process %d on %s", name, w.GetPid(), w.GetHost())
			case before.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_STARTING:
				e.Kind, e.Text = clusterapi.EventKind_EVENT_KIND_WORKLOAD_STARTED, name+" runs on "+w.GetHost()
			default:
				return
			}
		case clusterapi.WorkloadState_WORKLOAD_STATE_STOPPING:
			e.Kind, e.Text = clusterapi.EventKind_EVENT_KIND_WORKLOAD_STOPPING, name+" is to end"
		case clusterapi.WorkloadState_WORKLOAD_STATE_ENDED:
			e.Kind, e.Text = clusterapi.EventKind_EVENT_KIND_WORKLOAD_ENDED, name+" has ended"+because(w.GetError())
		case clusterapi.WorkloadState_WORKLOAD_STATE_LOST:
			e.Kind, e.Text = clusterapi.EventKind_EVENT_KIND_WORKLOAD_LOST, name+" is lost"+because(w.GetError())
		default:
			return
		}
		t.tell(e)
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// migration tells of another phase of a migration, and of the end of an attempt to switch.
func (t *teller) migration(id, reason string) func() {
	old := t.s.Migrations[id]
	before := Record(old)
	return func() {
		m := t.s.Migrations[id]
		r := Record(m)
		switch {
		case m == nil:
		case old == nil:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_BEGUN, fmt.Sprintf("%s is to move from %s to %s", m.GetWorkload(), m.GetSource(), m.GetDestination()))
		case r.Phase == before.Phase && r.Ended == before.Ended:
		case r.Phase == handoff.PhaseCommitted:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_COMMITTED, fmt.Sprintf("%s belongs to %s now (epoch %d)", m.GetWorkload(), m.GetDestination(), r.Epoch))
		case r.Phase == handoff.PhaseAborted:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_ABORTED, m.GetWorkload()+" is to run on at "+m.GetSource()+because(m.GetError()))
		case r.Phase == handoff.PhaseNeedsOperator:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_NEEDS_OPERATOR, "an operator has to decide where "+m.GetWorkload()+" runs: `migrate resolve "+id+"`"+because(m.GetError()))
		case r.Phase == before.Phase:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_STEP, fmt.Sprintf("attempt %d to switch has ended%s", r.Ended, because(reason)))
		case r.Phase == handoff.PhaseReleased || r.Phase == handoff.PhaseConfirmed || r.Phase == handoff.PhaseLost:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_ENDED, ended(m, r))
		case r.Ended != before.Ended:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_STEP, fmt.Sprintf("attempt %d to switch has ended, the copying goes on%s", r.Ended, because(reason)))
		default:
			t.move(m, clusterapi.EventKind_EVENT_KIND_MOVE_STEP, m.GetWorkload()+": "+r.Phase.String())
		}
	}
}

func ended(m *logpb.Migration, r handoff.Record) string {
	switch r.Phase {
	case handoff.PhaseReleased:
		return fmt.Sprintf("%s has moved to %s, %.1f ms of blackout", m.GetWorkload(), m.GetDestination(), m.GetDowntimeMs())
	case handoff.PhaseConfirmed:
		return m.GetWorkload() + " runs on at " + m.GetSource() + because(m.GetError())
	}
	return "no copy of " + m.GetWorkload() + " is left" + because(m.GetError())
}

func (t *teller) move(m *logpb.Migration, kind clusterapi.EventKind, text string) {
	r := Record(m)
	host := m.GetSource()
	if r.Owner == handoff.RoleDestination {
		host = m.GetDestination()
	}
	t.tell(&clusterapi.Event{Kind: kind, Host: host, Workload: m.GetWorkload(), Migration: r.Migration, Source: m.GetSource(), Destination: m.GetDestination(),
		Phase: Phase(r.Phase), Attempt: r.Attempt, Outcome: Outcome(r.Phase), DowntimeMs: m.GetDowntimeMs(), Text: text})
}

func retuned(c *logpb.Retune) string {
	var parts []string
	if d := c.GetMaxDowntimeNs(); d != 0 {
		parts = append(parts, fmt.Sprintf("blackout of at most %v", time.Duration(d)))
	}
	if b := c.GetBandwidthBytesPerSecond(); b != 0 {
		parts = append(parts, fmt.Sprintf("%d bytes per second", b))
	}
	if c.ThrottleMaxPercent != nil {
		parts = append(parts, fmt.Sprintf("slowed down by at most %d %%", c.GetThrottleMaxPercent()))
	}
	return "other limits: " + strings.Join(parts, ", ")
}

// tokenCreated tells no more of a token than whom it is for: the hash of its secret is nobody's business.
func (t *teller) tokenCreated(token *logpb.Token) func() {
	if t.s.Tokens[string(token.GetHash())] != nil {
		return func() {} // a repetition
	}
	return func() {
		what := "a host"
		if token.GetServer() {
			what = "a server"
		}
		until := time.Unix(0, token.GetExpiresUnixNs()).UTC().Format(time.RFC3339)
		t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_TOKEN_CREATED, Text: "a token lets " + what + " join until " + until})
	}
}

func (t *teller) tokenUsed(c *logpb.RedeemToken) func() {
	if t.s.Tokens[string(c.GetHash())].GetUsedBy() != "" {
		return func() {} // the answer got lost
	}
	return func() {
		m := c.GetMember()
		t.tell(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_TOKEN_USED, Host: m.GetName(), Text: m.GetName() + " at " + m.GetHost() + " has joined with a token"})
	}
}
