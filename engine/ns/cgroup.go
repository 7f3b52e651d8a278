//go:build linux

package ns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrNoCgroup2 means that the host has no cgroup v2 hierarchy mounted, without which nothing can be held frozen
// beyond the life of the agent.
var ErrNoCgroup2 = errors.New("no cgroup v2 hierarchy is mounted")

// Cgroup is a directory of the v2 hierarchy. It is how a tree is held: a frozen cgroup stays frozen when the
// program that froze it dies (cgroup-v2.rst, "cgroup.freeze").
type Cgroup struct{ dir string }

var cgroup2Mount = sync.OnceValues(func() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", fmt.Errorf("reading mountinfo: %w", err)
	}
	if len(mounts) == 0 {
		return "", ErrNoCgroup2
	}
	return mounts[0].Mountpoint, nil
})

// Cgroup2Mount returns where the v2 hierarchy is mounted: /sys/fs/cgroup, or .../unified beside v1 controllers.
func Cgroup2Mount() (string, error) { return cgroup2Mount() }

// MakeCgroup creates the cgroup name (a path below the mount, such as "migrate/redis/tree"), or takes it when it exists.
func MakeCgroup(name string) (*Cgroup, error) {
	top, err := Cgroup2Mount()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(top, filepath.Clean("/"+name))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating cgroup %s: %w", name, err)
	}
	return &Cgroup{dir}, nil
}

// OpenCgroup returns the cgroup that a process is in.
func OpenCgroup(pid int) (*Cgroup, error) {
	top, err := Cgroup2Mount()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("the cgroup of pid %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return &Cgroup{filepath.Join(top, rest)}, nil
		}
	}
	return nil, fmt.Errorf("pid %d is in no v2 cgroup", pid)
}

// Path is the directory of the cgroup.
func (c *Cgroup) Path() string { return c.dir }

// Add moves a process, with all its threads, into the cgroup.
func (c *Cgroup) Add(pid int) error {
	return c.write("cgroup.procs", strconv.Itoa(pid))
}

// Kill ends every process in the cgroup, also frozen ones (cgroup.kill, Linux 5.14).
func (c *Cgroup) Kill() error { return c.write("cgroup.kill", "1") }

// Processes lists the processes in the cgroup itself, not in those below it.
func (c *Cgroup) Processes() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(c.dir, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", c.dir, err)
	}
	var pids []int
	for line := range strings.Lines(string(text)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: cgroup.procs holds %q", c.dir, line)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Freeze stops every task in the cgroup and returns once the kernel says that all are stopped.
func (c *Cgroup) Freeze(ctx context.Context) error { return c.setFrozen(ctx, true) }

// Thaw lets the tasks run. It returns when the order is given: tasks run from then on, each as it is scheduled.
func (c *Cgroup) Thaw() error { return c.write("cgroup.freeze", "0") }

// Frozen tells whether every task of the cgroup is stopped by the freezer.
func (c *Cgroup) Frozen() (bool, error) { return c.event("frozen") }

// Populated tells whether a process is in the cgroup or below it.
func (c *Cgroup) Populated() (bool, error) { return c.event("populated") }

// Empty returns once no process is left in the cgroup or below it.
func (c *Cgroup) Empty(ctx context.Context) error { return c.await(ctx, "populated", false) }

// Remove deletes the cgroup and the cgroups below it. They must be empty of processes.
func (c *Cgroup) Remove() error {
	var dirs []string
	err := filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		if e := unix.Rmdir(dirs[i]); e != nil && !errors.Is(e, unix.ENOENT) {
			err = &fs.PathError{Op: "rmdir", Path: dirs[i], Err: e}
		}
	}
	if err != nil {
		return fmt.Errorf("removing cgroup: %w", err)
	}
	return nil
}

func (c *Cgroup) setFrozen(ctx context.Context, want bool) error {
	value := "0"
	if want {
		value = "1"
	}
	if err := c.write("cgroup.freeze", value); err != nil {
		return err
	}
	err := c.await(ctx, "frozen", want)
	if err != nil && want { // else it would stop whenever it can
		err = errors.Join(err, c.write("cgroup.freeze", "0"))
	}
	return err
}

// await returns when the field of cgroup.events has the value wanted, reading it anew each time the kernel
// announces a change.
func (c *Cgroup) await(ctx context.Context, field string, want bool) error {
	events, err := os.Open(filepath.Join(c.dir, "cgroup.events"))
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	defer func() { _ = events.Close() }()
	wake, release, err := wakeOn(ctx)
	if err != nil {
		return err
	}
	defer release()
	for {
		// The read arms the next announcement for this open file (fs/kernfs/file.c, kernfs_generic_poll).
		value, err := readEvent(events, field)
		if err != nil || value == want {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("cgroup %s: waiting for %s=%t: %w", c.dir, field, want, context.Cause(ctx))
		}
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cgroup %s: poll: %w", c.dir, err)
		}
	}
}

func (c *Cgroup) event(field string) (bool, error) {
	f, err := os.Open(filepath.Join(c.dir, "cgroup.events"))
	if err != nil {
		return false, fmt.Errorf("cgroup: %w", err)
	}
	defer func() { _ = f.Close() }()
	return readEvent(f, field)
}

func readEvent(f *os.File, field string) (bool, error) {
	var buf [256]byte
	n, err := f.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("cgroup: %w", err)
	}
	for line := range strings.Lines(string(buf[:n])) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), field+" "); ok {
			return v == "1", nil
		}
	}
	return false, fmt.Errorf("%s has no field %q", f.Name(), field)
}

func (c *Cgroup) write(file, value string) error {
	path := filepath.Join(c.dir, file)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	_, err = f.WriteString(value)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("writing %q to %s: %w", value, path, err)
	}
	return nil
}
