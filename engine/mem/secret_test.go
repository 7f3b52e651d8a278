//go:build linux

package mem

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/kernel/kerneltest"
)

// TestSecretHolesStay asks about secret memory that is much larger than this machine, and reads what is there: nothing else is made.
func TestSecretHolesStay(t *testing.T) {
	f, err := newSecret(&imagespb.Object{Size: 1 << 36})
	if err != nil {
		kerneltest.Lack(t, "memfd_secret(2): "+err.Error())
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	const second = 3<<30 + 5*PageSize
	for _, at := range []int64{0, second, second + PageSize} {
		m, err := unix.Mmap(int(f.Fd()), at, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		m[0] = 1
		if err := unix.Munmap(m); err != nil {
			t.Fatal(err)
		}
	}
	want := []Range{{0, PageSize}, {second, second + 2*PageSize}}
	for range 2 {
		got, err := populated(f, 1<<40)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, %v, want %v", got, err, want)
		}
	}
}
