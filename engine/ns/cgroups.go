//go:build linux

package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// Hierarchies are the cgroup hierarchies of this host, each by its controllers as /proc/PID/cgroup lists them, such as
// "cpu,cpuacct" or "name=systemd"; v2 by the empty string. Those that are mounted nowhere are mounted for a moment.
type Hierarchies struct {
	dirs map[string]string
	own  []string // mounted by this program
}

// Close unmounts what was mounted. Cgroups that were made stay: a hierarchy lives as long as it has any.
func (h *Hierarchies) Close() error {
	var errs []error
	for _, dir := range h.own {
		errs = append(errs, unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir))
	}
	h.dirs, h.own = nil, nil
	return errors.Join(errs...)
}

// dir returns where a hierarchy is mounted whole.
func (h *Hierarchies) dir(name string) (string, error) {
	if h.dirs == nil {
		h.dirs = map[string]string{}
		mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
		if err != nil {
			return "", fmt.Errorf("reading mountinfo: %w", err)
		}
		for _, m := range mounts {
			if m.Root != "/" {
				continue
			}
			if m.FSType == "cgroup2" {
				h.dirs[""] = m.Mountpoint
			} else {
				h.dirs[hierarchyKey(m.VFSOptions)] = m.Mountpoint
			}
		}
	}
	key := hierarchyKey(name)
	if dir := h.dirs[key]; dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "migrate-cgroup-")
	if err != nil {
		return "", err
	}
	fstype, options := "cgroup2", ""
	if name != "" {
		fstype, options = "cgroup", name
		if strings.HasPrefix(name, "name=") {
			options = "none," + name
		}
	}
	if err := unix.Mount("none", dir, fstype, 0, options); err != nil {
		return "", errors.Join(fmt.Errorf("mounting the cgroup hierarchy %q: %w", name, err), os.Remove(dir))
	}
	h.dirs[key], h.own = dir, append(h.own, dir)
	return dir, nil
}

// hierarchyKey brings controllers into one order and leaves out what else stands among the options of a mount.
func hierarchyKey(options string) string {
	var out []string
	for _, o := range strings.Split(options, ",") {
		switch {
		case o == "", o == "rw", o == "ro", o == "xattr", o == "clone_children", o == "noprefix", o == "all", o == "none", strings.HasPrefix(o, "release_agent="), strings.HasPrefix(o, "cpuset_v2"):
		default:
			out = append(out, o)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// path is the directory of a cgroup.
func (h *Hierarchies) path(name, cgroup string) (string, error) {
	top, err := h.dir(name)
	if err != nil {
		return "", err
	}
	return filepath.Join(top, filepath.Clean("/"+cgroup)), nil
}

// cgroupProperties are the settings of a cgroup that are carried, in the order in which they are set: those of v1, then
// those of v2 (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst).
var cgroupProperties = []string{
	"cgroup.clone_children", "notify_on_release",
	"cpuset.cpus", "cpuset.mems", "cpuset.memory_migrate", "cpuset.cpu_exclusive", "cpuset.mem_exclusive", "cpuset.mem_hardwall",
	"cpuset.memory_spread_page", "cpuset.memory_spread_slab", "cpuset.sched_load_balance", "cpuset.sched_relax_domain_level",
	"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.rt_period_us", "cpu.rt_runtime_us",
	"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness", "memory.use_hierarchy", "memory.move_charge_at_immigrate",
	"blkio.weight", "blkio.bfq.weight", "pids.max", "net_cls.classid", "net_prio.ifpriomap",
	"cgroup.max.depth", "cgroup.max.descendants", "cgroup.subtree_control", "cpuset.cpus.partition",
	"cpu.idle", "cpu.weight", "cpu.max", "cpu.max.burst", "cpu.uclamp.min", "cpu.uclamp.max",
	"memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.high", "memory.swap.max", "memory.oom.group",
	"io.weight", "io.bfq.weight", "io.max", "io.latency", "misc.max", "rdma.max",
}

// maxCgroups bounds the cgroups of one tree.
const maxCgroups = 1 << 14

// Describe records the cgroups that tasks are in, with those above and below them, parents first.
func (h *Hierarchies) Describe(places []*imagespb.CgroupPlace) ([]*imagespb.CgroupDir, error) {
	seen := map[[2]string]bool{}
	var out []*imagespb.CgroupDir
	add := func(name, cgroup string) error {
		if cgroup == "/" || seen[[2]string{name, cgroup}] {
			return nil
		}
		if seen[[2]string{name, cgroup}] = true; len(out) >= maxCgroups {
			return fmt.Errorf("more than %d cgroups", maxCgroups)
		}
		d, err := h.describe(name, cgroup)
		if d != nil {
			out = append(out, d)
		}
		return err
	}
	for _, p := range places {
		for i, c := range p.GetPath() {
			if c == '/' && i > 0 {
				if err := add(p.GetHierarchy(), p.GetPath()[:i]); err != nil {
					return nil, err
				}
			}
		}
		if p.GetPath() == "/" {
			continue
		}
		top, err := h.dir(p.GetHierarchy())
		if err != nil {
			return nil, err
		}
		err = filepath.WalkDir(filepath.Join(top, p.GetPath()), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it was removed meanwhile, or while its last task is a zombie
			}
			if err != nil || !d.IsDir() {
				return err
			}
			return add(p.GetHierarchy(), strings.TrimPrefix(path, top))
		})
		if err != nil {
			return nil, fmt.Errorf("cgroup %q of %q: %w", p.GetPath(), p.GetHierarchy(), err)
		}
	}
	return out, nil
}

func (h *Hierarchies) describe(name, cgroup string) (*imagespb.CgroupDir, error) {
	path, err := h.path(name, cgroup)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", path, err)
	}
	d := &imagespb.CgroupDir{Hierarchy: name, Path: cgroup, Mode: st.Mode & 0o7777, Uid: st.Uid, Gid: st.Gid}
	for _, prop := range cgroupProperties {
		text, err := os.ReadFile(filepath.Join(path, prop))
		if value := strings.TrimSpace(string(text)); err == nil && value != "" {
			d.Properties = append(d.Properties, &imagespb.CgroupProperty{Name: prop, Value: value})
		}
	}
	return d, nil
}

// Make creates the cgroups that are missing, with their settings. Those that are there are left as they are. It returns a
// function that removes what it made.
func (h *Hierarchies) Make(dirs []*imagespb.CgroupDir) (undo func() error, err error) {
	var made []string
	undo = func() error {
		var errs []error
		for _, dir := range slices.Backward(made) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
				errs = append(errs, fmt.Errorf("removing cgroup %s: %w", dir, err))
			}
		}
		return errors.Join(errs...)
	}
	for _, d := range dirs {
		path, err := h.path(d.GetHierarchy(), d.GetPath())
		if err != nil {
			return undo, err
		}
		if err := os.Mkdir(path, 0o755); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return undo, fmt.Errorf("creating a cgroup: %w", err)
		}
		made = append(made, path)
		if err := setProperties(path, d); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

func setProperties(path string, d *imagespb.CgroupDir) error {
	if err := errors.Join(os.Chown(path, int(d.GetUid()), int(d.GetGid())), os.Chmod(path, fs.FileMode(d.GetMode()))); err != nil {
		return err
	}
	for _, p := range d.GetProperties() {
		if !slices.Contains(cgroupProperties, p.GetName()) {
			return fmt.Errorf("cgroup %s: %q is no setting that is known", path, p.GetName())
		}
		file := filepath.Join(path, p.GetName())
		old, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(old)) == p.GetValue() {
			continue
		}
		for _, line := range strings.Split(p.GetValue(), "\n") {
			if p.GetName() == "cgroup.subtree_control" {
				line = "+" + strings.ReplaceAll(line, " ", " +")
			}
			if err := os.WriteFile(file, []byte(line), 0); err != nil {
				return fmt.Errorf("setting of a cgroup to %q: %w", line, err)
			}
		}
	}
	return nil
}

// Enter moves a task to a cgroup: a process with all its threads or, with thread, only the one.
func (h *Hierarchies) Enter(p *imagespb.CgroupPlace, tid int, thread bool) error {
	path, err := h.path(p.GetHierarchy(), p.GetPath())
	if err != nil {
		return err
	}
	file := "cgroup.procs"
	if thread {
		file = "cgroup.threads"
		if p.GetHierarchy() != "" {
			file = "tasks"
		}
	}
	if err := os.WriteFile(filepath.Join(path, file), []byte(strconv.Itoa(tid)), 0); err != nil {
		return fmt.Errorf("task %d: into cgroup %q of %q: %w", tid, p.GetPath(), p.GetHierarchy(), err)
	}
	return nil
}
