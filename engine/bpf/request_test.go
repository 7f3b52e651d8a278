//go:build linux

package bpf

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

func TestRequestsLoad(t *testing.T) {
	kerneltest.Root(t)
	if _, err := OpenRequests(); err != nil {
		t.Fatal(err)
	}
}

// TestLoadWithSignals: signals break a load off, as those do by which the runtime stops goroutines.
func TestLoadWithSignals(t *testing.T) {
	kerneltest.Root(t)
	r, err := OpenRequests()
	if err != nil {
		t.Fatal(err)
	}
	program := r.program(&Request{Local: netip.MustParseAddrPort("127.0.0.1:1"), Remote: netip.MustParseAddrPort("127.0.0.1:2")})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid, done, ended := unix.Gettid(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(rand.IntN(int(time.Millisecond)))):
				_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
			}
		}
	}()
	defer func() { close(done); <-ended }()
	for i := range 1000 {
		fd, err := load(program, bpfProgTypeCls, 0, 0, 0, "migrate_request")
		if err == nil {
			err = unix.Close(fd)
		}
		if err != nil {
			t.Fatalf("load %d: %v", i, err)
		}
	}
}
