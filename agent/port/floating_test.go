//go:build linux

package port_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"migrate/agent/port"
)

var floatingAddrs = []netip.Prefix{netip.MustParsePrefix("10.77.0.60/24"), netip.MustParsePrefix("fd77::60/64")}

// floating opens a gate before the floating addresses of a host.
func (l *lab) floating(host int, shut bool) *port.Floating {
	l.t.Helper()
	f, err := l.hosts[host].OpenFloating(context.Background(), port.FloatingSpec{Name: "bare", Device: "br0", Addrs: floatingAddrs, Shut: shut})
	check(l.t, "floating addresses", err)
	return f
}

// TestFloating moves the floating addresses of a host with the connections of a program in its own namespace, there and back.
func TestFloating(t *testing.T) {
	for _, k := range []kind{pingPong, pipeline, bulkUp, bulkDown} {
		for _, blackout := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s/%v", k, blackout), func(t *testing.T) {
				for range *rounds {
					moveFloating(t, k, blackout)
				}
			})
		}
	}
}

func moveFloating(t *testing.T, k kind, blackout time.Duration) {
	ctx := context.Background()
	l := newLab(t)
	src := l.floating(0, false)
	check(t, "addresses", src.AddAddrs(ctx))
	var streams []*stream
	for _, a := range floatingAddrs {
		c, s := connectPair(t, l.client, l.hostNS[0], netip.AddrPortFrom(a.Addr(), 7000), k)
		streams = append(streams, &stream{c: c, s: s})
	}
	// One to the host's own address goes on undisturbed.
	other, otherServer := connectPair(t, l.client, l.hostNS[0], netip.MustParseAddrPort("10.77.0.11:7001"), pingPong)
	time.Sleep(100 * time.Millisecond)
	for hop := range 2 {
		dst := l.floating(1-hop, true)
		check(t, "addresses", dst.AddAddrs(ctx))
		check(t, "arm", src.Arm(0))
		check(t, "arm", dst.Arm(0))
		neighbours, err := src.Neighbours(ctx)
		check(t, "neighbours", err)
		check(t, "neighbours", dst.InstallNeighbours(ctx, neighbours))
		before := counters(t, l.client)
		other.reset()
		for _, s := range streams {
			s.c.reset()
		}
		beat := newHeartbeat(t)
		start := time.Now()
		stopAtSource(t, src.Gate, streams)
		for _, s := range streams {
			check(t, "drop", s.paused.Drop())
		}
		restoreAt(t, l.hostNS[1-hop], streams)
		time.Sleep(blackout - time.Since(start))
		dark := time.Since(start)
		n := goOn(t, src.Gate, dst.Gate, streams)
		opened := time.Since(start)
		time.Sleep(300 * time.Millisecond)
		diff := difference(before, counters(t, l.client))
		gap := beat.gap()
		for _, s := range streams {
			wait := time.Duration(s.c.longest.Load())
			t.Logf("%s hop %d: client waited %v of %v; stalled %v; frames %d; client %v; dst %v", k, hop, wait, dark, gap, n, diff, s.state.Name())
			if wait > opened+gap+200*time.Millisecond {
				t.Errorf("client waited %v, the blackout was %v", wait, opened)
			}
		}
		if wait := time.Duration(other.longest.Load()); wait > 30*time.Millisecond {
			t.Logf("the other client waited %v", wait)
		}
		checkTimeouts(t, diff, opened+gap)
		check(t, "addresses", src.RemoveAddrs(ctx))
		check(t, "end", src.End(ctx))
		if left := l.leftovers(hop); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		check(t, "disarm", dst.Disarm())
		src = dst
	}
	for _, s := range streams {
		check(t, "client", s.c.end())
		check(t, "server", s.s.freeze())
	}
	check(t, "other client", other.end())
	check(t, "other server", otherServer.freeze())
	check(t, "end", src.End(ctx))
}

func TestFindFloating(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	f := l.floating(0, false)
	check(t, "addresses", f.AddAddrs(ctx))
	own := []netip.Addr{netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("fd77::11")}
	for _, p := range floatingAddrs {
		device, prefix, err := l.hosts[0].FindFloating(ctx, p.Addr(), own)
		if err != nil || device != "br0" || prefix != p {
			t.Errorf("%v: %s %v %v", p, device, prefix, err)
		}
	}
	for addr, why := range map[string]string{"10.77.0.11": "own address", "127.0.0.1": "loopback", "10.77.0.99": "not an address"} {
		if _, _, err := l.hosts[0].FindFloating(ctx, netip.MustParseAddr(addr), own); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	check(t, "end", f.End(ctx))
}
