//go:build linux

package moves

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"migrate/e2e/cluster"
	"migrate/e2e/lab"
)

// bridge is the device on which a host of the lab has its addresses.
const bridge = "br0"

// onBridge calls fn with the bridge of a host.
func (s *scope) onBridge(host string, fn func(*netlink.Handle, netlink.Link) error) {
	s.Helper()
	pid, err := cluster.Hosts.Host(host).PID(s.Ctx)
	if err != nil {
		s.Fatal(err)
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		s.Fatalf("%s: %v", host, err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		s.Fatalf("%s: %v", host, err)
	}
	defer h.Close()
	l, err := h.LinkByName(bridge)
	if err == nil {
		err = fn(h, l)
	}
	if err != nil {
		s.Fatalf("%s, %s: %v", host, bridge, err)
	}
}

// float gives a host an address that it can do without.
func (s *scope) float(host, cidr string) {
	s.Helper()
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		s.Fatal(err)
	}
	s.onBridge(host, func(h *netlink.Handle, l netlink.Link) error { return h.AddrAdd(l, addr) })
}

// unfloat takes an address away from a host.
func (s *scope) unfloat(host, cidr string) {
	s.Helper()
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		s.Fatal(err)
	}
	s.onBridge(host, func(h *netlink.Handle, l netlink.Link) error { return h.AddrDel(l, addr) })
}

// whereIs lists the hosts that have an address.
func (s *scope) whereIs(ip string) (list []string) {
	s.Helper()
	want := netip.MustParseAddr(ip)
	for _, host := range cluster.Hosts.Hosts() {
		s.onBridge(host.Name(), func(h *netlink.Handle, l netlink.Link) error {
			addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
			for errors.Is(err, netlink.ErrDumpInterrupted) {
				addrs, err = h.AddrList(l, netlink.FAMILY_ALL)
			}
			for _, a := range addrs {
				if got, ok := netip.AddrFromSlice(a.IP); ok && got.Unmap() == want {
					list = append(list, host.Name())
				}
			}
			return err
		})
	}
	return list
}

// bare starts a program on host1 that no agent knows of. It ends with the test, if it has not moved away.
func (s *scope) bare(args ...string) *lab.Cmd {
	s.Helper()
	ctx, cancel := context.WithCancel(s.Ctx)
	cmd := cluster.Hosts.Host("host1").Command(ctx, args...)
	if err := cmd.Start(); err != nil {
		cancel()
		s.Fatal(err)
	}
	s.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed here, or when it had moved away
	})
	return cmd
}

// counter is a client of the Go server that may connect once.
type counter struct {
	s        *scope
	endpoint string
	http     *http.Client
	dials    int
	count    int
}

func (s *scope) counter(endpoint string) *counter {
	c := &counter{s: s, endpoint: endpoint}
	c.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if c.dials++; c.dials > 1 {
			return nil, errors.New("the connection was lost, and this client must not connect again")
		}
		return cluster.Dialer(endpoint)(ctx)
	}}}
	s.Cleanup(c.http.CloseIdleConnections)
	return c
}

// add asks the server to count, n times, and checks that it has forgotten nothing.
func (c *counter) add(n int) {
	c.s.Helper()
	for range n {
		c.count++
		if got, err := c.get("/count"); err != nil || got != strconv.Itoa(c.count) {
			c.s.Fatalf("/count answers %q, %v; want %d", got, err, c.count)
		}
	}
}

func (c *counter) get(path string) (string, error) {
	req, err := http.NewRequestWithContext(c.s.Ctx, http.MethodGet, "http://"+c.endpoint+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// nameOf finds the workload that a bare process has become.
func (s *scope) nameOf(host string, pid int) string {
	s.Helper()
	var list []struct {
		Name, Host string
		PID        int
	}
	if err := json.Unmarshal([]byte(s.On("host1", cluster.Migrate, "ps", "-o", "json")), &list); err != nil {
		s.Fatal(err)
	}
	for _, w := range list {
		if w.Host == host && w.PID == pid {
			return w.Name
		}
	}
	s.Fatalf("no workload is pid %d on %s: %+v", pid, host, list)
	return ""
}

var bareRuns atomic.Int32

// TestBareProcess moves a process that no agent has started, with the floating address that it listens on and its client's
// connection; then it moves on as the workload that it has become.
func TestBareProcess(t *testing.T) {
	s := begin(t, time.Minute)
	// Another one each time that the test runs: the client remembers for a while where the one before was last.
	ip := fmt.Sprintf("10.77.0.%d", 150+bareRuns.Add(1)%100)
	endpoint := net.JoinHostPort(ip, "8080")
	bin, err := cluster.Build(s.Ctx, "migrate/e2e/workloads/goserver", "goserver")
	if err != nil {
		t.Fatal(err)
	}
	s.cleanly(func(late *scope) { // it stays where the process has ended
		for _, host := range late.whereIs(ip) {
			late.unfloat(host, ip+"/24")
		}
	})
	s.float("host1", ip+"/24")
	cmd := s.bare(bin, endpoint)
	s.AwaitListener(endpoint)
	c := s.counter(endpoint)
	c.add(10)

	r := s.MoveOn("host1", "--pid", strconv.Itoa(cmd.PID), "--to", "host2")
	name := s.nameOf("host2", r.DestinationPID)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if t.Failed() {
			s.Diagnose(ctx, name)
		}
		if _, err := cluster.Hosts.Host("host1").Exec(ctx, cluster.Migrate, "stop", name, "--grace", "1s"); err != nil {
			t.Errorf("stopping %s: %v", name, err)
		}
	})
	c.add(10)
	if !slices.ContainsFunc(r.Connections, func(c struct {
		Local string `json:"local"`
		RTO   int    `json:"rto_during_move"`
	}) bool {
		return c.Local == endpoint
	}) {
		t.Errorf("the connection to %s is not among those that moved: %+v", endpoint, r.Connections)
	}
	if got := s.whereIs(ip); !slices.Equal(got, []string{"host2"}) {
		t.Errorf("%s is an address of %v, want host2 alone", ip, got)
	}
	// It was killed; its parent, which knows of no move, waits for it in its own time.
	s.until("the end of the process on host1", func() bool { return errors.Is(syscall.Kill(cmd.PIDOutside, 0), syscall.ESRCH) })

	s.Move(name, "host3")
	c.add(10)
	if got := s.whereIs(ip); !slices.Equal(got, []string{"host3"}) {
		t.Errorf("%s is an address of %v, want host3 alone", ip, got)
	}
	if got, err := c.get("/health"); err != nil || !strings.HasPrefix(got, "ok") {
		t.Errorf("/health answers %q, %v", got, err)
	}
	s.AwaitListener(endpoint) // new clients find it, too
}

// TestBareProcessOnHostAddress refuses to move a connection whose address stays behind, and names it.
func TestBareProcessOnHostAddress(t *testing.T) {
	s := begin(t, time.Minute)
	endpoint := net.JoinHostPort(cluster.Hosts.Host("host1").Addr().String(), "8090")
	bin, err := cluster.Build(s.Ctx, "migrate/e2e/workloads/goserver", "goserver")
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.bare(bin, endpoint)
	s.AwaitListener(endpoint)
	c := s.counter(endpoint)
	c.add(10)
	pid := strconv.Itoa(cmd.PID)

	text := s.Fails(3, "host1", cluster.Migrate, "plan", "--pid", pid, "--to", "host2")
	s.mention(text, endpoint, cluster.Hosts.Client().Addr().String(), pid)
	text = s.Fails(1, "host1", cluster.Migrate, "move", "--pid", pid, "--to", "host2")
	s.mention(text, endpoint, cluster.Hosts.Client().Addr().String(), pid)
	c.add(10)
	if got := s.whereIs(cluster.Hosts.Host("host1").Addr().String()); !slices.Equal(got, []string{"host1"}) {
		t.Errorf("the address of host1 is on %v", got)
	}
}

// mention checks that a text for people names what it is about.
func (s *scope) mention(text string, words ...string) {
	s.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			s.Errorf("nothing is said about %q in:\n%s", w, text)
		}
	}
}

// TestBareSemaphores refuses to move a process that is to give back semaphores of its host at its end, and names the set.
func TestBareSemaphores(t *testing.T) {
	s := begin(t, time.Minute)
	cmd := s.bare("/usr/bin/python3", "-c", `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
set = libc.semget(0, 1, 0o600)
assert set >= 0
class Op(ctypes.Structure): _fields_ = [("n", ctypes.c_ushort), ("by", ctypes.c_short), ("flags", ctypes.c_short)]
assert libc.semop(set, ctypes.byref(Op(0, 1, 0x1000)), 1) == 0
open("/tmp/semaphores.new", "w").write(str(set) + "\n")
os.rename("/tmp/semaphores.new", "/tmp/semaphores")
import time
time.sleep(1000)
`)
	set := strings.TrimSpace(s.eventually("host1", "/tmp/semaphores"))
	pid := strconv.Itoa(cmd.PID)
	defer s.On("host1", "sh", "-c", "rm /tmp/semaphores; ipcrm -s "+set)
	for _, verb := range []string{"plan", "move"} {
		s.mention(s.Fails(0, "host1", cluster.Migrate, verb, "--pid", pid, "--to", "host2"), "semaphore set "+set, "SEM_UNDO")
	}
	s.runs("host1", cmd.PID)
}
