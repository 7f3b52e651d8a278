package fsm

import (
	"maps"
	"slices"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm/logpb"
)

// State is all that the log has decided. The messages in it are never changed once they are in: an apply function
// puts a changed clone in their place, so that a snapshot or a reader may keep them.
type State struct {
	Incarnation  uint64
	LastInstance uint64 // of a copy; every copy ever made has its own
	LastIndex    uint64 // of the log, applied
	Nodes        map[string]*logpb.Node
	Workloads    map[string]*logpb.Workload
	Migrations   map[string]*logpb.Migration
	Tokens       map[string]*logpb.Token  // by the hash of their secret
	Members      map[string]*logpb.Member // hosts that have joined with a token
	LastEvent    uint64                   // index
	order        []string                 // migrations, oldest first
	events       []*clusterapi.Event      // the newest, by index, without a gap
}

// historyLimit is how many closed migrations are kept.
const historyLimit = 1000

func newState() *State {
	return &State{Nodes: map[string]*logpb.Node{}, Workloads: map[string]*logpb.Workload{}, Migrations: map[string]*logpb.Migration{},
		Tokens: map[string]*logpb.Token{}, Members: map[string]*logpb.Member{}}
}

// clone copies the maps, not the messages.
func (s *State) clone() *State {
	c := *s
	c.Nodes, c.Workloads, c.Migrations = maps.Clone(s.Nodes), maps.Clone(s.Workloads), maps.Clone(s.Migrations)
	c.Tokens, c.Members = maps.Clone(s.Tokens), maps.Clone(s.Members)
	c.order, c.events = slices.Clone(s.order), slices.Clone(s.events)
	return &c
}

// MigrationsInOrder is all that are known, oldest first.
func (s *State) MigrationsInOrder() []*logpb.Migration {
	out := make([]*logpb.Migration, 0, len(s.order))
	for _, id := range s.order {
		out = append(out, s.Migrations[id])
	}
	return out
}

// Open is the migrations that are not closed, oldest first.
func (s *State) Open() []*logpb.Migration {
	var out []*logpb.Migration
	for _, m := range s.MigrationsInOrder() {
		if !Record(m).Closed() {
			out = append(out, m)
		}
	}
	return out
}

// forget drops the oldest closed migrations over the limit.
func (s *State) forget() {
	over := len(s.order) - historyLimit
	if over <= 0 {
		return
	}
	s.order = slices.DeleteFunc(s.order, func(id string) bool {
		if over <= 0 || !Record(s.Migrations[id]).Closed() {
			return false
		}
		over--
		delete(s.Migrations, id)
		return true
	})
}

func (s *State) snapshot() *logpb.Snapshot {
	p := &logpb.Snapshot{Incarnation: s.Incarnation, LastInstance: s.LastInstance, LastIndex: s.LastIndex, Migrations: s.MigrationsInOrder(),
		Events: slices.Clone(s.events), LastEvent: s.LastEvent}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		p.Nodes = append(p.Nodes, s.Nodes[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.Workloads)) {
		p.Workloads = append(p.Workloads, s.Workloads[name])
	}
	for _, hash := range slices.Sorted(maps.Keys(s.Tokens)) {
		p.Tokens = append(p.Tokens, s.Tokens[hash])
	}
	for _, name := range slices.Sorted(maps.Keys(s.Members)) {
		p.Members = append(p.Members, s.Members[name])
	}
	return p
}

func stateOf(p *logpb.Snapshot) *State {
	s := newState()
	s.Incarnation, s.LastInstance, s.LastIndex = p.GetIncarnation(), p.GetLastInstance(), p.GetLastIndex()
	s.events, s.LastEvent = p.GetEvents(), p.GetLastEvent()
	for _, n := range p.GetNodes() {
		s.Nodes[n.GetInfo().GetName()] = n
	}
	for _, w := range p.GetWorkloads() {
		s.Workloads[w.GetSpec().GetName()] = w
	}
	for _, t := range p.GetTokens() {
		s.Tokens[string(t.GetHash())] = t
	}
	for _, m := range p.GetMembers() {
		s.Members[m.GetName()] = m
	}
	for _, m := range p.GetMigrations() {
		id := m.GetRecord().GetMigration()
		if s.Migrations[id] == nil {
			s.order = append(s.order, id)
		}
		s.Migrations[id] = m
	}
	return s
}
