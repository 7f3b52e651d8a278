//go:build linux

package port_test

import (
	"os"
	"testing"

	"migrate/agent/port"
	"migrate/engine/kernel/kerneltest"
)

// TestOpenRefuses: what is no network namespace is refused, not taken for one.
func TestOpenRefuses(t *testing.T) {
	kerneltest.Root(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := port.Open(f); err == nil {
		t.Error("a device was taken for a network namespace")
	}
}
