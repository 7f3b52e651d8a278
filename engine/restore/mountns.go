//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/remote"
)

// SetUpMounts makes the mount namespace of a new workload its own: mounts of the host still arrive (slave), its own do
// not leave, /proc shows its own pid namespace, and /dev/pts has its own pseudoterminals, all of whose numbers are free. caller runs calls in the workload's pid 1.
func SetUpMounts(ctx context.Context, caller remote.Caller) error {
	var b remote.Batch
	b.Call(unix.SYS_MOUNT, b.String("none"), b.String("/"), 0, unix.MS_REC|unix.MS_SLAVE, 0)
	b.Call(unix.SYS_MOUNT, b.String("proc"), b.String("/proc"), b.String("proc"), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
	// A host without /dev/pts has no pseudoterminals to number. Group 5 is that of terminals (tty).
	b.Try(unix.SYS_MOUNT, b.String("devpts"), b.String("/dev/pts"), b.String("devpts"), unix.MS_NOSUID|unix.MS_NOEXEC, b.String("mode=620,ptmxmode=666,gid=5"))
	if err := caller.Run(ctx, &b); err != nil {
		return fmt.Errorf("setting up the mount namespace of the workload: %w", err)
	}
	return nil
}

// SetUpShm gives the mount namespace of a new workload a /dev/shm of its own, as large as a host's usually is (half of the memory), if
// there is such a directory. What is in it moves with the workload.
func SetUpShm(ctx context.Context, caller remote.Caller) error {
	var b remote.Batch
	mount := b.Try(unix.SYS_MOUNT, b.String("shm"), b.String(images.ShmDir), b.String("tmpfs"), unix.MS_NOSUID|unix.MS_NODEV, b.String("mode=1777"))
	err := caller.Run(ctx, &b)
	if e := mount.Err(); err == nil && !errors.Is(e, unix.ENOENT) {
		err = e
	}
	if err != nil {
		return fmt.Errorf("mounting %s of the workload: %w", images.ShmDir, err)
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
