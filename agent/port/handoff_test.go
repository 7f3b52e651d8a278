//go:build linux

package port_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/agent/port"
	"migrate/tcprepair"
)

var rounds = flag.Int("rounds", 1, "how often each handoff is repeated")

// workload is one that is on a host of the lab: a namespace and its port.
type workload struct {
	ns *os.File
	p  *port.Port
}

var workloadAddrs = []netip.Prefix{netip.MustParsePrefix("10.77.0.50/24"), netip.MustParsePrefix("fd77::50/64")}

func (l *lab) workload(host int, shut bool) *workload {
	l.t.Helper()
	w := &workload{ns: newNS(l.t)}
	p, err := l.hosts[host].Create(context.Background(), port.Spec{
		Name: "web", Addrs: workloadAddrs, Bridge: "br0", NetNS: w.ns, Shut: shut,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	w.p = p
	return w
}

// stream is one connection of a workload with both its ends.
type stream struct {
	c      *client
	s      *server
	paused *tcprepair.Paused
	held   *tcprepair.Held
	state  *tcprepair.State
	sock   *os.File
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// stopAtSource is what happens at the source until the state of all connections is known.
func stopAtSource(t *testing.T, g *port.Gate, streams []*stream) {
	t.Helper()
	check(t, "shut ingress", g.ShutIngress())
	for _, s := range streams {
		check(t, "freeze", s.s.freeze())
	}
	for _, s := range streams {
		var err error
		s.paused, err = tcprepair.Pause(s.s.conn)
		check(t, "pause", err)
		check(t, "flush acknowledgements", s.paused.FlushAck())
		s.state, err = s.paused.Save()
		check(t, "save", err)
	}
	check(t, "shut egress", g.ShutEgress())
	for _, s := range streams {
		check(t, "verify", s.paused.Unchanged(s.state))
	}
}

// restoreAt makes the connections of the saved states in a namespace.
func restoreAt(t *testing.T, ns *os.File, streams []*stream) {
	t.Helper()
	in(t, ns, func() error {
		for _, s := range streams {
			fd, err := tcpSocket(s.state.V6)
			if err != nil {
				return err
			}
			_ = unix.SetNonblock(fd, true)
			s.sock = os.NewFile(uintptr(fd), "restored")
			if s.held, err = tcprepair.Restore(s.sock, s.state); err != nil {
				return err
			}
		}
		return nil
	})
}

// goOn is what happens at the destination from the commit on.
func goOn(t *testing.T, src, dst *port.Gate, streams []*stream) (delivered int) {
	t.Helper()
	check(t, "open egress", dst.OpenEgress())
	var probes [][]byte
	for _, s := range streams {
		check(t, "release", s.held.Release())
		if s.state.Unacknowledged() > 0 {
			probes = append(probes, s.state.AckProbe())
		}
	}
	delivered = pass(t, src, dst)
	check(t, "probe", dst.DeliverPackets(probes))
	for _, s := range streams {
		s.s.run(s.sock)
	}
	check(t, "announce", dst.Announce(context.Background()))
	for quiet := 0; quiet < 2; quiet++ {
		time.Sleep(500 * time.Microsecond)
		if n := pass(t, src, dst); n > 0 {
			delivered += n
			quiet = -1
		}
	}
	check(t, "open ingress", dst.OpenIngress())
	return delivered
}

// pass takes frames from one gate to the other, as they travel between hosts.
func pass(t *testing.T, src, dst *port.Gate) int {
	t.Helper()
	frames, err := src.Take()
	check(t, "take", err)
	frames, err = port.UnmarshalFrames(port.MarshalFrames(frames))
	check(t, "unmarshal", err)
	n, err := dst.Deliver(frames)
	check(t, "deliver", err)
	return n
}

func TestHandoff(t *testing.T) {
	for _, k := range []kind{pingPong, pipeline, bulkUp, bulkDown, floodUp, floodDown} {
		for _, v6 := range []bool{false, true} {
			for _, blackout := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond} {
				name := fmt.Sprintf("%s/%s/%v", k, map[bool]string{false: "v4", true: "v6"}[v6], blackout)
				t.Run(name, func(t *testing.T) {
					for range *rounds {
						handoff(t, k, v6, blackout)
					}
				})
			}
		}
	}
}

// handoff moves a workload with two connections from host 1 to host 2 and back.
func handoff(t *testing.T, k kind, v6 bool, blackout time.Duration) {
	ctx := context.Background()
	l := newLab(t)
	w := l.workload(0, false)
	at := netip.AddrPortFrom(workloadAddrs[0].Addr(), 7000)
	if v6 {
		at = netip.AddrPortFrom(workloadAddrs[1].Addr(), 7000)
	}
	var streams []*stream
	for range 2 {
		c, s := connectPair(t, l.client, w.ns, at, k)
		streams = append(streams, &stream{c: c, s: s})
	}
	time.Sleep(100 * time.Millisecond)
	beat := newHeartbeat(t)
	for hop := range 2 {
		from, to := hop, 1-hop
		dst := l.workload(to, true)
		check(t, "arm", w.p.Arm(0))
		check(t, "arm", dst.p.Arm(0))
		neighbours, err := w.p.Neighbours(ctx)
		check(t, "neighbours", err)
		check(t, "neighbours", dst.p.InstallNeighbours(ctx, neighbours))
		before := counters(t, l.client)
		for _, s := range streams {
			s.c.reset()
		}
		beat.gap()

		start := time.Now()
		stopAtSource(t, w.p.Gate, streams)
		saved := time.Since(start)
		for _, s := range streams {
			check(t, "drop", s.paused.Drop())
		}
		restoreAt(t, dst.ns, streams)
		restored := time.Since(start)
		time.Sleep(blackout - restored)
		dark := time.Since(start)
		n := goOn(t, w.p.Gate, dst.p.Gate, streams)
		opened := time.Since(start)

		time.Sleep(300 * time.Millisecond)
		diff := difference(before, counters(t, l.client))
		gap := beat.gap()
		for _, s := range streams {
			wait := time.Duration(s.c.longest.Load())
			t.Logf("%s hop %d: client waited %v of %v; stalled %v; saved %v restored %v opened %v; frames %d, unread %d, unacknowledged %d, unsent %d, owed %d; client %v; dst %v",
				k, hop, wait, dark, gap, saved, restored, opened, n, len(s.state.RecvQueue), len(s.state.SendQueue), s.state.Unsent, s.state.Unacknowledged(),
				diff, difference(nil, counters(t, dst.ns)))
			if wait > opened+gap+200*time.Millisecond {
				t.Errorf("client waited %v, the blackout was %v", wait, opened)
			}
		}
		checkTimeouts(t, diff, opened+gap)
		if n, err := w.p.Dropped(); n != 0 || err != nil {
			t.Errorf("capture dropped %d frames, %v", n, err)
		}
		check(t, "disarm", dst.p.Disarm())
		check(t, "destroy", w.p.Destroy(ctx))
		if left := l.leftovers(from); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		w = dst
	}
	for _, s := range streams {
		check(t, "client", s.c.end())
		check(t, "server", s.s.freeze())
		if s.c.n == 0 {
			t.Error("the client did nothing")
		}
	}
	check(t, "destroy", w.p.Destroy(ctx))
}

// checkTimeouts demands that no retransmission time-out passed at the client. The shortest is 200 ms: if this machine was so busy
// that the blackout, with the time for which it stalled, took about that long, there is nothing to demand.
func checkTimeouts(t *testing.T, diff map[string]int64, dark time.Duration) {
	t.Helper()
	n := diff["TcpExt.TCPTimeouts"]
	if dark > 150*time.Millisecond {
		t.Logf("the machine stalled: a blackout of up to %v, with %d time-outs", dark, n)
		return
	}
	if n != 0 {
		t.Errorf("%d retransmission time-outs at the client, the blackout was %v", n, dark)
	}
}

// TestAbort stops a workload and lets it go on where it is.
func TestAbort(t *testing.T) {
	for _, k := range []kind{pingPong, pipeline, bulkUp, bulkDown, floodUp, floodDown} {
		for _, blackout := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s/%v", k, blackout), func(t *testing.T) {
				for range *rounds {
					abort(t, k, blackout)
				}
			})
		}
	}
}

func abort(t *testing.T, k kind, blackout time.Duration) {
	l := newLab(t)
	w := l.workload(0, false)
	var streams []*stream
	for _, a := range workloadAddrs {
		c, s := connectPair(t, l.client, w.ns, netip.AddrPortFrom(a.Addr(), 7000), k)
		streams = append(streams, &stream{c: c, s: s})
	}
	time.Sleep(100 * time.Millisecond)
	check(t, "arm", w.p.Arm(0))
	before := counters(t, l.client)
	for _, s := range streams {
		s.c.reset()
	}
	beat := newHeartbeat(t)
	start := time.Now()
	stopAtSource(t, w.p.Gate, streams)
	time.Sleep(blackout - time.Since(start))
	dark := time.Since(start)
	check(t, "open egress", w.p.OpenEgress())
	for _, s := range streams {
		check(t, "resume", s.paused.Resume())
		s.s.run(s.s.conn)
	}
	check(t, "open ingress", w.p.OpenIngress())
	opened := time.Since(start)
	time.Sleep(300 * time.Millisecond)
	diff := difference(before, counters(t, l.client))
	gap := beat.gap()
	for _, s := range streams {
		wait := time.Duration(s.c.longest.Load())
		t.Logf("%s hop 0: client waited %v of %v; stalled %v; client %v; src %v", k, wait, dark, gap, diff, difference(nil, counters(t, w.ns)))
		if wait > opened+gap+200*time.Millisecond {
			t.Errorf("client waited %v, the blackout was %v", wait, opened)
		}
	}
	checkTimeouts(t, diff, opened+gap)
	for _, s := range streams {
		check(t, "client", s.c.end())
		check(t, "server", s.s.freeze())
	}
	check(t, "destroy", w.p.Destroy(context.Background()))
	if left := l.leftovers(0); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
