//go:build linux

package ns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// Limit bounds for a while the processor time of the tasks in a v2 cgroup and below it.
//
// Where the cpu controller belongs to v2, it is cpu.max of that cgroup. Where it belongs to v1, the tasks are put into a cgroup of their own
// below the one that they were in, whose limits go on to hold. What there was before stands in an extended attribute of the v2 cgroup before
// anything is changed, so that UnlimitCPU takes the limit away after the death of the program that set it. A Limit belongs to one goroutine
// at a time.
type Limit struct {
	tree   *Cgroup
	mark   *limitMark // nil once the limit has been taken away
	quota  *os.File   // cpu.max, or cpu.cfs_quota_us
	period *os.File   // cpu.cfs_period_us; nil on v2
}

// limitAttribute is where a mark stands. Only those who may administer the host read and write it (xattr(7)).
const limitAttribute = "trusted.migrate.limit"

// limitMark says what has to be undone.
type limitMark struct {
	Hierarchy string `json:"hierarchy,omitempty"` // of v1, as /proc/PID/cgroup names it; empty on v2
	Path      string `json:"path,omitempty"`      // of v1: the cgroup that was made
	Before    string `json:"before"`              // of v1: the cgroup that the tasks were in; of v2: what cpu.max was
}

const (
	// shortPeriod is short, for what is stopped by a limit is neither asked nor frozen until the period's end.
	shortPeriod = 10 * time.Millisecond
	// The kernel takes no smaller quota and no longer period (kernel/sched/core.c, tg_set_cfs_bandwidth).
	leastQuota    = time.Millisecond
	longestPeriod = time.Second
	// Weights of a v1 cgroup: that of one thread, and the highest.
	threadShares, mostShares = 1024, 1 << 18
)

// quotaOf is the quota and the period that give so many processors' time, or the least above it that the kernel takes.
func quotaOf(cpus float64) (quota, period time.Duration) {
	period = shortPeriod
	if cpus*float64(period) < float64(leastQuota) {
		period = min(longestPeriod, time.Duration(math.Ceil(float64(leastQuota)/cpus/1000))*time.Microsecond)
	}
	quota = time.Duration(math.Ceil(cpus*float64(period)/1000)) * time.Microsecond
	return max(quota, leastQuota), period
}

// CPUTime is the processor time that the tasks in the cgroup and below it have used, also those that have ended (cpu.stat).
func (c *Cgroup) CPUTime() (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join(c.dir, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("cgroup: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); ok {
			us, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s/cpu.stat: %w", c.dir, err)
			}
			return time.Duration(us) * time.Microsecond, nil
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no usage_usec", c.dir)
}

// LimitCPU makes ready to limit the processor time of the tasks in a cgroup. Set sets a limit; Close takes it away with what was made for it.
func LimitCPU(tree *Cgroup) (*Limit, error) {
	if err := UnlimitCPU(tree); err != nil {
		return nil, err
	}
	l := &Limit{tree: tree}
	if err := l.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("limiting the processor time of %s: %w", tree.dir, err), l.Close())
	}
	return l, nil
}

func (l *Limit) open() (err error) {
	path := filepath.Join(l.tree.dir, "cpu.max")
	if old, err := os.ReadFile(path); err == nil {
		if err := l.note(&limitMark{Before: strings.TrimSpace(string(old))}); err != nil {
			return err
		}
		l.quota, err = os.OpenFile(path, os.O_WRONLY, 0)
		return err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tasks, err := l.tree.tasks()
	if err != nil {
		return err
	}
	if len(tasks) == 0 {
		return errors.New("no process is in it")
	}
	hierarchy, before, threads, err := cpuPlace(tasks)
	if err != nil {
		return err
	}
	if hierarchy == "" {
		return errors.New("the cpu controller is not enabled for it: write +cpu into cgroup.subtree_control of the cgroups above it")
	}
	var st unix.Stat_t
	if err := unix.Stat(l.tree.dir, &st); err != nil {
		return fmt.Errorf("%s: %w", l.tree.dir, err)
	}
	// The number is that of the v2 cgroup, which no other on the machine has: hosts of one machine share the hierarchies of v1.
	mark := &limitMark{Hierarchy: hierarchy, Path: filepath.Join(before, fmt.Sprintf("migrate-limit-%d", st.Ino)), Before: before}
	if err := l.note(mark); err != nil {
		return err
	}
	h := &Hierarchies{}
	defer func() { err = errors.Join(err, h.Close()) }()
	dir, err := h.path(hierarchy, mark.Path)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	// Among its neighbours the group weighs as much as its threads did.
	shares := min(threadShares*max(threads, 1), mostShares)
	if err := os.WriteFile(filepath.Join(dir, "cpu.shares"), []byte(strconv.Itoa(shares)), 0); err != nil {
		return err
	}
	if l.quota, err = os.OpenFile(filepath.Join(dir, "cpu.cfs_quota_us"), os.O_WRONLY, 0); err != nil {
		return err
	}
	if l.period, err = os.OpenFile(filepath.Join(dir, "cpu.cfs_period_us"), os.O_WRONLY, 0); err != nil {
		return err
	}
	return gather(dir, func() ([]int, error) { return l.outside(mark) })
}

// outside lists the processes of the tree that are not in the cgroup of the mark.
func (l *Limit) outside(m *limitMark) ([]int, error) {
	tasks, err := l.tree.tasks()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(tasks, func(pid int) bool {
		at, err := procfs.Host.ThreadCgroups(pid, pid)
		return err != nil || !slices.ContainsFunc(at, func(p procfs.CgroupPath) bool {
			return strings.Join(p.Controllers, ",") == m.Hierarchy && p.Path == m.Before
		})
	}), nil
}

// note writes the mark.
func (l *Limit) note(m *limitMark) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := unix.Setxattr(l.tree.dir, limitAttribute, b, unix.XATTR_CREATE); err != nil {
		return fmt.Errorf("noting what there was before: %w", err)
	}
	l.mark = m
	return nil
}

// cpuPlace finds the v1 hierarchy of the cpu controller and the one cgroup in it that all threads of the processes are in. The hierarchy is
// empty where v1 has none.
func cpuPlace(pids []int) (hierarchy, cgroup string, threads int, err error) {
	for _, pid := range pids {
		tids, err := procfs.Host.Tasks(pid)
		if err != nil {
			continue // it has ended
		}
		for _, tid := range tids {
			at, err := procfs.Host.ThreadCgroups(pid, tid)
			if err != nil {
				continue
			}
			i := slices.IndexFunc(at, func(p procfs.CgroupPath) bool { return slices.Contains(p.Controllers, "cpu") })
			if i < 0 {
				return "", "", 0, nil
			}
			threads++
			switch {
			case strings.HasPrefix(at[i].Path, "/.."):
				return "", "", 0, fmt.Errorf("thread %d is in the cgroup %s, outside of what can be seen from here", tid, at[i].Path)
			case cgroup == "":
				hierarchy, cgroup = strings.Join(at[i].Controllers, ","), at[i].Path
			case cgroup != at[i].Path:
				return "", "", 0, fmt.Errorf("its threads are in several cgroups of the cpu controller, such as %s and %s", cgroup, at[i].Path)
			}
		}
	}
	return hierarchy, cgroup, threads, nil
}

// Set lets the tasks have at most so many processors' time from now on: 0.5 is half of one.
func (l *Limit) Set(cpus float64) error {
	if !(cpus > 0) || l.mark == nil {
		return fmt.Errorf("a limit of %g processors cannot be set", cpus)
	}
	quota, period := quotaOf(cpus)
	if l.period == nil {
		return overwrite(l.quota, fmt.Sprintf("%d %d", quota.Microseconds(), period.Microseconds()))
	}
	// Between the two the limit must not be lower than both.
	return errors.Join(overwrite(l.quota, "-1"), overwrite(l.period, strconv.FormatInt(period.Microseconds(), 10)),
		overwrite(l.quota, strconv.FormatInt(quota.Microseconds(), 10)))
}

// Lift lets the tasks run as before, at once. Close is still needed.
func (l *Limit) Lift() error {
	switch {
	case l.mark == nil:
		return nil
	case l.period == nil:
		return overwrite(l.quota, l.mark.Before)
	}
	return overwrite(l.quota, "-1")
}

// Close takes the limit away, and what was made for it. It may be called again.
func (l *Limit) Close() error {
	if l.mark == nil {
		return nil
	}
	if err := l.mark.undo(l.tree); err != nil {
		return err
	}
	l.mark = nil
	for _, f := range []*os.File{l.quota, l.period} {
		if f != nil {
			_ = f.Close() // every write was one call with an answer of its own
		}
	}
	return nil
}

// UnlimitCPU takes away the limit that a program has set which has died since. Where there is none it does nothing.
func UnlimitCPU(tree *Cgroup) error {
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Getxattr(tree.dir, limitAttribute, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: attribute %s: %w", tree.dir, limitAttribute, err)
	}
	m := &limitMark{}
	if err := json.Unmarshal(buf[:n], m); err != nil {
		return fmt.Errorf("%s: attribute %s: %w", tree.dir, limitAttribute, err)
	}
	return m.undo(tree)
}

func (m *limitMark) undo(tree *Cgroup) (err error) {
	if m.Hierarchy == "" {
		err = tree.write("cpu.max", m.Before)
	} else {
		err = m.leave()
	}
	if err == nil {
		err = unix.Removexattr(tree.dir, limitAttribute)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODATA) { // a cgroup that is gone limits nobody
		return fmt.Errorf("taking the limit of %s away: %w", tree.dir, err)
	}
	return nil
}

// leave puts the tasks back to where they were and removes the cgroup that was made.
func (m *limitMark) leave() (err error) {
	h := &Hierarchies{}
	defer func() { err = errors.Join(err, h.Close()) }()
	dir, err := h.path(m.Hierarchy, m.Path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	before, err := h.path(m.Hierarchy, m.Before)
	if err != nil {
		return err
	}
	made := &Cgroup{dir}
	if err := made.write("cpu.cfs_quota_us", "-1"); err != nil {
		return err
	}
	for range maxGather {
		if err := gather(before, made.Processes); err != nil {
			return err
		}
		// A task that ends is no longer listed, and belongs to the cgroup for a moment yet (kernel/cgroup/cgroup.c, css_task_iter_advance).
		// v1 does not announce that the last one has gone.
		if err = unix.Rmdir(dir); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing cgroup %s: %w", dir, err)
	}
	return nil
}

// maxGather bounds how often processes are looked for that were born while others were moved.
const maxGather = 1000

// gather moves processes into a cgroup until there are none left.
func gather(dir string, list func() ([]int, error)) error {
	into := &Cgroup{dir}
	for range maxGather {
		pids, err := list()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := into.Add(pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return fmt.Errorf("processes are born faster than they can be moved to %s", dir)
}

// tasks lists the processes in the cgroup and in those below it.
func (c *Cgroup) tasks() ([]int, error) {
	var out []int
	err := filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		pids, err := (&Cgroup{path}).Processes()
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
			return nil // threaded: its processes are listed above it; or removed meanwhile
		}
		out = append(out, pids...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the tasks of a cgroup: %w", err)
	}
	return out, nil
}

func overwrite(f *os.File, text string) error {
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("writing %q to %s: %w", text, f.Name(), err)
	}
	return nil
}
