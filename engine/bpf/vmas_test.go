//go:build linux

package bpf

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

func TestVMAs(t *testing.T) {
	kerneltest.Root(t)
	v, err := OpenVMAs()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	b, err := unix.Mmap(-1, 0, 3*os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	flags := func() uint64 {
		list, err := v.Read(unix.Getpid(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(m VMA) bool { return m.Start <= addressOf(b) && addressOf(b) < m.End })
		if i < 0 {
			t.Fatalf("the mapping is not among %d", len(list))
		}
		return list[i].Flags
	}
	before := flags()
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		t.Fatal(err)
	}
	if after := flags(); after == before {
		t.Errorf("flags 0x%x before and after MADV_DONTFORK", after)
	}
}
