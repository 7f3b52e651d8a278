package coordinator

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
)

// eventBatch is how many events are taken out of the store at a time. A reader that is slow holds no more than these: what it misses
// because it is slow, it is told of.
const eventBatch = 256

func (v *service) Events(req *clusterapi.EventsRequest, out grpc.ServerStreamingServer[clusterapi.Event]) error {
	t, err := v.read()
	if err != nil {
		return err
	}
	after := req.GetAfter()
	var newest uint64
	v.s.node.store.Read(func(st *fsm.State) { newest = st.LastEvent })
	switch {
	case req.GetNewOnly() && after != 0:
		return status.Error(codes.InvalidArgument, "either the events after an index or new ones only, not both")
	case req.GetNewOnly():
		after = newest
	case after > newest:
		return status.Errorf(codes.OutOfRange, "there is no event %d: the newest is %d; is this another cluster?", after, newest)
	}
	for {
		changed := v.s.node.store.Changed()
		var batch []*clusterapi.Event
		v.s.node.store.Read(func(st *fsm.State) { batch = st.EventsAfter(after, eventBatch) })
		for _, e := range batch {
			after = e.GetIndex()
			if e.GetUnixNs() < req.GetSinceUnixNs() {
				continue
			}
			if err := out.Send(e); err != nil {
				return err
			}
		}
		if len(batch) > 0 {
			continue
		}
		if !req.GetFollow() {
			return nil
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return out.Context().Err()
		case <-t.ctx.Done():
			return status.Error(codes.Unavailable, "the leader has changed; ask again, after the last event")
		}
	}
}

// listen puts into the log which hosts have fallen silent and which are heard again, for people: nothing is decided by it. It ends
// with the term.
func (t *term) listen() {
	tick := time.NewTicker(t.s.c.Limits.Redrive)
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		var nodes []*logpb.Node
		t.s.node.store.Read(func(st *fsm.State) {
			for _, n := range st.Nodes {
				nodes = append(nodes, n)
			}
		})
		for _, n := range nodes {
			name := n.GetInfo().GetName()
			at := t.lastHeard(name).at
			silent := time.Since(at) > t.s.c.Limits.Silence
			if was := n.GetSilentSinceUnixNs() != 0; was && t.up(name) || !was && silent {
				c := &logpb.NodeHeard{Node: name, BootId: n.GetInfo().GetBootId()}
				if silent {
					c.SilentSinceUnixNs = at.UnixNano()
				}
				if _, err := t.apply(&logpb.Command{Command: &logpb.Command_NodeHeard{NodeHeard: c}}); err != nil {
					t.s.c.Log.Debug("that a host is heard, or is not, is not in the log yet", "host", name, "error", err)
				}
			}
		}
	}
}
