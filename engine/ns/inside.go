//go:build linux

package ns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Inside runs fn in the namespaces of a process that kinds names (CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWNS), on a
// thread that is never used again. With CLONE_NEWNS the thread's root and working directory are the root of that
// namespace. fn must not start goroutines that it expects to be there too.
func Inside(pid int, kinds int, fn func() error) error {
	return throwAway(func() error { return enter(pid, kinds, fn) })
}

// throwAway runs fn on a thread that is never used again: it stays locked, so that it ends with its goroutine.
func throwAway(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		// The first thread stands for the whole program in /proc/PID, so it is never changed. While this goroutine holds it,
		// the next one gets another thread.
		err := throwAway(fn)
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func enter(pid int, kinds int, fn func() error) (err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
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
