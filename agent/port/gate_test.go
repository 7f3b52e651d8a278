//go:build linux

package port_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/agent/port"
)

// udpEcho opens a socket in the workload that answers, and one at the client that asks.
func udpEcho(t *testing.T, l *lab, w *workload) (ask, mute func() error) {
	t.Helper()
	at := netip.AddrPortFrom(workloadAddrs[0].Addr(), 9000)
	var echo, from *net.UDPConn
	in(t, w.ns, func() (err error) {
		echo, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	in(t, l.client, func() (err error) {
		from, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
		return err
	})
	t.Cleanup(func() { _, _ = from.Close(), echo.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, who, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(b[:n], who)
		}
	}()
	count := byte(0)
	within := func(d time.Duration) error {
		count++
		if _, err := from.Write([]byte{count}); err != nil {
			return err
		}
		_ = from.SetReadDeadline(time.Now().Add(d))
		for b := make([]byte, 10); ; {
			if _, err := from.Read(b); err != nil || b[0] == count {
				return err
			}
		}
	}
	// An answer may have to wait for the next ARP request, a second later.
	return func() error { return within(3 * time.Second) }, func() error {
		if within(200*time.Millisecond) == nil {
			return errors.New("an answer came through the shut gate")
		}
		return nil
	}
}

// TestGateOutlivesAgent shuts a gate, lets go of everything as a dead agent would, and finds it again.
func TestGateOutlivesAgent(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	w := l.workload(0, true)
	ask, mute := udpEcho(t, l, w)
	check(t, "made shut", mute())
	check(t, "open", w.p.OpenEgress())
	check(t, "open one way only", mute())
	check(t, "open", w.p.OpenIngress())
	check(t, "ask", ask())
	check(t, "arm", w.p.Arm(0))
	check(t, "shut", w.p.ShutIngress())
	check(t, "shut", mute())
	// The agent is gone, without Disarm.
	again, err := port.Open(l.hostNS[0])
	check(t, "open host", err)
	defer again.Close()
	ports, err := again.List(ctx)
	if err != nil || len(ports) != 1 || ports[0].Name != "web" {
		t.Fatalf("found %+v, %v", ports, err)
	}
	p, err := again.Find(ctx, "web", w.ns, "")
	check(t, "find", err)
	if ingress, egress := p.Shut(); !ingress || egress {
		t.Errorf("the gate was found shut %v %v, want ingress only", ingress, egress)
	}
	if p.MAC.String() != w.p.MAC.String() {
		t.Errorf("MAC %v, want %v", p.MAC, w.p.MAC)
	}
	check(t, "arm", p.Arm(0))
	check(t, "found shut", mute())
	check(t, "open", p.OpenIngress())
	check(t, "ask", ask())
	check(t, "close", p.Close())
	check(t, "remove", again.Remove(ctx, "web"))
	check(t, "remove again", again.Remove(ctx, "web"))
	if left := l.leftovers(0); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCreateRefused(t *testing.T) {
	ctx := context.Background()
	l := newLab(t)
	w := l.workload(0, false)
	good := port.Spec{Name: "other", Bridge: "br0", NetNS: newNS(t), Addrs: workloadAddrs}
	for why, spoil := range map[string]func(*port.Spec){
		"file exists":        func(s *port.Spec) { s.Name = "web" },
		"larger than that":   func(s *port.Spec) { s.MTU = 9000 },
		"bridge br9":         func(s *port.Spec) { s.Bridge = "br9" },
		"of one device":      func(s *port.Spec) { s.MAC = net.HardwareAddr{1, 2, 3, 4, 5, 6} },
		"no network":         func(s *port.Spec) { s.NetNS = nil },
		"not an address":     func(s *port.Spec) { s.Addrs = []netip.Prefix{netip.MustParsePrefix("224.0.0.1/24")} },
		"route":              func(s *port.Spec) { s.Routes = []port.Route{{Via: netip.MustParseAddr("192.0.2.1")}} },
		"device name too lo": func(s *port.Spec) { s.Device = strings.Repeat("x", 20) },
	} {
		s := good
		spoil(&s)
		_, err := l.hosts[0].Create(ctx, s)
		if err == nil {
			t.Errorf("%s: created", why)
		} else if !strings.Contains(err.Error(), why) && why != "device name too lo" {
			t.Errorf("%s: %v", why, err)
		}
	}
	if left := l.leftovers(0); len(left) != 2 {
		t.Errorf("left behind beside the first port: %v", left)
	}
	check(t, "destroy", w.p.Destroy(ctx))
}

// eventually waits until frames that are on their way have come to where they are counted.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen in ten seconds: %s", what)
		}
	}
}

// TestShutPortIsSilent watches the host's uplink while a port is made shut, armed, and its workload talks.
func TestShutPortIsSilent(t *testing.T) {
	l := newLab(t)
	var tap int
	in(t, l.sw, func() (err error) {
		proto := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		tap, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(proto))
		return err
	})
	defer unix.Close(tap) //nolint:errcheck // only read from
	w := l.workload(0, true)
	check(t, "arm", w.p.Arm(0))
	in(t, w.ns, func() error {
		for _, to := range []string{"10.77.0.2:1", "[fd77::2]:1"} {
			c, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
		return nil
	})
	time.Sleep(300 * time.Millisecond)
	seen := func() (frames [][]byte) {
		b := make([]byte, 2000)
		for {
			n, _, err := unix.Recvfrom(tap, b, unix.MSG_DONTWAIT)
			if err != nil {
				return frames
			}
			if n >= 12 && slices.Equal(b[6:12], w.p.MAC) {
				frames = append(frames, slices.Clone(b[:min(n, 60)]))
			}
		}
	}
	for _, f := range seen() {
		t.Errorf("a frame leaked: % x", f)
	}
	check(t, "open", w.p.OpenEgress())
	check(t, "announce", w.p.Announce(context.Background(), time.Millisecond))
	var announced int
	eventually(t, "two addresses, announced twice", func() bool { announced += len(seen()); return announced >= 4 })
	check(t, "destroy", w.p.Destroy(context.Background()))
}

// TestShutNew keeps a new connection waiting while another one goes on.
func TestShutNew(t *testing.T) {
	l := newLab(t)
	w := l.workload(0, false)
	at := netip.AddrPortFrom(workloadAddrs[1].Addr(), 7000)
	c, s := connectPair(t, l.client, w.ns, at, pingPong)
	var ln net.Listener
	in(t, w.ns, func() (err error) {
		ln, err = net.Listen("tcp", "[fd77::50]:7001")
		return err
	})
	defer ln.Close()
	check(t, "arm", w.p.Arm(0))
	check(t, "shut new", w.p.ShutNew())
	done := make(chan error, 1)
	in(t, l.client, func() error {
		fd, err := tcpSocket(true)
		if err != nil {
			return err
		}
		go func() {
			done <- unix.Connect(fd, sockaddr(netip.MustParseAddrPort("[fd77::50]:7001")))
			_ = unix.Close(fd)
		}()
		return nil
	})
	beat := newHeartbeat(t)
	before := c.asked.Load()
	time.Sleep(100 * time.Millisecond)
	eventually(t, "the established connection to go on", func() bool { return c.asked.Load() > before+10 })
	select {
	case err := <-done:
		t.Fatalf("a new connection came through: %v", err)
	default:
	}
	beat.gap()
	start := time.Now()
	check(t, "open", w.p.OpenIngress())
	check(t, "connect", <-done)
	d, gap := time.Since(start), beat.gap()
	t.Logf("the new connection was made %v after the opening, on a machine that stalled for %v", d, gap)
	if d > 500*time.Millisecond+gap {
		t.Errorf("the new connection waited for a retransmission, %v", d)
	}
	check(t, "client", c.end())
	check(t, "server", s.freeze())
	check(t, "destroy", w.p.Destroy(context.Background()))
}

// TestCaptureIsBounded overflows a small capture.
func TestCaptureIsBounded(t *testing.T) {
	l := newLab(t)
	w := l.workload(0, false)
	ask, _ := udpEcho(t, l, w)
	check(t, "ask", ask())
	check(t, "arm", w.p.Arm(64<<10))
	check(t, "shut", w.p.ShutIngress())
	in(t, l.client, func() error {
		c, err := net.Dial("udp", "10.77.0.50:9000")
		if err != nil {
			return err
		}
		defer c.Close()
		for range 1000 {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return err
			}
		}
		return nil
	})
	var taken, dropped int
	eventually(t, "1000 frames", func() bool {
		frames, err := w.p.Take()
		check(t, "take", err)
		n, err := w.p.Dropped()
		check(t, "dropped", err)
		taken, dropped = taken+len(frames), int(n)
		return taken+dropped >= 1000
	})
	if taken == 0 || dropped == 0 {
		t.Errorf("%d frames captured and %d dropped of 1000", taken, dropped)
	}
	if again, err := w.p.Dropped(); err != nil || int(again) < dropped {
		t.Errorf("dropped %d, then %d, %v", dropped, again, err)
	}
	check(t, "open", w.p.OpenIngress())
	check(t, "ask", ask())
	check(t, "destroy", w.p.Destroy(context.Background()))
}

// TestToggle prints how long a change of the gate takes.
func TestToggle(t *testing.T) {
	l := newLab(t)
	w := l.workload(0, false)
	check(t, "arm", w.p.Arm(0))
	const n = 50
	times := map[string][]time.Duration{}
	for range n {
		for _, s := range []struct {
			name string
			do   func() error
		}{{"shut ingress", w.p.ShutIngress}, {"shut egress", w.p.ShutEgress}, {"open egress", w.p.OpenEgress}, {"open ingress", w.p.OpenIngress}} {
			start := time.Now()
			check(t, s.name, s.do())
			times[s.name] = append(times[s.name], time.Since(start))
		}
	}
	out := ""
	for name, d := range times {
		slices.Sort(d)
		out += fmt.Sprintf("%s: median %v, longest %v; ", name, d[n/2], d[n-1])
		if d[n/10] > time.Millisecond { // others on this machine make it longer, nothing makes it shorter
			t.Errorf("%s takes %v", name, d[n/10])
		}
	}
	t.Log(out)
	check(t, "destroy", w.p.Destroy(context.Background()))
}
