// Package fsm is the replicated state: hosts, workloads with their owners, migrations. Every server applies the same
// commands in the same order and comes to the same state, so applying reads no clock, no file and no random number:
// time and new names arrive inside the commands.
//
// A command is one byte of version and a logpb.Command. There is one apply function for each kind, in a table. What
// a command finds refused (a workload that moves already, a compare-and-set that fails) is an answer, *Conflict, and
// leaves the state as it was. Migrations change only by handoff.Record.Apply.
//
// One lock guards the state; readers get it for the length of a function. The messages in the state are immutable,
// so they may be kept. Snapshot copies the maps under the lock, Persist does the I/O without it, Restore builds a new
// state and swaps it in.
//
// A command that cannot be decoded stops the server (raft.FSM has no error path, and a server that skips an entry
// would differ from the others): that is the one panic here, and only our own servers write commands.
package fsm

import (
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"migrate/coordinator/fsm/logpb"
)

// Store is a raft.FSM.
type Store struct {
	mu      sync.RWMutex
	state   *State
	changed chan struct{} // closed and replaced after every applied command
}

// New is an empty store.
func New() *Store { return &Store{state: newState(), changed: make(chan struct{})} }

// Conflict is the answer to a command that the state refuses.
type Conflict struct {
	Kind   ConflictKind
	Reason string // for people: what and why
}

// ConflictKind says what a caller can do about it.
type ConflictKind uint8

const (
	NotFound ConflictKind = iota + 1 // a name that is unknown
	Exists                           // a name that is taken
	Refused                          // what the present state does not allow
)

func (c *Conflict) Error() string { return c.Reason }

func conflict(k ConflictKind, format string, args ...any) error {
	return &Conflict{Kind: k, Reason: fmt.Sprintf(format, args...)}
}

// Result is what Apply answers with; raft hands it to the proposer.
type Result struct {
	Index     uint64
	Err       error // *Conflict, *handoff.Refusal, or nil
	Workload  *logpb.Workload
	Migration *logpb.Migration
}

// Apply is raft.FSM's: it answers with a Result.
func (s *Store) Apply(l *raft.Log) any {
	c, err := Decode(l.Data)
	if err != nil {
		panic(fmt.Sprintf("fsm: log entry %d: %v; a server that skipped it would differ from the others", l.Index, err))
	}
	return s.apply(l.Index, c)
}

func (s *Store) apply(index uint64, c *logpb.Command) Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.LastIndex = index
	tell := s.state.watch(c)
	res := dispatch(s.state, c)
	if res.Err == nil {
		tell()
	}
	res.Index = index
	close(s.changed)
	s.changed = make(chan struct{})
	return res
}

// Read runs f on the state. f must not keep the maps or change anything; the messages it may keep.
func (s *Store) Read(f func(*State)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f(s.state)
}

// Changed is closed once a command was applied after this call.
func (s *Store) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// Snapshot is raft.FSM's.
func (s *Store) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &snapshot{state: s.state.clone()}, nil
}

type snapshot struct{ state *State }

// Persist writes the copied state.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{Version}, s.state.snapshot())
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		return fmt.Errorf("fsm: write snapshot %s: %w", sink.ID(), joinCancel(err, sink))
	}
	return sink.Close()
}

func joinCancel(err error, sink raft.SnapshotSink) error {
	if cerr := sink.Cancel(); cerr != nil {
		return fmt.Errorf("%w (and cancelling it: %w)", err, cerr)
	}
	return err
}

// Release has nothing to do: the copy is garbage collected.
func (s *snapshot) Release() {}

// Restore is raft.FSM's: a new state is built and then takes the old one's place.
func (s *Store) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("fsm: read snapshot: %w", err)
	}
	p, err := decodeSnapshot(b)
	if err != nil {
		return err
	}
	n := stateOf(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = n
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}
