package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cgroup is a directory of the v2 hierarchy. All processes of a lab are in one, each host's in one below it: ending it
// ends them, however they were started and whoever their parents are.
type cgroup string

// cgroup2Mount returns where the v2 hierarchy is mounted: /sys/fs/cgroup, or .../unified beside v1 controllers.
func cgroup2Mount() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", fmt.Errorf("lab: reading mountinfo: %w", err)
	}
	if len(mounts) == 0 {
		return "", errors.New("lab: no cgroup v2 hierarchy is mounted; mount one, for example: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	return mounts[0].Mountpoint, nil
}

func (c cgroup) make() error {
	if err := os.MkdirAll(string(c), 0o755); err != nil {
		return fmt.Errorf("lab: making a cgroup: %w", err)
	}
	return nil
}

func (c cgroup) below(name string) cgroup { return cgroup(filepath.Join(string(c), name)) }

// end kills all that is in the cgroup or below it, waits until nothing is left, and removes it. A cgroup that does not
// exist is no error.
func (c cgroup) end(ctx context.Context) error {
	if _, err := os.Stat(string(c)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("lab: killing a cgroup (needs Linux 5.14): %w", err)
	}
	if err := c.awaitEmpty(ctx); err != nil {
		return err
	}
	return c.remove()
}

// awaitEmpty waits for "populated 0", which the kernel announces as POLLPRI (cgroup-v2.rst, "cgroup.events").
func (c cgroup) awaitEmpty(ctx context.Context) error {
	f, err := os.Open(filepath.Join(string(c), "cgroup.events"))
	if err != nil {
		return fmt.Errorf("lab: cgroup: %w", err)
	}
	defer func() { _ = f.Close() }()
	// The kernel limits announcements to one in 10 ms and may drop one (kernel/cgroup/cgroup.c, CGROUP_FILE_NOTIFY_MIN_INTV),
	// so the wait for one is bounded and the state is read anew.
	const wait = 20 // ms
	text := make([]byte, 256)
	for {
		n, err := f.ReadAt(text, 0)
		if n == 0 {
			return fmt.Errorf("lab: cgroup %s: %w", c, err)
		}
		if !containsLine(string(text[:n]), "populated 1") {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("lab: processes in %s do not end: %w", c, context.Cause(ctx))
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, wait); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lab: cgroup %s: poll: %w", c, err)
		}
	}
}

// remove deletes the cgroup and those below it, which must be empty.
func (c cgroup) remove() error {
	var dirs []string
	err := filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lab: removing a cgroup: %w", err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("lab: removing the cgroup %s: %w", dirs[i], err)
		}
	}
	return nil
}
