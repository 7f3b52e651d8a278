//go:build linux

package ns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/thread"
)

// Inside runs fn in the namespaces of a process that kinds names (CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWNS), on a
// thread that is never used again. With CLONE_NEWNS the thread's root and working directory are the root of that
// namespace. fn must not start goroutines that it expects to be there too.
func Inside(pid int, kinds int, fn func() error) error {
	return thread.ThrowAway(func() error { return enter(pid, kinds, fn) })
}

// InsideOf is Inside by a handle of one namespace.
func InsideOf(f *os.File, kind int, fn func() error) error {
	return thread.ThrowAway(func() error {
		if err := unix.Setns(int(f.Fd()), kind); err != nil {
			return fmt.Errorf("entering a namespace of kind 0x%x (setns): %w", kind, err)
		}
		return fn()
	})
}

func enter(pid int, kinds int, fn func() error) (err error) {
	pidfd, err := thread.Pidfd(pid)
	if err != nil {
		return fmt.Errorf("pid %d: pidfd_open: %w", pid, err)
	}
	defer func() { err = errors.Join(err, unix.Close(pidfd)) }()
	if kinds&unix.CLONE_NEWNS != 0 {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("giving a thread its own root: %w", err)
		}
	}
	if err := unix.Setns(pidfd, kinds); err != nil {
		return fmt.Errorf("entering namespaces 0x%x of pid %d (setns): %w", kinds, pid, err)
	}
	return fn()
}
