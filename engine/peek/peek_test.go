//go:build linux

package peek

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// TestOwnFile reads the struct file of a descriptor and compares it with what system calls say.
func TestOwnFile(t *testing.T) {
	kerneltest.Root(t)
	k, err := Open()
	if err != nil {
		kerneltest.Lack(t, "this kernel cannot be read: "+err.Error())
	}
	defer func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	v, err := k.File(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := v.Uint32("f_flags")
	if err != nil {
		t.Fatal(err)
	}
	want, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || int(flags)&^unix.O_CLOEXEC != want&^unix.O_CLOEXEC {
		t.Errorf("flags are 0%o by the kernel's memory, 0%o by F_GETFL (%v)", flags, want, err)
	}
	if _, err := k.Load("file", 4096); err == nil {
		t.Error("a bad address gives no error")
	}
	if _, err := v.Uint64("no_such_member"); err == nil {
		t.Error("a member that is not there gives no error")
	}
}
