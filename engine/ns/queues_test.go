//go:build linux

package ns

import (
	"context"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/procfs"
)

// A POSIX message queue is refused by its name.
func TestPOSIXQueuesAreRefused(t *testing.T) {
	kerneltest.Root(t)
	init, err := StartInit(t.Context(), Spec{IPC: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = init.Kill(context.Background()); _ = init.Close() }()
	check := func() []engine.Obstacle {
		t.Helper()
		found, err := Check(t.Context(), procfs.Host, []*engine.Process{{PID: init.PID}}, unix.CLONE_NEWIPC, nil)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := check(); len(found) != 0 {
		t.Fatalf("without a queue: %v", found)
	}
	err = Inside(init.PID, unix.CLONE_NEWIPC, func() error {
		name, err := unix.BytePtrFromString("jobs")
		if err != nil {
			return err
		}
		fd, err := openQueue(name)
		if err != nil {
			return os.NewSyscallError("mq_open", err)
		}
		return unix.Close(fd)
	})
	if err != nil {
		t.Fatal(err)
	}
	if found := check(); len(found) != 1 || !strings.Contains(found[0].String(), "/jobs") {
		t.Fatalf("with a queue: %v", found)
	}
}
