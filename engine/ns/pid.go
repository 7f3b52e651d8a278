//go:build linux

package ns

import (
	"os"

	"migrate/engine/procfs"
)

// dumpPID makes sure that the tree is all of its pid namespace: its root is the pid 1.
func dumpPID(d *dumper) error {
	st, err := d.fs.Status(d.root.PID)
	if err != nil {
		return err
	}
	own, err := procfs.Host.Status(os.Getpid())
	if err != nil {
		return err
	}
	switch depth := len(st.NSTGID) - len(own.NSTGID); {
	case d.root.VPID != 1:
		d.refuse("the process", "it is not the pid 1 of its pid namespace", "dump the whole container by its pid 1")
	case depth > 1:
		d.refuse("the process", "its pid namespace is not the next one below this program's", "dump it from the namespace that is around it")
	}
	return nil
}
