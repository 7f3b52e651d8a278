// Package kerneltest decides whether a test that needs a privilege or a kernel feature runs, is skipped, or fails. On a
// developer's machine it is skipped; in CI a skip would hide that something is no longer tested, so there it fails.
package kerneltest

import (
	"os"
	"testing"

	"migrate/engine/kernel"
)

// Root demands that the test runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Lack(t, "it must run as root")
	}
}

// Lack skips the test, or fails it in CI, because of what is missing.
func Lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("a test cannot be skipped in CI: %s", what)
	}
	t.Skip(what)
}

// Feature demands a feature of the kernel.
func Feature(t testing.TB, f *kernel.Feature) {
	t.Helper()
	if err := f.Probe(); err != nil {
		Lack(t, err.Error())
	}
}
