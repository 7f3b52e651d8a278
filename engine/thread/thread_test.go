//go:build linux

package thread

import (
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests start while the first thread is free for whoever comes: so it would be handed out, were it not avoided.
func TestNeverTheFirst(t *testing.T) {
	var wg sync.WaitGroup
	for range 2000 {
		wg.Add(1)
		Go(func() bool {
			defer wg.Done()
			if unix.Gettid() == unix.Getpid() {
				t.Error("on the first thread")
			}
			runtime.Gosched()
			return true
		})
	}
	wg.Wait()
}

func TestThrownAwayThreadEnds(t *testing.T) {
	for range 50 {
		var fd int
		err := ThrowAway(func() (err error) {
			fd, err = unix.PidfdOpen(unix.Gettid(), unix.PIDFD_THREAD)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(os.NewSyscallError("close", err))
		}
	}
}
