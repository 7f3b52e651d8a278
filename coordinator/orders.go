package coordinator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	"migrate/coordinator/client"
	"migrate/coordinator/fsm"
	"migrate/coordinator/handoff"
)

// mailbox holds the newest order for one agent. An older one that was not delivered is worthless: orders follow from
// the record, and the newest record says all.
type mailbox struct {
	mu   sync.Mutex
	next *agentapi.OrderRequest
	full chan struct{} // one token while next is set
}

func newMailbox() *mailbox { return &mailbox{full: make(chan struct{}, 1)} }

func (b *mailbox) put(o *agentapi.OrderRequest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = o
	select {
	case b.full <- struct{}{}:
	default:
	}
}

func (b *mailbox) take() *agentapi.OrderRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.next
	b.next = nil
	return o
}

// orderTimeout bounds one delivery. An order is accepted quickly, or sent again.
const orderTimeout = 5 * time.Second

// deliver sends one agent its orders, one after the other. An order that could not be delivered comes again with the
// next redrive.
func (s *session) deliver(ctx context.Context, role handoff.Role, box *mailbox) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-box.full:
		}
		o := box.take()
		if o == nil {
			continue
		}
		reply, err := s.send(ctx, role, o)
		said := ""
		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			said = fmt.Sprintf("%s cannot be reached: %s", s.hosts[role], client.Message(err))
		case !reply.GetAccepted():
			said = fmt.Sprintf("%s refuses: %s", s.hosts[role], reply.GetReason())
		}
		s.mu.Lock()
		was := s.view.silent[role]
		s.view.silent[role] = said
		s.mu.Unlock()
		if said != was {
			s.t.s.c.Log.Info("order", "migration", s.id, "order", orderName(o), "attempt", o.GetRef().GetAttempt(), "answer", said)
			s.t.touch()
		}
		if err == nil && hopeless(reply.GetRefusal()) && !reply.GetAccepted() {
			ev := handoff.LeaderEvent{Kind: handoff.LeaderTimeout}
			if err := s.call(ctx, sessionEvent{ev: ev, reason: said}); err != nil && !errors.Is(err, &handoff.Refusal{Code: handoff.WrongPhase}) && ctx.Err() == nil {
				s.log("an order was refused", err)
			}
		}
	}
}

// hopeless refusals will not change by asking again: before the commit they end the migration.
func hopeless(r agentapi.Refusal) bool {
	switch r {
	case agentapi.Refusal_REFUSAL_OVERLAP, agentapi.Refusal_REFUSAL_NO_SUCH_PROCESS, agentapi.Refusal_REFUSAL_OBSTACLES,
		agentapi.Refusal_REFUSAL_DISK, agentapi.Refusal_REFUSAL_UNSUPPORTED:
		return true
	}
	return false
}

func (s *session) send(ctx context.Context, role handoff.Role, o *agentapi.OrderRequest) (*agentapi.OrderReply, error) {
	host := s.hosts[role]
	info := s.t.nodeInfo(host)
	if info == nil {
		return nil, fmt.Errorf("%s is not registered", host)
	}
	agent, err := s.t.s.agents.agent(info)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	return agent.Order(ctx, o)
}

// order is the message of an action.
func (s *session) order(a handoff.Action) *agentapi.OrderRequest {
	r := s.lead.Record
	o := &agentapi.OrderRequest{Role: agentapi.Role(a.Role), Workload: s.m.GetWorkload(),
		Ref: &agentapi.Ref{Incarnation: a.Ref.Incarnation, Migration: a.Ref.Migration, Attempt: a.Ref.Attempt, Instance: a.Ref.Instance, Epoch: r.Epoch}}
	var spec *agentapi.WorkloadSpec
	s.t.s.node.store.Read(func(st *fsm.State) {
		o.LogIndex = st.LastIndex
		spec = st.Workloads[s.m.GetWorkload()].GetSpec()
	})
	opt := withDefaults(s.m.GetOptions())
	switch a.Order {
	case handoff.OrderPrepareDestination:
		o.Order = &agentapi.OrderRequest_PrepareDestination{PrepareDestination: &agentapi.PrepareDestination{
			Source: s.t.nodeInfo(s.m.GetSource()), SourceInstance: r.Source, Spec: spec, Options: opt}}
	case handoff.OrderPrepareSource:
		o.Order = &agentapi.OrderRequest_PrepareSource{PrepareSource: &agentapi.PrepareSource{
			Destination: s.t.nodeInfo(s.m.GetDestination()), DestinationInstance: r.Destination, Spec: spec, Options: opt}}
	case handoff.OrderCopy:
		o.Order = &agentapi.OrderRequest_Copy{Copy: &agentapi.Copy{}}
	case handoff.OrderSwitch:
		// As it is now: an operator may have changed it. The limit of a forced switch is the agent's to apply.
		o.Order = &agentapi.OrderRequest_Switch{Switch: &agentapi.Switch{MaxDowntimeNs: opt.GetMaxDowntimeNs()}}
	case handoff.OrderEndAttempt:
		o.Order = &agentapi.OrderRequest_EndAttempt{EndAttempt: &agentapi.EndAttempt{Reason: s.m.GetError()}}
	case handoff.OrderAbort:
		o.Order = &agentapi.OrderRequest_Abort{Abort: &agentapi.Abort{Reason: s.m.GetError()}}
	case handoff.OrderCommit:
		o.Order = &agentapi.OrderRequest_Commit{Commit: &agentapi.Commit{}}
	case handoff.OrderRevert:
		o.Order = &agentapi.OrderRequest_Revert{Revert: &agentapi.Revert{}}
	case handoff.OrderRelease:
		o.Order = &agentapi.OrderRequest_Release{Release: &agentapi.Release{}}
	case handoff.OrderDestroyCopy:
		o.Order = &agentapi.OrderRequest_DestroyCopy{DestroyCopy: &agentapi.DestroyCopy{}}
	}
	return o
}

func orderName(o *agentapi.OrderRequest) string {
	m := o.ProtoReflect()
	d := m.WhichOneof(m.Descriptor().Oneofs().ByName("order"))
	if d == nil {
		return "none"
	}
	return string(d.Name())
}

const onTimeoutForce = agentapi.OnTimeout_ON_TIMEOUT_FORCE

// withDefaults fills in what a move leaves open.
func withDefaults(o *agentapi.MoveOptions) *agentapi.MoveOptions {
	out := &agentapi.MoveOptions{}
	if o != nil {
		out = proto.CloneOf(o)
	}
	if out.Strategy == agentapi.Strategy_STRATEGY_UNSPECIFIED {
		out.Strategy = agentapi.Strategy_STRATEGY_PRECOPY
	}
	if out.OnTimeout == agentapi.OnTimeout_ON_TIMEOUT_UNSPECIFIED {
		out.OnTimeout = agentapi.OnTimeout_ON_TIMEOUT_CANCEL
	}
	out.MaxDowntimeNs, out.TimeoutNs, out.HardLimitNs = int64(o.MaxDowntime()), int64(o.Timeout()), int64(o.HardLimit())
	if out.Compress == "" {
		out.Compress = "auto"
	}
	return out
}

// checkOptions refuses what no move can do, before it is in the log.
func checkOptions(o *agentapi.MoveOptions) error {
	if err := o.Check(); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

// retuned gives both agents the new options; they are in the log, so a copy that misses them hears of them in its
// next orders.
func (s *session) retuned() {
	for _, role := range []handoff.Role{handoff.RoleSource, handoff.RoleDestination} {
		ref := s.lead.Record.Ref(role)
		s.mail[role].put(&agentapi.OrderRequest{Role: agentapi.Role(role), Workload: s.m.GetWorkload(),
			Ref:   &agentapi.Ref{Incarnation: ref.Incarnation, Migration: ref.Migration, Attempt: ref.Attempt, Instance: ref.Instance, Epoch: s.lead.Record.Epoch},
			Order: &agentapi.OrderRequest_Retune{Retune: &agentapi.Retune{Options: withDefaults(s.m.GetOptions())}}})
	}
}
