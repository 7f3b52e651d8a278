package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"migrate/e2e/lab/pid1"
)

// HostState is whether a host runs.
type HostState string

// The states of a host. A host is down when its pid 1 has ended by itself, killed when Kill has ended it.
const (
	HostUp     HostState = "up"
	HostDown   HostState = "down"
	HostKilled HostState = "killed"
)

// AgentState is whether a host's agent runs.
type AgentState string

// The states of an agent.
const (
	AgentNone    AgentState = "none"
	AgentRunning AgentState = "running"
	AgentStalled AgentState = "stalled"
)

// HostStatus describes a host. Process ids are those of the machine.
type HostStatus struct {
	Name     string     `json:"name"`
	State    HostState  `json:"state"`
	Address  string     `json:"address"`
	Address6 string     `json:"address6"`
	PID      int        `json:"pid,omitempty"`
	BootID   string     `json:"boot_id,omitempty"`
	UptimeS  float64    `json:"uptime_s,omitempty"` // by the host's own clock
	Agent    AgentState `json:"agent"`
	AgentPID int        `json:"agent_pid,omitempty"`
}

// Status describes a lab.
type Status struct {
	StateDir             string       `json:"state_dir"`
	BandwidthBytesPerSec uint64       `json:"bandwidth_bytes_per_second,omitempty"`
	Hosts                []HostStatus `json:"hosts"`
	Cuts                 []Cut        `json:"cuts"`
}

// Status returns how the lab is.
func (l *Lab) Status(ctx context.Context) (*Status, error) {
	st, err := readState(l.dir)
	if err != nil {
		return nil, err
	}
	s := &Status{StateDir: l.dir, BandwidthBytesPerSec: st.Bandwidth, Hosts: []HostStatus{}, Cuts: append([]Cut{}, st.Cuts...)}
	for _, h := range l.hosts {
		hs, err := h.status(ctx, st)
		if err != nil {
			return nil, err
		}
		s.Hosts = append(s.Hosts, hs)
	}
	return s, nil
}

func (h *Host) status(ctx context.Context, st *state) (HostStatus, error) {
	s := HostStatus{Name: h.name, State: HostKilled, Address: h.Addr().String(), Address6: h.Addr6().String(), Agent: AgentNone}
	if st.killed(h.name) {
		return s, nil
	}
	var err error
	if s.PID, err = h.PID(ctx); errors.Is(err, ErrDown) {
		s.State = HostDown
		return s, nil
	} else if err != nil {
		return s, err
	}
	s.State = HostUp
	if s.BootID, err = h.BootID(ctx); err != nil {
		return s, err
	}
	if s.UptimeS, err = h.uptime(s.PID); err != nil {
		return s, err
	}
	agent, err := h.agent(ctx)
	if errors.Is(err, pid1.ErrNotRunning) {
		return s, nil
	} else if err != nil {
		return s, err
	}
	defer agent.Close()
	if s.AgentPID, err = pidOf(agent.Pidfd); err != nil {
		return s, fmt.Errorf("%s: its agent: %w", h.name, err)
	}
	s.Agent = AgentRunning
	if stopped, err := isStopped(s.AgentPID); err == nil && stopped {
		s.Agent = AgentStalled
	}
	return s, nil
}

// BootID returns the host's boot id, a UUID that is new with each start of the host.
func (h *Host) BootID(ctx context.Context) (string, error) {
	text, err := h.ReadFile(ctx, "/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}

// uptime is CLOCK_BOOTTIME in the host's time namespace, in seconds: our own clock with the offset of the namespace.
func (h *Host) uptime(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/timens_offsets", pid))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", h.name, err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("lab: clock_gettime: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		var sec, nsec int64
		if n, _ := fmt.Sscanf(line, "boottime %d %d", &sec, &nsec); n == 2 {
			offset := time.Duration(sec)*time.Second + time.Duration(nsec)
			return (time.Duration(now.Nano()) + offset).Seconds(), nil
		}
	}
	return 0, fmt.Errorf("%s: /proc/%d/timens_offsets has no boottime: %q", h.name, pid, text)
}

// isStopped tells whether a process is stopped by a signal (state T, proc_pid_stat(5)).
func isStopped(pid int) (bool, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false, fmt.Errorf("lab: %w", err)
	}
	_, rest, ok := strings.Cut(string(text), ") ")
	return ok && strings.HasPrefix(rest, "T"), nil
}
