//go:build linux

package thread

import (
	"bytes"
	"fmt"
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
	for _, old := range []bool{false, true} { // kernels without pidfds of threads
		for range 50 {
			var end *End
			if err := ThrowAway(func() error { end = OfThisThread(); return nil }); err != nil {
				t.Fatal(err)
			}
			if old {
				if err := unix.Close(end.pidfd); err != nil {
					t.Fatal(err)
				}
				end.pidfd = -1
			}
			if err := end.Await(); err != nil {
				t.Fatal(err)
			}
			if st, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", end.tid)); err == nil && !bytes.Contains(st, []byte(") X ")) && !bytes.Contains(st, []byte(") Z ")) {
				t.Fatalf("thread %d is still there: %s", end.tid, st)
			}
		}
	}
}
