// Package coordinator is the brain of a cluster: a raft group that keeps who owns which workload, and on its leader
// the driver that takes each migration from step to step.
//
// Every server serves the same gRPC service, Cluster; a call that reaches a server that does not lead is forwarded.
// The leader holds one session for each migration that is not closed: a goroutine with a handoff.Leader. Reports of
// agents, votes and wishes are its events; entries for the log and orders to agents are its actions. A leader holds
// nothing that matters in memory only: after a change the next one reads the log, opens the sessions again and sends
// the orders again, and the agents send their votes and reports again.
//
// Between the source's freeze and the destination's resume there is one entry in the log, Commit.
//
// # Locks
//
// Server.mu guards the present term, term.mu what the leader has heard of nodes and its sessions. Neither is held
// during a call, a proposal or a wait; Server.mu may be taken before term.mu. A session's state belongs to its goroutine.
//
// # Failure
//
// An error of the log means that it is not known whether an entry is in it: the record is read, the error is never
// acted on. A server that loses the leadership ends its sessions; their callers get UNAVAILABLE and ask again.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
)

// Server is one voter of the cluster. Close ends it.
type Server struct {
	c      Config
	node   *node
	agents *pool
	gossip *Members
	grpc   *grpc.Server // nil unless Config.Listen
	join   *grpc.Server // nil unless Config.Authority
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	current *term
	changed chan struct{} // closed and replaced when current, or the leader, changes
}

// Start starts a server from its data directory. The context bounds the start only.
func Start(ctx context.Context, config Config) (s *Server, err error) {
	c, err := config.complete()
	if err != nil {
		return nil, err
	}
	s = &Server{c: c, agents: newPool(c), changed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	if s.node, err = openRaft(ctx, c, s.clusterExists); err != nil {
		return s, err
	}
	s.wg.Go(s.lead)
	s.wg.Go(s.observe)
	if c.Ports.Gossip != 0 {
		if s.gossip, err = s.startGossip(); err != nil {
			return s, err
		}
	}
	if c.Listen {
		if err := s.listen(); err != nil {
			return s, err
		}
	}
	if err := s.listenJoin(); err != nil {
		return s, err
	}
	return s, nil
}

// Close ends the server. Its data stays; the rest of the cluster elects another leader.
func (s *Server) Close() error {
	s.cancel()
	if s.grpc != nil {
		s.grpc.Stop()
	}
	if s.join != nil {
		s.join.Stop()
	}
	var errs []error
	if s.gossip != nil {
		errs = append(errs, s.gossip.Close())
	}
	if s.node != nil {
		errs = append(errs, s.node.close())
	}
	s.wg.Wait()
	s.agents.close()
	return errors.Join(errs...)
}

// listen serves Cluster on the control port, for a server that shares no port with an agent.
func (s *Server) listen() error {
	addr := hostPort(s.c.Bind, s.c.Ports.Control)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("coordinator: listen on %s: %w", addr, err)
	}
	s.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(s.c.TLS.ServerTLS())), grpc.MaxRecvMsgSize(agentapi.MaxMessage))
	s.Register(s.grpc)
	s.wg.Go(func() {
		if err := s.grpc.Serve(l); err != nil && s.ctx.Err() == nil {
			s.c.Log.Error("the Cluster service ended", "error", err)
		}
	})
	return nil
}

// clusterExists asks the other servers whether there is a cluster already: one whose disk was wiped must not make a
// second one, but be filled by the leader.
func (s *Server) clusterExists(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	found := make(chan bool)
	asked := 0
	for _, p := range s.c.peers() {
		if p.name == s.c.Name {
			continue
		}
		asked++
		s.wg.Go(func() {
			conn, err := s.agents.conn(p.name, p.addr(s.c.Ports.Control))
			if err == nil {
				var r *clusterapi.NodesReply
				r, err = clusterapi.NewClusterClient(conn).Nodes(ctx, &clusterapi.NodesRequest{})
				if err == nil && r.GetIncarnation() != 0 {
					found <- true
					return
				}
			}
			found <- false
		})
	}
	exists := false
	for range asked {
		exists = <-found || exists
	}
	return exists
}

// lead follows raft: it opens a term when this server has become the leader and has applied all that was decided
// before, and ends it, with all its sessions, when it leads no more.
func (s *Server) lead() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case leads := <-s.node.leader:
			if leads {
				s.serveTerm()
			}
		}
	}
}

// observe wakes whoever waits for another leader.
func (s *Server) observe() {
	seen := make(chan raft.Observation, 16)
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool { _, ok := o.Data.(raft.LeaderObservation); return ok })
	s.node.raft.RegisterObserver(o)
	defer s.node.raft.DeregisterObserver(o)
	// Observations may be dropped when many come at once, so a change is looked for from time to time as well.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for last := ""; ; {
		select {
		case <-s.ctx.Done():
			return
		case <-seen:
		case <-tick.C:
		}
		if l := s.Leader(); l != last {
			last = l
			s.wake()
		}
	}
}

// serveTerm runs from one election to the loss of the leadership.
func (s *Server) serveTerm() {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	lost := make(chan struct{})
	s.wg.Go(func() {
		defer close(lost)
		select {
		case <-ctx.Done():
		case <-s.node.leader:
			cancel()
		}
	})
	defer func() { <-lost }()
	if err := s.establish(ctx); err != nil {
		s.c.Log.Warn("elected, but the log does not take entries", "error", err)
		cancel()
		return
	}
	t := newTerm(ctx, s)
	s.setTerm(t)
	s.c.Log.Info("leading")
	t.run()
	s.setTerm(nil)
	s.c.Log.Info("leading no more")
}

// establish waits until everything decided before is applied here, and gives a new cluster its incarnation.
func (s *Server) establish(ctx context.Context) error {
	for {
		err := s.node.raft.Barrier(barrierTimeout).Error()
		if err == nil {
			err = s.incarnate()
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		select { // still elected as far as raft has told: ask again until it says otherwise
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// incarnate gives a new cluster its incarnation.
func (s *Server) incarnate() error {
	var incarnation uint64
	s.node.store.Read(func(st *fsm.State) { incarnation = st.Incarnation })
	if incarnation != 0 {
		return nil
	}
	_, err := s.node.propose(&logpb.Command{Command: &logpb.Command_SetIncarnation{
		SetIncarnation: &logpb.SetIncarnation{Incarnation: uint64(time.Now().UnixMilli())}}})
	return err
}

func (s *Server) setTerm(t *term) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = t
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// term is the present one, nil unless this server leads and is ready.
func (s *Server) term() *term {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

func (s *Server) leadershipChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Leads says whether this server is the leader at present, for people.
func (s *Server) Leads() bool { return s.term() != nil }

// Leader is the name of the leader as this server knows it; empty if it knows of none.
func (s *Server) Leader() string {
	_, id := s.node.raft.LeaderWithID()
	return string(id)
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
