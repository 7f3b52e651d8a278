package fsm

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

func (l *log) events(after uint64) (out []*clusterapi.Event) {
	l.s.Read(func(s *State) { out = s.EventsAfter(after, 1<<20) })
	return out
}

// told is what has been told after an index: kind, text.
func (l *log) told(after uint64) (out []string) {
	for _, e := range l.events(after) {
		out = append(out, strings.TrimPrefix(e.GetKind().String(), "EVENT_KIND_")+" "+e.GetText())
	}
	return out
}

func TestEvents(t *testing.T) {
	l := cluster(t)
	last := func() uint64 { e := l.events(0); return e[len(e)-1].GetIndex() }
	expect := func(what string, after uint64, want ...string) {
		t.Helper()
		if got := l.told(after); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	expect("a cluster", 0, "CLUSTER_BEGUN the cluster has incarnation 7", "HOST_JOINED host1 is in the cluster, at ", "HOST_JOINED host2 is in the cluster, at ",
		"WORKLOAD_REGISTERED w is to run on host1", "WORKLOAD_STARTED w runs on host1")
	from := last()
	l.drain("host1", &logpb.Drain{BegunUnixNs: 5, MaxParallel: 2})
	l.begin("m1", "w", "host2", 1)
	l.begin("m2", "w", "host2", 1) // refused: tells nothing
	retune := &logpb.Retune{Id: "m1", MaxDowntimeNs: 5e6}
	l.apply(&logpb.Command{Command: &logpb.Command_Retune{Retune: retune}})
	for _, e := range []handoff.Entry{{Kind: handoff.EntryStartCopy}, {Kind: handoff.EntryStartSwitch, Attempt: 1}} {
		l.entry(e)
	}
	slow := EntryCommand("m1", handoff.Entry{Kind: handoff.EntryEndAttempt, Attempt: 1})
	slow.Reason = "slow"
	l.apply(&logpb.Command{Command: &logpb.Command_MigrationEntry{MigrationEntry: slow}})
	l.entry(handoff.Entry{Kind: handoff.EntryStartSwitch, Attempt: 2})
	l.entry(handoff.Entry{Kind: handoff.EntryCommit, Attempt: 2, Epoch: 1, Source: "h", Dest: "h"})
	resumed := EntryCommand("m1", handoff.Entry{Kind: handoff.EntryResumed})
	resumed.DowntimeMs = 12.25
	l.apply(&logpb.Command{Command: &logpb.Command_MigrationEntry{MigrationEntry: resumed}})
	l.entry(handoff.Entry{Kind: handoff.EntryReleased})
	expect("a drain with a move", from, "DRAIN_BEGUN host1 is to be empty: 1 to move, 2 at a time", "MOVE_BEGUN w is to move from host1 to host2",
		"MOVE_RETUNED other limits: blackout of at most 5ms", "MOVE_STEP w: copying", "MOVE_STEP w: switching",
		"MOVE_STEP attempt 1 to switch has ended, the copying goes on: slow", "MOVE_STEP w: switching", "MOVE_COMMITTED w belongs to host2 now (epoch 2)",
		"DRAIN_DONE host1 has no workloads", "MOVE_STEP w: resumed", "MOVE_ENDED w has moved to host2, 12.2 ms of blackout")
	end := l.events(0)[last()-1]
	if end.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED || end.GetDowntimeMs() != 12.25 || end.GetHost() != "host2" || end.GetPhase() != clusterapi.Phase_PHASE_RELEASED || end.GetLogIndex() != l.index {
		t.Errorf("the last event is %v", end)
	}

	from = last()
	l.drain("host1", nil)
	heard := func(boot string, since int64) {
		l.apply(&logpb.Command{Command: &logpb.Command_NodeHeard{NodeHeard: &logpb.NodeHeard{Node: "host2", BootId: boot, SilentSinceUnixNs: since}}})
	}
	heard("b2", 3)
	heard("b2", 3)
	heard("b-other", 0)
	heard("b2", 0)
	heard("b2", 4)
	l.create("v", "host2")
	l.node("host2", "b2-new")
	l.create("x", "host1")
	x := l.workload("x").Instance
	l.apply(&logpb.Command{Command: &logpb.Command_WorkloadEnded{WorkloadEnded: &logpb.WorkloadEnded{Name: "x", Instance: x, Error: "no such program"}}})
	expect("hosts", from, "DRAIN_ENDED host1 takes workloads again", "HOST_LOST host2 is not heard any more", "HOST_BACK host2 is heard again after 0s",
		"HOST_LOST host2 is not heard any more", "WORKLOAD_REGISTERED v is to run on host2", "HOST_RESTARTED host2 has started anew",
		"WORKLOAD_LOST v is lost: its host host2 started again without it", "WORKLOAD_LOST w is lost: its host host2 started again without it",
		"WORKLOAD_REGISTERED x is to run on host1", "WORKLOAD_ENDED x has ended: no such program")

	from = last()
	hash := bytes.Repeat([]byte{1}, 32)
	token := func() {
		l.apply(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{Hash: hash, ExpiresUnixNs: 3600e9}}}})
	}
	redeem := func() {
		l.apply(&logpb.Command{Command: &logpb.Command_RedeemToken{RedeemToken: &logpb.RedeemToken{Hash: hash, Member: &logpb.Member{Name: "host3", Host: "10.0.0.3", KeyHash: hash}}}})
	}
	token()
	token()
	redeem()
	redeem()
	expect("a token", from, "TOKEN_CREATED a token lets a host join until 1970-01-01T01:00:00Z", "TOKEN_USED host3 at 10.0.0.3 has joined with a token")
}

// TestEventsSurvive: a server that gets its state in a snapshot has the same events under the same indices.
func TestEventsSurvive(t *testing.T) {
	l := cluster(t)
	before := l.events(0)
	snap, err := l.s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var out sink
	if err := snap.Persist(&out); err != nil {
		t.Fatal(err)
	}
	other := &log{t: t, s: New(), index: l.index}
	if err := other.s.Restore(io.NopCloser(&out)); err != nil {
		t.Fatal(err)
	}
	l.begin("m1", "w", "host2", 1)
	other.begin("m1", "w", "host2", 1)
	a, b := l.events(0), other.events(0)
	if len(a) != len(before)+1 || !slices.EqualFunc(a, b, func(x, y *clusterapi.Event) bool { return proto.Equal(x, y) }) {
		t.Errorf("here %v, there %v", a, b)
	}
}

// TestEventsBounded: the newest are kept, and who asks for older ones is told how many are missing.
func TestEventsBounded(t *testing.T) {
	l := &log{t: t, s: New()}
	l.node("host1", "b1")
	for i := range eventsKept + 9 {
		l.node("host1", fmt.Sprint("b", i+2))
	}
	all := l.events(0)
	if len(all) != eventsKept+1 || all[0].GetKind() != clusterapi.EventKind_EVENT_KIND_MISSED || all[0].GetRemaining() != 10 || all[0].GetIndex() != 10 || all[1].GetIndex() != 11 {
		t.Fatalf("%d events, first %v, second %v", len(all), all[0], all[1])
	}
	if some := l.events(all[0].GetIndex()); len(some) != eventsKept || some[0].GetIndex() != 11 {
		t.Errorf("after the gap: %d, first %v", len(some), some[0])
	}
	l.s.Read(func(s *State) {
		if cap(s.events) > 3*eventsKept {
			t.Errorf("the list of events has room for %d", cap(s.events))
		}
		if some := s.EventsAfter(s.LastEvent-5, 2); len(some) != 2 || some[1].GetIndex() != s.LastEvent-3 {
			t.Errorf("two of the last five: %v", some)
		}
		if some := s.EventsAfter(s.LastEvent+5, 2); some != nil {
			t.Errorf("after the end: %v", some)
		}
	})
	long := strings.Repeat("\u00e4", maxEventText)
	l.apply(&logpb.Command{Command: &logpb.Command_CreateWorkload{CreateWorkload: &logpb.CreateWorkload{Spec: &agentapi.WorkloadSpec{Name: long}, Host: "host1"}}})
	if e := l.events(all[eventsKept].GetIndex()); len(e) != 1 || len(e[0].GetText()) > maxEventText || !strings.HasSuffix(e[0].GetText(), "...") {
		t.Errorf("a long text: %v", e)
	}
}
