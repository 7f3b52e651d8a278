package handoff

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata anew")

// The tables under testdata list what every state makes of every event: "state + event -> state: actions", or the
// code of the refusal. They are read by people at review: a changed line is a changed protocol.

func golden(t *testing.T, file string, lines []string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	w := strings.Split(string(want), "\n")
	for i, l := range strings.Split(got, "\n") {
		if i >= len(w) || w[i] != l {
			t.Fatalf("%s line %d:\n got %s\nwant %s", path, i+1, l, append(w, "")[min(i, len(w))])
		}
	}
	t.Fatalf("%s has more lines than the code gives", path)
}

func line(state, ev, next fmt.Stringer, actions []Action, err error) string {
	if err != nil {
		var r *Refusal
		if !errors.As(err, &r) {
			return fmt.Sprintf("%v + %v -> error %v", state, ev, err)
		}
		return fmt.Sprintf("%v + %v -> refused: %v", state, ev, r.Code)
	}
	var as []string
	for _, a := range actions {
		as = append(as, a.String())
	}
	return fmt.Sprintf("%v + %v -> %v: %s", state, ev, next, strings.Join(as, ", "))
}

func TestSourceTable(t *testing.T) {
	ref := Ref{Incarnation: 1, Migration: "m", Attempt: 2, Instance: 1}
	var events []SourceEvent
	for o := OrderPrepareDestination; o < orderCount; o++ {
		for k := uint32(1); k <= 3; k++ {
			r := ref
			r.Attempt = k
			events = append(events, SourceEvent{Kind: SourceOrdered, Order: o, Ref: r})
		}
	}
	for k := SourceSkeleton; k < SourceRecovered; k++ {
		events = append(events, SourceEvent{Kind: k, Ref: ref, Hash: "h"})
	}
	for st := SourceNone; st <= SourceReleasing; st++ {
		for _, frozen := range []bool{false, true} {
			events = append(events, SourceEvent{Kind: SourceRecovered, Disk: SourceDisk{st, ref}, Frozen: frozen})
		}
		events = append(events, SourceEvent{Kind: SourceRebooted, Disk: SourceDisk{st, ref}})
	}
	var lines []string
	for p := SourceIdle; p < sourcePhases; p++ {
		s := Source{Ref: ref, Phase: p, Ended: 1}
		switch p {
		case SourceIdle:
			s = Source{}
		case SourceVoted:
			s.Hash = "h"
		case SourceCopying:
			s.Ended = 2
		}
		for _, ev := range events {
			next, actions, err := s.Step(ev)
			if err != nil && next != s {
				t.Errorf("%v + %v: refused, but the state changed", s, ev)
			}
			l := line(s, ev, next, actions, err)
			if ev.Kind >= SourceRecovered {
				l = strings.Replace(l, ev.String(), fmt.Sprintf("%v(%v, frozen %v)", ev, ev.Disk.Stage, ev.Frozen), 1)
			}
			lines = append(lines, l)
		}
		if p != SourceIdle {
			refusesNames(t, s.String(), ref, func(r Ref) (bool, error) {
				next, _, err := s.Step(SourceEvent{Kind: SourceOrdered, Order: OrderAbort, Ref: r})
				return next == s, err
			})
		}
	}
	golden(t, "source.txt", lines)
}

func TestDestinationTable(t *testing.T) {
	ref := Ref{Incarnation: 1, Migration: "m", Attempt: 2, Instance: 2}
	var events []DestinationEvent
	for o := OrderPrepareDestination; o < orderCount; o++ {
		for k := uint32(1); k <= 3; k++ {
			r := ref
			r.Attempt = k
			events = append(events, DestinationEvent{Kind: DestinationOrdered, Order: o, Ref: r})
		}
	}
	for k := DestinationPeer; k < DestinationRecovered; k++ {
		events = append(events, DestinationEvent{Kind: k, Ref: ref, Hash: "h"})
	}
	for st := DestinationNone; st <= DestinationDestroying; st++ {
		for _, whole := range []bool{false, true} {
			events = append(events, DestinationEvent{Kind: DestinationRecovered, Disk: DestinationDisk{st, ref, "h"}, Whole: whole})
		}
		events = append(events, DestinationEvent{Kind: DestinationRebooted, Disk: DestinationDisk{st, ref, "h"}})
	}
	var lines []string
	for p := DestinationIdle; p < destinationPhases; p++ {
		d := Destination{Ref: ref, Phase: p, Ended: 1}
		switch p {
		case DestinationIdle:
			d = Destination{}
		case DestinationPrepared:
			d.Hash = "h"
		}
		for _, ev := range events {
			next, actions, err := d.Step(ev)
			if err != nil && next != d {
				t.Errorf("%v + %v: refused, but the state changed", d, ev)
			}
			l := line(d, ev, next, actions, err)
			if ev.Kind >= DestinationRecovered {
				l = strings.Replace(l, ev.String(), fmt.Sprintf("%v(%v, whole %v)", ev, ev.Disk.Stage, ev.Whole), 1)
			}
			lines = append(lines, l)
		}
		if p != DestinationIdle {
			refusesNames(t, d.String(), ref, func(r Ref) (bool, error) {
				next, _, err := d.Step(DestinationEvent{Kind: DestinationOrdered, Order: OrderDestroyCopy, Ref: r})
				return next == d, err
			})
		}
	}
	golden(t, "destination.txt", lines)
}

// refusesNames: a message of another incarnation, migration or copy changes nothing in any state.
func refusesNames(t *testing.T, state string, ref Ref, step func(Ref) (same bool, err error)) {
	t.Helper()
	for code, change := range map[Code]func(*Ref){
		StaleIncarnation: func(r *Ref) { r.Incarnation++ },
		OtherMigration:   func(r *Ref) { r.Migration = "other" },
		OtherInstance:    func(r *Ref) { r.Instance += 7 },
	} {
		r := ref
		change(&r)
		same, err := step(r)
		if !errors.Is(err, &Refusal{Code: code}) || !same {
			t.Errorf("%s: %v was answered with %v, want %v", state, r, err, code)
		}
	}
}

// records has one of each phase, as it comes to be.
func records() []Record {
	r := Begin(1, "m", 1, 2, 1)
	out := []Record{r}
	for _, e := range []Entry{{Kind: EntryStartCopy}, {Kind: EntryStartSwitch, Attempt: 1}, {Kind: EntryEndAttempt, Attempt: 1},
		{Kind: EntryStartSwitch, Attempt: 2}} {
		r, _ = r.Apply(e)
		out = append(out, r)
	}
	follow := func(r Record, entries ...Entry) {
		for _, e := range entries {
			r, _ = r.Apply(e)
			out = append(out, r)
		}
	}
	commit := Entry{Kind: EntryCommit, Attempt: 2, Epoch: 1, Source: "h", Dest: "h"}
	follow(r, Entry{Kind: EntryAbort}, Entry{Kind: EntryConfirmed}, Entry{Kind: EntryDestinationGone})
	follow(r, commit, Entry{Kind: EntryResumed}, Entry{Kind: EntryReleased})
	c, _ := r.Apply(commit)
	follow(c, Entry{Kind: EntryRevert, Epoch: 2}, Entry{Kind: EntryConfirmed})
	follow(c, Entry{Kind: EntryDestinationRan})
	follow(out[0], Entry{Kind: EntrySourceLost})
	return out
}

func TestRecordTable(t *testing.T) {
	var lines []string
	seen := map[Phase]bool{}
	for _, r := range records() {
		seen[r.Phase] = true
		for k := EntryBegin; k < entryCount; k++ {
			attempts := []uint32{0}
			if k == EntryStartSwitch || k == EntryEndAttempt || k == EntryCommit {
				attempts = []uint32{1, 2, 3}
			}
			for _, a := range attempts {
				e := Entry{Kind: k, Attempt: a, Epoch: r.Epoch, Source: "h", Dest: "h"}
				next, err := r.Apply(e)
				if err != nil && next != r {
					t.Errorf("%v + %v: refused, but changed", r, e)
				}
				l := line(r, e, next, nil, err)
				if err == nil {
					s, _ := OrderFor(RoleSource, next)
					d, _ := OrderFor(RoleDestination, next)
					l += fmt.Sprintf("owner %v, epoch %d, closed %v; orders: source %v, destination %v", next.Owner, next.Epoch, next.Closed(), s, d)
				}
				lines = append(lines, l)
			}
		}
	}
	for p := PhasePreparing; p < phaseCount; p++ {
		if !seen[p] {
			t.Errorf("no record in phase %v", p)
		}
	}
	golden(t, "record.txt", lines)
}

func TestLeaderTable(t *testing.T) {
	var lines []string
	for _, r := range records() {
		for _, waiting := range []bool{false, true} {
			l, _, err := Leader{}.Step(LeaderEvent{Kind: LeaderApplied, Record: r})
			if err != nil {
				t.Fatal(err)
			}
			if waiting {
				l.Ready = true
				if r.Phase == PhaseSwitching {
					l.Waiting, l.Dest = true, Vote{Attempt: r.Attempt, Hash: "h"}
				}
			}
			for _, ev := range allLeaderEvents(r) {
				next, actions, err := l.Step(ev)
				if err != nil && next != l {
					t.Errorf("%v + %v: refused, but changed", l, ev)
				}
				s := line(l, ev, next, actions, err)
				if waiting {
					s = "waiting, " + s
				}
				lines = append(lines, s)
			}
		}
	}
	golden(t, "leader.txt", lines)
}

func allLeaderEvents(r Record) []LeaderEvent {
	var out []LeaderEvent
	for _, role := range []Role{RoleSource, RoleDestination} {
		for rep := ReportReady; rep < reportCount; rep++ {
			for _, k := range []uint32{1, 2, 3} {
				ref := r.Ref(role)
				ref.Attempt = k
				out = append(out, LeaderEvent{Kind: LeaderReported, Role: role, Report: rep, Ref: ref, Hash: "h", Ran: k == 2})
			}
		}
	}
	for k := LeaderRequestCommit; k < leaderEvents; k++ {
		for _, a := range []uint32{1, 2, 3} {
			ref := r.Ref(RoleDestination)
			ref.Attempt = a
			out = append(out, LeaderEvent{Kind: k, Ref: ref, Hash: "h"})
		}
	}
	return out
}

// TestVotesDiffer: two hashes that differ end the migration, with the source running.
func TestVotesDiffer(t *testing.T) {
	r := records()[4]
	l, _, _ := Leader{}.Step(LeaderEvent{Kind: LeaderApplied, Record: r})
	l, as, err := l.Step(LeaderEvent{Kind: LeaderReported, Role: RoleSource, Report: ReportVote, Ref: r.Ref(RoleSource), Hash: "a"})
	if err != nil || len(as) != 0 {
		t.Fatalf("one vote: %v, %v", as, err)
	}
	_, as, err = l.Step(LeaderEvent{Kind: LeaderRequestCommit, Ref: r.Ref(RoleDestination), Hash: "b"})
	if err != nil || len(as) != 1 || as[0].Entry.Kind != EntryAbort {
		t.Fatalf("votes that differ: %v, %v", as, err)
	}
	if _, err := r.Apply(Entry{Kind: EntryCommit, Attempt: 2, Epoch: 1, Source: "a", Dest: "b"}); err == nil {
		t.Fatal("the log takes a commit with votes that differ")
	}
}
