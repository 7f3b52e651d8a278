//go:build linux

package ns

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The id of a process that has ended is taken until its parent has reaped it.
func TestAwaitReaped(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := AwaitExit(t.Context(), fd); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := AwaitReaped(short, pid); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("before it was reaped: %v", err)
	}
	reaped := make(chan error, 1)
	go func() { reaped <- AwaitReaped(t.Context(), pid) }()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := <-reaped; err != nil {
		t.Fatal(err)
	}
	if err := AwaitReaped(t.Context(), pid); err != nil {
		t.Fatalf("afterwards: %v", err)
	}
}
