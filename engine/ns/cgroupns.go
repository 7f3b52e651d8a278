//go:build linux

package ns

import (
	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// dumpCgroupNS makes sure that the root of the tree is at the root of its cgroup namespace: that is where it will be in a new one.
func dumpCgroupNS(d *dumper) error {
	return Inside(d.root.PID, unix.CLONE_NEWCGROUP, func() error {
		groups, err := procfs.Host.Cgroups(d.root.PID)
		if err != nil {
			return err
		}
		for _, g := range groups {
			if g.Path != "/" {
				d.refuse("the process", "it is in "+g.Path+" of its cgroup namespace and not at its root", "")
				return nil
			}
		}
		return nil
	})
}
