package port

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/thread"
)

// ownNetns opens the network namespace of the calling thread.
func ownNetns() (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return f, nil
}

// inside runs fn on a thread that is in the network namespace ns, and waits for it. A thread that cannot be brought
// home ends with its goroutine.
func inside(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	thread.Go(func() bool {
		home, err := ownNetns()
		if err != nil {
			done <- err
			return true
		}
		defer home.Close() //nolint:errcheck // a reference only
		if err := setns(ns); err != nil {
			done <- err
			return true
		}
		err = fn()
		back := setns(home) == nil
		done <- err
		return back
	})
	return <-done
}

func setns(ns *os.File) error {
	rc, err := ns.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return err
	}
	if inner != nil {
		return fmt.Errorf("enter network namespace %s: %w", ns.Name(), inner)
	}
	return nil
}

// sysctl writes one value of a device's settings, in the calling thread's network namespace.
func sysctl(family, device, name, value string) error {
	path := "/proc/sys/net/" + family + "/conf/" + device + "/" + name
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		if os.IsNotExist(err) && family == "ipv6" {
			return nil // the kernel has no IPv6: nothing to set
		}
		return err
	}
	return nil
}
