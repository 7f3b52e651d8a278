package sock

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/thread"
)

// A Place is where a thread should be while it makes sockets. The zero value is where this program is.
type Place struct {
	NetNS *os.File // network namespace
	Root  string   // root directory, such as /proc/PID/root; it may lie in another mount namespace
	Dir   string   // working directory inside Root, an absolute path as seen from there; "" for the root itself
}

// In runs fn at the place, on a thread of its own kind. fn must not start goroutines that it expects to be
// there too.
func In(p Place, fn func() error) error {
	if p.NetNS == nil && p.Root == "" {
		return fn()
	}
	done := make(chan error, 1)
	thread.Go(func() bool {
		back, err := at(p, fn)
		done <- err
		return back
	})
	return <-done
}

// at moves the current thread. It goes back afterwards if only the network namespace was changed; a thread that has a root
// of its own is given up.
func at(p Place, fn func() error) (back bool, err error) {
	if p.Root != "" {
		if err := enterRoot(p); err != nil {
			return false, err
		}
	}
	if p.NetNS == nil {
		return false, fn()
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil && p.Root == "" {
		return true, fmt.Errorf("open this thread's network namespace: %w", err)
	}
	if home >= 0 {
		defer func() { _ = unix.Close(home) }() // a namespace's handle: nothing is lost
	}
	if err := unix.Setns(int(p.NetNS.Fd()), unix.CLONE_NEWNET); err != nil {
		return p.Root == "", fmt.Errorf("enter the workload's network namespace: %w", err)
	}
	err = fn()
	return p.Root == "" && unix.Setns(home, unix.CLONE_NEWNET) == nil, err
}

func enterRoot(p Place) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("give a thread its own root: %w", err)
	}
	if err := unix.Chroot(p.Root); err != nil {
		return fmt.Errorf("enter root %s: %w", p.Root, err)
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter directory %s of the workload: %w", dir, err)
	}
	return nil
}
