//go:build linux

package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/procfs"
)

// Needs are what the processes of a tree need from their destination, as far as this package knows before they are
// stopped. They travel with the plan, so that what a restore would fail on is named before anything is touched.
type Needs struct {
	Processes []ProcessNeeds `json:"processes"`
}

// ProcessNeeds are those of one process.
type ProcessNeeds struct {
	PID          int            `json:"pid"`
	Limits       []procfs.Limit `json:"limits,omitempty"`       // by RLIMIT_ number
	CPUs         []int          `json:"cpus,omitempty"`         // that threads are bound to; none if they run everywhere
	Capabilities uint64         `json:"capabilities,omitempty"` // permitted to any of its threads; none in a user namespace that comes along
	OOMScoreAdj  int            `json:"oom_score_adj,omitempty"`
}

const (
	maxNeeds     = 64 << 20 // bytes
	maxNeedCPUs  = maskBytes * 8
	oomAdjLowest = -1000
)

// ReadNeeds collects what the processes of a tree need. It reads /proc and touches nothing.
func ReadNeeds(fs procfs.FS, tree []*engine.Process) (Needs, error) {
	var n Needs
	everywhere, err := online()
	if err != nil {
		return n, err
	}
	for _, p := range tree {
		one, err := processNeeds(fs, p, everywhere)
		if errors.Is(err, procfs.ErrGone) {
			continue // it ended meanwhile, and then needs nothing
		}
		if err != nil {
			return n, fmt.Errorf("pid %d: %w", p.PID, err)
		}
		n.Processes = append(n.Processes, one)
	}
	return n, nil
}

func processNeeds(fs procfs.FS, p *engine.Process, everywhere []byte) (ProcessNeeds, error) {
	n := ProcessNeeds{PID: p.PID}
	if zombie, err := IsZombie(fs, p.PID); err != nil || zombie {
		return n, err
	}
	var err error
	if n.Limits, err = fs.Limits(p.PID); err != nil {
		return n, err
	}
	adj, err := fs.Bytes(p.PID, "oom_score_adj")
	if err != nil {
		return n, err
	}
	if n.OOMScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(adj))); err != nil {
		return n, err
	}
	own, err := fs.Link(p.PID, "ns", "user")
	if err != nil {
		return n, err
	}
	here, err := fs.Link(unix.Getpid(), "ns", "user")
	if err != nil {
		return n, err
	}
	tids, err := fs.Tasks(p.PID)
	if err != nil {
		return n, err
	}
	cpus := map[int]bool{}
	for _, tid := range tids {
		s, err := fs.ThreadStatus(p.PID, tid)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return n, err
		}
		if own == here { // else its user namespace gives them
			n.Capabilities |= uint64(s.CapPrm)
		}
		mask, err := affinity(tid)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return n, err
		}
		if !slices.Equal(mask, everywhere) {
			for _, c := range missing(mask, nil) {
				cpus[c] = true
			}
		}
	}
	for c := range cpus {
		n.CPUs = append(n.CPUs, c)
	}
	slices.Sort(n.CPUs)
	return n, nil
}

// Marshal returns the needs as the plan carries them.
func (n Needs) Marshal() ([]byte, error) { return json.Marshal(n) }

// UnmarshalNeeds reads what Marshal wrote, with bounds.
func UnmarshalNeeds(b []byte) (Needs, error) {
	var n Needs
	if len(b) > maxNeeds {
		return n, fmt.Errorf("needs of a tree: %d bytes, at most %d are taken", len(b), maxNeeds)
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("needs of a tree: %w", err)
	}
	for i, p := range n.Processes {
		if len(p.Limits) > procfs.NumLimits || len(p.CPUs) > maxNeedCPUs || p.OOMScoreAdj < oomAdjLowest {
			return n, fmt.Errorf("needs of a tree: processes[%d] (pid %d): out of bounds", i, p.PID)
		}
	}
	return n, nil
}

// CheckNeeds names, on the destination, the needs that this host cannot meet.
func CheckNeeds(n Needs) ([]engine.Obstacle, error) {
	self, err := procfs.Host.Status(unix.Getpid())
	if err != nil {
		return nil, err
	}
	limits, err := procfs.Host.Limits(unix.Getpid())
	if err != nil {
		return nil, err
	}
	adj, err := procfs.Host.Bytes(unix.Getpid(), "oom_score_adj")
	if err != nil {
		return nil, err
	}
	ownAdj, err := strconv.Atoi(strings.TrimSpace(string(adj)))
	if err != nil {
		return nil, err
	}
	mask, err := online()
	if err != nil {
		return nil, err
	}
	here := missing(mask, nil)
	resource := self.CapEff>>unix.CAP_SYS_RESOURCE&1 != 0
	var found []engine.Obstacle
	for _, p := range n.Processes {
		add := func(kind, where, remedy, reason string, args ...any) {
			found = append(found, engine.Obstacle{PID: p.PID, Kind: kind, Where: where, Reason: fmt.Sprintf(reason, args...), Remedy: remedy})
		}
		for i, l := range p.Limits {
			if !resource && i < len(limits) && l.Hard > limits[i].Hard {
				add("limits", fmt.Sprintf("%q", procfs.LimitName(i)), "raise the limit of the agent there",
					"its hard limit is %s, and the destination, without CAP_SYS_RESOURCE, has %s", limitText(l.Hard), limitText(limits[i].Hard))
			}
		}
		var gone []int
		for _, c := range p.CPUs {
			if !slices.Contains(here, c) {
				gone = append(gone, c)
			}
		}
		if len(gone) > 0 {
			add("scheduling", "affinity", "let it run on other processors (taskset -p)", "it is bound to processors %v, which the destination does not have", gone)
		}
		if lost := p.Capabilities &^ uint64(self.CapPrm); lost != 0 {
			add("credentials", "capabilities", "", "it may use capabilities 0x%x, which the agent of the destination does not have to give", lost)
		}
		if !resource && p.OOMScoreAdj < ownAdj {
			add("process-attributes", "oom_score_adj", "lower the agent's own", "it is %d, and the destination, without CAP_SYS_RESOURCE, cannot go below %d", p.OOMScoreAdj, ownAdj)
		}
	}
	return found, nil
}
