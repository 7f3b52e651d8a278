package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"migrate/agent/move"
	"migrate/engine/sock"
)

// settleLook is how long the first pause between two looks at the connections is; the kernel tells nobody of acknowledgements.
const (
	settleLook    = 2 * time.Millisecond
	maxSettleLook = 100 * time.Millisecond
)

// ends names a connection, without zones.
type ends struct{ local, remote netip.AddrPort }

func endsOf(local, remote string) (e ends, err error) {
	if e.local, err = netip.ParseAddrPort(local); err == nil {
		e.remote, err = netip.ParseAddrPort(remote)
	}
	if err != nil {
		return e, fmt.Errorf("connection %s-%s: %w", local, remote, err)
	}
	bare := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port()) }
	return ends{bare(e.local), bare(e.remote)}, nil
}

// settling is a connection whose time-outs are counted.
type settling struct {
	i    int    // in skeleton.conns
	want uint64 // bytes acknowledged, when all is that was sent by the first look; 0 before that
}

// Settled looks at the connections of the network namespace that are the tree's until what they had sent at the first look is
// acknowledged. It asks the kernel about the namespace, because the sockets are the program's alone by now.
func (s *skeleton) Settled(ctx context.Context, before []move.Timeouts) (err error) {
	defer func() { err = errors.Join(err, s.closeNS()) }()
	waits := map[ends]*settling{}
	for i, c := range s.conns {
		e, err := endsOf(c.GetLocal(), c.GetRemote())
		if err != nil {
			return err
		}
		waits[e] = &settling{i: i}
	}
	there := make([]uint64, len(s.conns))
	for _, t := range before {
		e, err := endsOf(t.Local, t.Remote)
		if err != nil {
			return err
		}
		if w := waits[e]; w != nil && t.Silent {
			delete(waits, e)
		} else if w != nil {
			there[w.i] = uint64(t.Count)
			s.conns[w.i].RtoDuringMove = there[w.i]
		}
	}
	if len(waits) == 0 {
		return nil
	}
	var diag *sock.Diag
	if err := sock.In(sock.Place{NetNS: s.netns}, func() (err error) { diag, err = sock.NewDiag(); return err }); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, diag.Close()) }()
	for nap := settleLook; ; nap = min(2*nap, maxSettleLook) {
		list, err := diag.Connections()
		if err != nil {
			return err
		}
		open := map[ends]*settling{} // those that are not here any more have ended
		for _, t := range list {
			e := ends{t.Local, t.Remote}
			w := waits[e]
			if w == nil {
				continue
			}
			s.conns[w.i].RtoDuringMove = there[w.i] + uint64(t.Timeouts)
			if w.want == 0 {
				w.want = t.Acked + uint64(max(t.Left, t.Unsent)-t.Unsent) // they are read one after the other
			}
			if t.Acked < w.want {
				open[e] = w
			}
		}
		if waits = open; len(waits) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // what has come until now is what is told
		case <-time.After(nap):
		}
	}
}
