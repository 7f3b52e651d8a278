//go:build linux

package bpf

import (
	"testing"

	"migrate/engine/kernel/kerneltest"
)

func TestRequestsLoad(t *testing.T) {
	kerneltest.Root(t)
	if _, err := OpenRequests(); err != nil {
		t.Fatal(err)
	}
}
