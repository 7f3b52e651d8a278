//go:build linux

package moves

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"migrate/e2e/cluster"
)

// asleep returns when a process sleeps by clock_nanosleep(2). The function that it returns checks that nothing has woken it
// since: whatever stops, traces or freezes a process does.
func (s *scope) asleep(host string, pid int) (untouched func()) {
	s.Helper()
	proc := "/proc/" + strconv.Itoa(pid)
	s.until("it to sleep", func() bool {
		text := s.On(host, "cat", proc+"/wchan", proc+"/stat")
		return strings.Contains(text, "nanosleep") && strings.Contains(text, ") S ")
	})
	before := s.switches(host, proc)
	return func() {
		s.Helper()
		if after := s.switches(host, proc); before == 0 || after != before {
			s.Errorf("pid %d on %s has gone to sleep %d times, and %d times before the refusals", pid, host, after, before)
		}
	}
}

// switches counts how often the threads of a process have given a processor up.
func (s *scope) switches(host, proc string) (n int) {
	s.Helper()
	for line := range strings.Lines(s.On(host, "sh", "-c", "cat "+proc+"/task/*/status")) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasSuffix(f[0], "voluntary_ctxt_switches:") {
			k, err := strconv.Atoi(f[1])
			if err != nil {
				s.Fatal(err)
			}
			n += k
		}
	}
	return n
}

// cleanly undoes what a test has done to a host; the context of the test is over by then.
func (s *scope) cleanly(undo func(late *scope)) {
	s.Helper()
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		undo(&scope{&cluster.Scope{T: s.T, Ctx: ctx}})
	})
}

// setMTU changes that of a host's bridge, and returns what it was.
func (s *scope) setMTU(host string, mtu int) (before int) {
	s.Helper()
	s.onBridge(host, func(h *netlink.Handle, l netlink.Link) error {
		before = l.Attrs().MTU
		return h.LinkSetMTU(l, mtu)
	})
	return before
}

// strangerMAC is the hardware address of somebody on the destination's link.
var strangerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 5}

// stranger gives somebody on host2's link an address, as far as host2 can tell.
func (s *scope) stranger(addr string) {
	s.Helper()
	n := &netlink.Neigh{IP: net.ParseIP(addr), HardwareAddr: strangerMAC, State: netlink.NUD_PERMANENT}
	s.onBridge("host2", func(h *netlink.Handle, l netlink.Link) error {
		n.LinkIndex = l.Attrs().Index
		return h.NeighSet(n)
	})
	s.cleanly(func(late *scope) {
		late.onBridge("host2", func(h *netlink.Handle, _ netlink.Link) error { return h.NeighDel(n) })
	})
}

// records is where an agent keeps its records of moves.
const records = "/var/lib/migrate/moves"

// noRecords waits until a host has forgotten the moves that are over.
func (s *scope) noRecords(host string) {
	s.Helper()
	s.until(host+" to have no records of moves", func() bool { return s.On(host, "ls", records) == "" })
}

// TestDiskFills: the destination has room when it is asked, and finds at once that it has none. The move ends before anything is begun,
// and when there is room again the next one succeeds.
func TestDiskFills(t *testing.T) {
	s := begin(t, time.Minute)
	s.Workload("fills", "", "sleep", "1000")
	before := s.ps("fills")
	s.noRecords("host2")
	// No other file fits, which the file system does not tell in bytes.
	s.On("host2", "mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=1", "tmpfs", records)
	mounted := true
	s.cleanly(func(late *scope) {
		if mounted {
			late.On("host2", "umount", records)
		}
	})
	untouched := s.asleep("host1", before.PID)
	began := time.Now()
	text := s.Fails(1, "host1", cluster.Migrate, "move", "fills", "--to", "host2")
	s.mention(text, "host2", records, "no space left on device", "make room there")
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("the move took %v to fail", d)
	}
	untouched()
	s.runs("host1", before.PID)
	s.On("host2", "umount", records)
	mounted = false
	s.until("the end of the migration", func() bool { return s.ps("fills").Migration == "" })
	s.unmoved(before)
	s.Move("fills", "host2")
}

// TestDestinationLacks refuses to move to a host without room, and over links that do not reach the address. The process is not
// so much as woken.
func TestDestinationLacks(t *testing.T) {
	managed := func(addr string) func(*scope, string) []string {
		return func(s *scope, name string) []string {
			s.Workload(name, addr, "sleep", "1000")
			return []string{name}
		}
	}
	for _, c := range []struct {
		name  string
		start func(s *scope, name string) []string // returns the target
		lack  func(s *scope)
		words []string
	}{
		{"memory", managed(""), func(s *scope) {
			s.On("host2", "sh", "-c", "sed 's/^MemAvailable:.*/MemAvailable: 32768 kB/' /proc/meminfo > /tmp/meminfo && mount --bind /tmp/meminfo /proc/meminfo")
			s.cleanly(func(late *scope) { late.On("host2", "umount", "/proc/meminfo") })
		}, []string{"32 MiB of memory are free", "host2"}},
		{"disk", managed(""), func(s *scope) {
			s.noRecords("host2")
			s.On("host2", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", records)
			s.cleanly(func(late *scope) { late.On("host2", "umount", records) })
		}, []string{records, "0 MiB are free there on disk", "make room there", "host2"}},
		{"mtu", managed("10.77.0.83/24"), func(s *scope) {
			before := s.setMTU("host2", 1400)
			s.cleanly(func(late *scope) { late.setMTU("host2", before) })
		}, []string{"10.77.0.83", "1400", "1500", "host2"}},
		{"mtu-bare", func(s *scope, _ string) []string { return s.listener("10.77.0.84") }, func(s *scope) {
			before := s.setMTU("host2", 1400)
			s.cleanly(func(late *scope) { late.setMTU("host2", before) })
		}, []string{"10.77.0.84", "1400", "1500", "host2"}},
		{"stranger", managed("10.77.0.85/24"), func(s *scope) { s.stranger("10.77.0.85") },
			[]string{"10.77.0.85", "in use", strangerMAC.String(), "host2"}},
		{"stranger-bare", func(s *scope, _ string) []string { return s.listener("10.77.0.86") }, func(s *scope) { s.stranger("10.77.0.86") },
			[]string{"10.77.0.86", "in use", strangerMAC.String(), "host2"}},
		{"segment", managed("10.77.0.87/24"), func(s *scope) {
			// A link on which nobody hears the workload, as far as the destination can tell; it may know it from an earlier one.
			s.onBridge("host2", func(h *netlink.Handle, l netlink.Link) error {
				n := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.ParseIP("10.77.0.87"), State: netlink.NUD_NONE}
				if err := h.NeighDel(n); !errors.Is(err, unix.ENOENT) {
					return err
				}
				return nil
			})
			s.On("host1", "nsenter", "-t", strconv.Itoa(s.ps("lacks-segment").PID), "-n", "sh", "-c", "echo 8 > /proc/sys/net/ipv4/conf/all/arp_ignore")
		}, []string{"10.77.0.87", "another segment", "host2"}},
		{"stranger6", managed("fd77::85/64"), func(s *scope) { s.stranger("fd77::85") },
			[]string{"fd77::85", "in use", strangerMAC.String(), "host2"}},
		{"stranger6-bare", func(s *scope, _ string) []string { return s.listener("fd77::86") }, func(s *scope) { s.stranger("fd77::86") },
			[]string{"fd77::86", "in use", strangerMAC.String(), "host2"}},
		{"segment6", managed("fd77::87/64"), func(s *scope) {
			s.On("host1", "nsenter", "-t", strconv.Itoa(s.ps("lacks-segment6").PID), "-n", "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
		}, []string{"fd77::87", "another segment", "host2"}},
		{"network", func(s *scope, _ string) []string { return s.listener("10.99.0.84") }, func(*scope) {},
			[]string{"10.99.0.84", "no address in the network 10.99.0.0/24", "host2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := begin(t, time.Minute)
			target := c.start(s, "lacks-"+c.name)
			pid := 0
			if len(target) == 1 {
				pid = s.ps(target[0]).PID
			} else {
				pid, _ = strconv.Atoi(target[1])
			}
			c.lack(s)
			untouched := s.asleep("host1", pid)
			s.refused(target, "host2", c.words...)
			untouched()
			s.runs("host1", pid)
		})
	}
}

// listener starts a sleeping program on host1 that no agent knows of, which listens on a floating address.
func (s *scope) listener(ip string) (target []string) {
	s.Helper()
	network, family := ip+"/24", "AF_INET"
	if strings.Contains(ip, ":") {
		network, family = ip+"/64", "AF_INET6"
	}
	s.float("host1", network)
	s.cleanly(func(late *scope) { late.unfloat("host1", network) })
	cmd := s.bare("/usr/bin/python3", "-c", "import socket\ns = socket.create_server(('"+ip+"', 8080), family=socket."+family+")"+sleeper)
	return []string{"--pid", strconv.Itoa(cmd.PID)}
}
