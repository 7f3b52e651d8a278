package fsm

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

type log struct {
	t     *testing.T
	s     *Store
	index uint64
}

func (l *log) apply(c *logpb.Command) Result {
	l.t.Helper()
	l.index++
	c.UnixNs = int64(l.index)
	b, err := Encode(c)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.s.Apply(&raft.Log{Index: l.index, Data: b}).(Result)
}

func (l *log) node(name, boot string) {
	l.apply(&logpb.Command{Command: &logpb.Command_RegisterNode{RegisterNode: &logpb.RegisterNode{Node: &agentapi.NodeInfo{Name: name, BootId: boot}}}})
}

func (l *log) entry(e handoff.Entry) Result {
	return l.apply(&logpb.Command{Command: &logpb.Command_MigrationEntry{MigrationEntry: EntryCommand("m1", e)}})
}

func (l *log) begin(id, workload, to string, epoch uint64) Result {
	return l.apply(&logpb.Command{Command: &logpb.Command_BeginMigration{BeginMigration: &logpb.BeginMigration{Id: id, Workload: workload, Destination: to, Epoch: epoch}}})
}

func (l *log) create(name, host string) Result {
	return l.apply(&logpb.Command{Command: &logpb.Command_CreateWorkload{CreateWorkload: &logpb.CreateWorkload{Spec: &agentapi.WorkloadSpec{Name: name}, Host: host, RequestId: "r-" + name}}})
}

func (l *log) workload(name string) (w *logpb.Workload) {
	l.s.Read(func(s *State) { w = s.Workloads[name] })
	return w
}

// cluster has two hosts and a running workload "w" on host1.
func cluster(t *testing.T) *log {
	l := &log{t: t, s: New()}
	l.apply(&logpb.Command{Command: &logpb.Command_SetIncarnation{SetIncarnation: &logpb.SetIncarnation{Incarnation: 7}}})
	l.node("host1", "b1")
	l.node("host2", "b2")
	l.create("w", "host1")
	l.apply(&logpb.Command{Command: &logpb.Command_WorkloadStarted{WorkloadStarted: &logpb.WorkloadStarted{Name: "w", Instance: 1, Pid: 42}}})
	return l
}

func TestMove(t *testing.T) {
	l := cluster(t)
	if res := l.begin("m1", "w", "host2", 1); res.Err != nil {
		t.Fatal(res.Err)
	}
	for _, e := range []handoff.Entry{{Kind: handoff.EntryStartCopy}, {Kind: handoff.EntryStartSwitch, Attempt: 1}} {
		if res := l.entry(e); res.Err != nil {
			t.Fatal(e, res.Err)
		}
	}
	if w := l.workload("w"); w.Host != "host1" || w.Epoch != 1 || w.State != clusterapi.WorkloadState_WORKLOAD_STATE_MOVING {
		t.Fatalf("before the commit: %v", w)
	}
	commit := handoff.Entry{Kind: handoff.EntryCommit, Attempt: 1, Epoch: 1, Source: "h", Dest: "h"}
	if res := l.entry(commit); res.Err != nil {
		t.Fatal(res.Err)
	}
	if w := l.workload("w"); w.Host != "host2" || w.Epoch != 2 || w.Instance != 2 {
		t.Fatalf("after the commit: %v", w)
	}
	if res := l.entry(commit); !errors.Is(res.Err, &handoff.Refusal{Code: handoff.WrongPhase}) {
		t.Fatalf("the second commit: %v", res.Err)
	}
	l.entry(handoff.Entry{Kind: handoff.EntryResumed})
	if res := l.begin("m2", "w", "host1", 2); res.Err == nil {
		t.Fatal("a second migration began before the first was closed")
	}
	l.entry(handoff.Entry{Kind: handoff.EntryReleased})
	if w := l.workload("w"); w.Migration != "" || w.State != clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING {
		t.Fatalf("at the end: %v", w)
	}
	if res := l.begin("m2", "w", "host1", 2); res.Err != nil || res.Migration.Record.Destination != 3 {
		t.Fatalf("the way back: %v, %v", res.Err, res.Migration)
	}
}

// TestDestinationStartedAnew: a destination may be started anew after the migration began and before it hears of it. What counts is the boot
// under which it has the copy.
func TestDestinationStartedAnew(t *testing.T) {
	for boot, want := range map[string]clusterapi.WorkloadState{
		"b2-new": clusterapi.WorkloadState_WORKLOAD_STATE_RUNNING, "b2": clusterapi.WorkloadState_WORKLOAD_STATE_LOST,
	} {
		l := cluster(t)
		l.begin("m1", "w", "host2", 1)
		l.node("host2", "b2-new")
		l.entry(handoff.Entry{Kind: handoff.EntryStartCopy})
		l.entry(handoff.Entry{Kind: handoff.EntryStartSwitch, Attempt: 1})
		commit := EntryCommand("m1", handoff.Entry{Kind: handoff.EntryCommit, Attempt: 1, Epoch: 1, Source: "h", Dest: "h"})
		commit.DestinationBootId = boot
		if res := l.apply(&logpb.Command{Command: &logpb.Command_MigrationEntry{MigrationEntry: commit}}); res.Err != nil {
			t.Fatal(res.Err)
		}
		l.entry(handoff.Entry{Kind: handoff.EntryResumed})
		l.entry(handoff.Entry{Kind: handoff.EntryReleased})
		if w := l.workload("w"); w.State != want || w.BootId != boot {
			t.Errorf("the copy is of boot %s: %v", boot, w)
		}
	}
}

// TestWhy follows what people read as the reason of a migration's state.
func TestWhy(t *testing.T) {
	l := cluster(t)
	if res := l.begin("m1", "w", "host2", 1); res.Err != nil {
		t.Fatal(res.Err)
	}
	for i, c := range []struct {
		entry     handoff.Entry
		says, why string
	}{
		{handoff.Entry{Kind: handoff.EntryStartCopy}, "", ""},
		{handoff.Entry{Kind: handoff.EntryStartSwitch, Attempt: 1}, "", ""},
		{handoff.Entry{Kind: handoff.EntryEndAttempt, Attempt: 1}, "slow", "slow"},
		{handoff.Entry{Kind: handoff.EntryStartSwitch, Attempt: 2}, "", ""},
		{handoff.Entry{Kind: handoff.EntryEndAttempt, Attempt: 2}, "slow again", "slow again"},
		{handoff.Entry{Kind: handoff.EntryAbort}, "silent", "silent"},
		{handoff.Entry{Kind: handoff.EntryConfirmed}, "the switch was superseded", "silent"},
	} {
		cmd := EntryCommand("m1", c.entry)
		cmd.Reason = c.says
		res := l.apply(&logpb.Command{Command: &logpb.Command_MigrationEntry{MigrationEntry: cmd}})
		if res.Err != nil {
			t.Fatal(i, res.Err)
		}
		if res.Migration.GetError() != c.why {
			t.Errorf("after %v, said %q: %q, not %q", c.entry, c.says, res.Migration.GetError(), c.why)
		}
	}
}

func TestRefused(t *testing.T) {
	l := cluster(t)
	l.create("starting", "host1")
	for _, c := range []struct {
		what, reason string
		res          Result
	}{
		{"unknown workload", "no workload", l.begin("m1", "nope", "host2", 1)},
		{"unknown host", "no host", l.begin("m1", "w", "host9", 1)},
		{"the source itself", "already", l.begin("m1", "w", "host1", 1)},
		{"an old plan", "plan again", l.begin("m1", "w", "host2", 3)},
		{"not running", "does not run", l.begin("m1", "starting", "host2", 1)},
		{"no such migration", "no migration", l.entry(handoff.Entry{Kind: handoff.EntryAbort})},
		{"workload on an unknown host", "no host", l.create("x", "host9")},
	} {
		var conflict *Conflict
		if !errors.As(c.res.Err, &conflict) || !strings.Contains(conflict.Reason, c.reason) {
			t.Errorf("%s: %v, want a conflict with %q", c.what, c.res.Err, c.reason)
		}
	}
	if res := l.create("w", "host1"); res.Err != nil || res.Workload.Instance != 1 {
		t.Errorf("the same request again: %v, %v", res.Workload, res.Err)
	}
	l.node("host1", "b1-new")
	if w := l.workload("w"); w.State != clusterapi.WorkloadState_WORKLOAD_STATE_LOST {
		t.Errorf("after the reboot of its host: %v", w)
	}
}

type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "test" }
func (*sink) Cancel() error { return nil }
func (*sink) Close() error  { return nil }

func TestSnapshotRestore(t *testing.T) {
	l := cluster(t)
	l.begin("m1", "w", "host2", 1)
	l.entry(handoff.Entry{Kind: handoff.EntryStartCopy})
	snap, err := l.s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	l.entry(handoff.Entry{Kind: handoff.EntryAbort}) // after the snapshot: must not be in it
	var out sink
	if err := snap.Persist(&out); err != nil {
		t.Fatal(err)
	}
	snap.Release()
	n := New()
	if err := n.Restore(io.NopCloser(bytes.NewReader(out.Bytes()))); err != nil {
		t.Fatal(err)
	}
	n.Read(func(s *State) {
		if p := Record(s.Migrations["m1"]).Phase; p != handoff.PhaseCopying || len(s.Open()) != 1 || s.Incarnation != 7 || s.LastInstance != 2 {
			t.Errorf("restored: phase %v, %d open, incarnation %d", p, len(s.Open()), s.Incarnation)
		}
	})
	if err := n.Restore(io.NopCloser(strings.NewReader("\x09nonsense"))); !errors.Is(err, ErrFormat) {
		t.Errorf("nonsense restored: %v", err)
	}
	n.Read(func(s *State) {
		if len(s.Workloads) != 1 {
			t.Error("a failed restore changed the state")
		}
	})
}

// FuzzApply: no decodable command makes applying fail, and two servers come to the same state.
func FuzzApply(f *testing.F) {
	for _, c := range []*logpb.Command{
		{Command: &logpb.Command_SetIncarnation{SetIncarnation: &logpb.SetIncarnation{Incarnation: 9}}},
		{Command: &logpb.Command_RegisterNode{RegisterNode: &logpb.RegisterNode{Node: &agentapi.NodeInfo{Name: "host1", BootId: "b"}}}},
		{Command: &logpb.Command_BeginMigration{BeginMigration: &logpb.BeginMigration{Id: "m1", Workload: "w", Destination: "host2", Epoch: 1}}},
		{Command: &logpb.Command_MigrationEntry{MigrationEntry: EntryCommand("m1", handoff.Entry{Kind: handoff.EntryAbort})}},
		{Command: &logpb.Command_NodeHeard{NodeHeard: &logpb.NodeHeard{Node: "host1", BootId: "b1", SilentSinceUnixNs: 1}}},
		{Command: &logpb.Command_SetDrain{SetDrain: &logpb.SetDrain{Node: "host1", Drain: &logpb.Drain{MaxParallel: 1}}}},
	} {
		b, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		var states [2][]byte
		for i := range states {
			l := cluster(t)
			l.begin("m1", "w", "host2", 1)
			l.s.apply(100, proto.CloneOf(c))
			l.s.Read(func(s *State) {
				states[i], _ = proto.MarshalOptions{Deterministic: true}.Marshal(s.snapshot())
			})
		}
		if !bytes.Equal(states[0], states[1]) {
			t.Fatal("two servers came to different states")
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	f.Add([]byte{Version})
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := New().Restore(io.NopCloser(bytes.NewReader(b))); err != nil && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
	})
}
