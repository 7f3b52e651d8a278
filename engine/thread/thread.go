//go:build linux

// Package thread runs functions on threads whose kernel attributes (namespaces, root directory, tracees, scheduling) they
// may change.
//
// It never hands out the first thread of the process, for two reasons. /proc/PID stands for that thread, so its namespaces
// are what everyone, this program included, takes for those of the program (proc_pid(5)). And the runtime ends a thread
// whose goroutine returns locked, except for the first, which it parks for ever: what hangs on the thread would stay.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Go runs fn in a new goroutine on a thread that is not the first. When fn reports that the thread is as it was, others may
// use it again; else it ends with fn, and with it everything that the kernel ties to a thread. fn must not start goroutines
// that it expects to be on its thread.
func Go(fn func() (clean bool)) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			if fn() {
				runtime.UnlockOSThread()
			}
			return
		}
		// While this goroutine holds the first thread, the next one gets another.
		done := make(chan struct{})
		Go(func() bool {
			defer close(done)
			return fn()
		})
		<-done
		runtime.UnlockOSThread()
	}()
}

// ThrowAway runs fn on a thread that ends afterwards, and waits for it.
func ThrowAway(fn func() error) error {
	done := make(chan error, 1)
	Go(func() bool {
		done <- fn()
		return false
	})
	return <-done
}
