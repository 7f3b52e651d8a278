//go:build linux

package files

import (
	"context"
	"fmt"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// A file of a cgroup is often one of the process's own cgroup (Go programs keep cpu.max open), which has another path on another
// host. Its blob names that cgroup, so that the restore can put its own in its place.
var kindProcFile = &Kind{
	Name: "file of /proc or /sys", Type: fdinfo.FdTypes_REG, Carried: true,
	Note: "by path, with its offset; a text that was read half-way may go on differently",
	match: func(d *description) bool {
		return (d.format() == unix.S_IFREG || d.format() == unix.S_IFDIR) && d.synthetic()
	},
	check: checkPath, dump: dumpSynthetic,
}

// synthetic tells whether the file's content is made by the kernel as it is read.
func (d *description) synthetic() bool {
	return d.magic() == unix.PROC_SUPER_MAGIC || d.magic() == unix.SYSFS_MAGIC || d.inCgroup()
}

func (d *description) inCgroup() bool {
	return d.magic() == unix.CGROUP2_SUPER_MAGIC || d.magic() == unix.CGROUP_SUPER_MAGIC
}

// A cgroup blob is the controllers of the hierarchy, joined by commas, a zero byte, and the path of the cgroup.
func cgroupBlob(id uint32) string { return fmt.Sprintf("cgroup-%d", id) }

func dumpSynthetic(ctx context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	e, err := dumpPath(ctx, r, d)
	if err != nil || !d.inCgroup() {
		return e, err
	}
	groups, err := procfs.Host.Cgroups(d.holders[0].proc.PID)
	if err != nil {
		return nil, fmt.Errorf("cgroups of process %d: %w", d.holders[0].proc.PID, err)
	}
	for _, g := range groups {
		if g.Path != "/" && strings.Contains(e.Reg.GetName()+"/", g.Path+"/") && (len(g.Controllers) == 0) == (d.magic() == unix.CGROUP2_SUPER_MAGIC) {
			r.blob(cgroupBlob(d.id), []byte(strings.Join(g.Controllers, ",")+"\x00"+g.Path))
			break
		}
	}
	return e, nil
}

// cgroupName is the path of a record, led through the cgroup in which the process is now.
func (r *Restorer) cgroupName(e *fdinfo.FileEntry) (string, error) {
	name := e.Reg.GetName()
	controllers, was, ok := strings.Cut(string(r.cp.Blobs[cgroupBlob(e.GetId())]), "\x00")
	if !ok {
		return name, nil
	}
	vpid := r.homes[e.GetId()].vpid
	pid, err := r.pid(vpid)
	if err != nil {
		return "", err
	}
	groups, err := procfs.Host.Cgroups(pid)
	if err != nil {
		return "", fmt.Errorf("cgroups of process %d: %w", vpid, err)
	}
	for _, g := range groups {
		if strings.Join(g.Controllers, ",") == controllers {
			return strings.Replace(name, was, strings.TrimSuffix(g.Path, "/"), 1), nil
		}
	}
	return "", fmt.Errorf("%s: this host has no cgroup hierarchy with the controllers %q", name, controllers)
}
