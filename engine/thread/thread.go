//go:build linux

// Package thread runs functions on threads whose kernel attributes (namespaces, root directory, tracees, scheduling) they
// may change.
//
// It never hands out the first thread of the process, for two reasons. /proc/PID stands for that thread, so its namespaces
// are what everyone, this program included, takes for those of the program (proc_pid(5)). And the runtime ends a thread
// whose goroutine returns locked, except for the first, which it parks for ever: what hangs on the thread would stay.
package thread

import (
	"errors"
	"os"
	"runtime"
	"time"

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

// End is when the kernel has let go of all that hangs on a thread. A goroutine that returns on its thread is gone before
// the thread is.
type End struct {
	tid   int
	pidfd int // -1 before Linux 6.9, which has none of threads
}

// OfThisThread returns the End of the calling thread, which somebody else awaits.
func OfThisThread() *End {
	e := &End{tid: unix.Gettid()}
	var err error
	if e.pidfd, err = unix.PidfdOpen(e.tid, unix.PIDFD_THREAD); err != nil {
		e.pidfd = -1
	}
	return e
}

// Await returns when the thread has ended. It is called once, and only when the thread is to end.
func (e *End) Await() error {
	if e.pidfd < 0 {
		// Nothing tells; it takes some microseconds.
		for unix.Tgkill(unix.Getpid(), e.tid, 0) == nil {
			time.Sleep(100 * time.Microsecond)
		}
		return nil
	}
	defer func() { _ = unix.Close(e.pidfd) }() // a handle: nothing is lost
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(e.pidfd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll of a thread's pidfd", err)
		}
	}
}
