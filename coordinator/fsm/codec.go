package fsm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/handoff"
)

// Version is the first byte of every command and snapshot. A server that does not know it stops applying rather than
// guess: all servers must come to the same state.
const Version = 1

// MaxCommand bounds a command in bytes: a workload's environment and a migration's list of connections are the
// longest things in one.
const MaxCommand = 4 << 20

// ErrFormat says that bytes are no command or snapshot of this version.
var ErrFormat = errors.New("fsm: not a command of this version")

// Encode is a command as the log keeps it: one byte of version, then the protobuf message.
func Encode(c *logpb.Command) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{Version}, c)
	if err != nil {
		return nil, fmt.Errorf("fsm: encode command: %w", err)
	}
	if len(b) > MaxCommand {
		return nil, fmt.Errorf("fsm: command of %d bytes is longer than %d", len(b), MaxCommand)
	}
	return b, nil
}

// Decode is the command of the log's bytes, or an error that wraps ErrFormat.
func Decode(b []byte) (*logpb.Command, error) {
	if len(b) == 0 || b[0] != Version {
		return nil, fmt.Errorf("%w: version byte %.1x", ErrFormat, b)
	}
	if len(b) > MaxCommand {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	c := new(logpb.Command)
	if err := proto.Unmarshal(b[1:], c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if c.Command == nil {
		return nil, fmt.Errorf("%w: no command in it", ErrFormat)
	}
	return c, nil
}

func decodeSnapshot(b []byte) (*logpb.Snapshot, error) {
	if len(b) == 0 || b[0] != Version {
		return nil, fmt.Errorf("%w: snapshot's version byte %.1x", ErrFormat, b)
	}
	s := new(logpb.Snapshot)
	if err := proto.Unmarshal(b[1:], s); err != nil {
		return nil, fmt.Errorf("%w: snapshot: %w", ErrFormat, err)
	}
	for i, n := range s.Nodes {
		if n.GetInfo().GetName() == "" {
			return nil, fmt.Errorf("%w: snapshot: nodes[%d] has no name", ErrFormat, i)
		}
	}
	for i, w := range s.Workloads {
		if w.GetSpec().GetName() == "" {
			return nil, fmt.Errorf("%w: snapshot: workloads[%d] has no name", ErrFormat, i)
		}
	}
	for i, m := range s.Migrations {
		if m.GetRecord().GetMigration() == "" {
			return nil, fmt.Errorf("%w: snapshot: migrations[%d] has no id", ErrFormat, i)
		}
	}
	if n := len(s.Events); n > eventsKept {
		return nil, fmt.Errorf("%w: snapshot: %d events, more than %d", ErrFormat, n, eventsKept)
	}
	for i, e := range s.Events {
		if left := uint64(len(s.Events) - 1 - i); s.LastEvent < left || e.GetIndex() != s.LastEvent-left {
			return nil, fmt.Errorf("%w: snapshot: events[%d] has index %d, and the last of %d is %d", ErrFormat, i, e.GetIndex(), len(s.Events), s.LastEvent)
		}
	}
	return s, nil
}

// Record is the pure form of a migration's record.
func Record(m *logpb.Migration) handoff.Record {
	r := m.GetRecord()
	return handoff.Record{Incarnation: r.GetIncarnation(), Migration: r.GetMigration(), Phase: handoff.Phase(r.GetPhase()),
		Attempt: r.GetAttempt(), Ended: r.GetEnded(), Source: r.GetSource(), Destination: r.GetDestination(), Epoch: r.GetEpoch(),
		Owner: handoff.Role(r.GetOwner()), SourceGone: r.GetSourceGone(), DestinationGone: r.GetDestinationGone(), Cancelled: r.GetCancelled(),
		Undecided: r.GetUndecided()}
}

func recordPB(r handoff.Record) *logpb.Record {
	return &logpb.Record{Incarnation: r.Incarnation, Migration: r.Migration, Phase: uint32(r.Phase), Attempt: r.Attempt,
		Ended: r.Ended, Source: r.Source, Destination: r.Destination, Epoch: r.Epoch, Owner: uint32(r.Owner),
		SourceGone: r.SourceGone, DestinationGone: r.DestinationGone, Cancelled: r.Cancelled,
		Undecided: r.Undecided}
}

// EntryCommand is the command of a handoff entry; the caller may add what is known for the result.
func EntryCommand(id string, e handoff.Entry) *logpb.MigrationEntry {
	return &logpb.MigrationEntry{Id: id, Kind: uint32(e.Kind), Attempt: e.Attempt, Epoch: e.Epoch, SourceHash: []byte(e.Source),
		DestinationHash: []byte(e.Dest), Ran: e.Ran, Cancelled: e.Cancelled, RunAt: uint32(e.RunAt)}
}

func entryOf(c *logpb.MigrationEntry) handoff.Entry {
	return handoff.Entry{Kind: handoff.EntryKind(min(c.GetKind(), 255)), Attempt: c.GetAttempt(), Epoch: c.GetEpoch(),
		Source: handoff.Hash(c.GetSourceHash()), Dest: handoff.Hash(c.GetDestinationHash()), Ran: c.GetRan(), Cancelled: c.GetCancelled(),
		RunAt: handoff.Role(min(c.GetRunAt(), 255))}
}

// Noop is a command that the state refuses: for measuring the log itself.
func Noop() *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_SetIncarnation{SetIncarnation: &logpb.SetIncarnation{}}}
}
