//go:build linux

package restore

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/remote"
)

// SetUpMounts makes the mount namespace of a new workload its own: mounts of the host still arrive (slave), its own do
// not leave, and /proc shows its own pid namespace. caller runs calls in the workload's pid 1.
func SetUpMounts(ctx context.Context, caller remote.Caller) error {
	var b remote.Batch
	b.Call(unix.SYS_MOUNT, b.String("none"), b.String("/"), 0, unix.MS_REC|unix.MS_SLAVE, 0)
	b.Call(unix.SYS_MOUNT, b.String("proc"), b.String("/proc"), b.String("proc"), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
	if err := caller.Run(ctx, &b); err != nil {
		return fmt.Errorf("setting up the mount namespace of the workload: %w", err)
	}
	return nil
}

// SetHostname gives the UTS namespace of a workload its name.
func SetHostname(ctx context.Context, caller remote.Caller, name string) error {
	var b remote.Batch
	b.Call(unix.SYS_SETHOSTNAME, b.String(name), len(name))
	if err := caller.Run(ctx, &b); err != nil {
		return fmt.Errorf("setting the host name of the workload to %q: %w", name, err)
	}
	return nil
}
