package procfs

import (
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// A CgroupPath is one line of /proc/PID/cgroup (cgroups(7)).
type CgroupPath struct {
	Hierarchy   int // 0 for the v2 hierarchy
	Controllers []string
	Path        string // as seen from the root of the reader's cgroup namespace; may begin with "/.."
	Deleted     bool
}

// Cgroups reads /proc/PID/cgroup.
func (p FS) Cgroups(pid int) ([]CgroupPath, error) { return parse(p, ParseCgroups, pid, "cgroup") }

// ThreadCgroups reads /proc/PID/task/TID/cgroup.
func (p FS) ThreadCgroups(pid, tid int) ([]CgroupPath, error) {
	return parse(p, ParseCgroups, pid, "task", tid, "cgroup")
}

// ParseCgroups parses /proc/PID/cgroup.
func ParseCgroups(r io.Reader) ([]CgroupPath, error) {
	var out []CgroupPath
	err := eachLine(r, func(line string) error {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			return fmt.Errorf("%.80q is not of the form hierarchy:controllers:path", line)
		}
		n, err := id("hierarchy", f[0])
		if err != nil {
			return err
		}
		c := CgroupPath{Hierarchy: n, Path: unescape(f[2], "\n")}
		c.Path, c.Deleted = strings.CutSuffix(c.Path, " (deleted)")
		if f[1] != "" {
			c.Controllers = strings.Split(f[1], ",")
		}
		out = append(out, c)
		return nil
	})
	return out, err
}

// Mounts reads /proc/PID/mountinfo.
func (p FS) Mounts(pid int) ([]*mountinfo.Info, error) {
	return parse(p, ParseMounts, pid, "mountinfo")
}

// Uptime reads the time since boot.
func (p FS) Uptime() (time.Duration, error) { return parse(p, ParseUptime, "uptime") }

// ParseUptime parses /proc/uptime, whose resolution is 10 ms.
func ParseUptime(r io.Reader) (time.Duration, error) {
	b, err := io.ReadAll(io.LimitReader(r, 256))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0, fmt.Errorf("uptime: %q does not hold two numbers", b)
	}
	s, err := strconv.ParseFloat(f[0], 64)
	if err != nil || math.IsNaN(s) || s < 0 || s > 1e9 {
		return 0, fmt.Errorf("uptime: %q is not a number of seconds", f[0])
	}
	return time.Duration(s * float64(time.Second)), nil
}

// BootID reads the id that the kernel drew at boot; it differs in each virtual host of the lab.
func (p FS) BootID() (string, error) {
	b, err := p.Bytes("sys", "kernel", "random", "boot_id")
	return strings.TrimSpace(string(b)), err
}

// A ClockOffset is what a time namespace adds to a clock of the host (time_namespaces(7)).
type ClockOffset struct{ Monotonic, Boottime time.Duration }

// ClockOffsets are those of a process's time namespace. /proc/PID/timens_offsets tells of the one into which its children are born,
// which is its own unless it has called unshare(CLONE_NEWTIME).
func (p FS) ClockOffsets(pid int) (ClockOffset, error) {
	now, err := p.Link(pid, "ns", "time")
	if err != nil {
		return ClockOffset{}, err
	}
	later, err := p.Link(pid, "ns", "time_for_children")
	if err != nil {
		return ClockOffset{}, err
	}
	if now == later {
		return p.LaterOffsets(pid)
	}
	// Only another process can tell, whose children are born where this one is.
	pids, err := p.PIDs()
	if err != nil {
		return ClockOffset{}, err
	}
	for _, other := range append([]int{os.Getpid()}, pids...) {
		if its, err := p.Link(other, "ns", "time_for_children"); err == nil && its == now {
			return p.LaterOffsets(other)
		}
	}
	return ClockOffset{}, fmt.Errorf("process %d: the offsets of its time namespace cannot be read, since its children are to be born into another one", pid)
}

// LaterOffsets are those of the namespace into which the children of a process are born.
func (p FS) LaterOffsets(pid int) (ClockOffset, error) {
	return parse(p, ParseClockOffsets, pid, "timens_offsets")
}

// ParseClockOffsets parses /proc/PID/timens_offsets: "monotonic  seconds  nanoseconds" and the same for boottime.
func ParseClockOffsets(r io.Reader) (ClockOffset, error) {
	var o ClockOffset
	err := eachLine(r, func(line string) error {
		f := strings.Fields(line)
		if len(f) != 3 {
			return fmt.Errorf("%.80q is not of the form clock seconds nanoseconds", line)
		}
		dst := map[string]*time.Duration{"monotonic": &o.Monotonic, "1": &o.Monotonic, "boottime": &o.Boottime, "7": &o.Boottime}[f[0]]
		if dst == nil {
			return nil
		}
		s, err := integer("seconds", f[1], 64)
		if err != nil {
			return err
		}
		ns, err := integer("nanoseconds", f[2], 64)
		if err != nil {
			return err
		}
		const limit = int64(math.MaxInt64 / time.Second / 2)
		if s > limit || s < -limit || ns < 0 || ns >= int64(time.Second) {
			return fmt.Errorf("%s: %d s and %d ns do not make a duration", f[0], s, ns)
		}
		*dst = time.Duration(s)*time.Second + time.Duration(ns)
		return nil
	})
	return o, err
}
