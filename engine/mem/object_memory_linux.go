package mem

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// NewSharedMemory makes an object of shared anonymous memory at the destination. It is made as a mapping in a process that
// is being built, since that is the only way to one that is not called memfd, and reached through /proc/PID/map_files.
// Huge is the size of its pages, if they are of hugetlbfs.
func NewSharedMemory(ctx context.Context, c remote.Caller, size, huge uint64) (_ *os.File, err error) {
	var b remote.Batch
	at := b.Call(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|encodeHuge(huge), -1, 0)
	if err := c.Run(ctx, &b); err != nil {
		return nil, fmt.Errorf("shared memory of %d bytes: %w", size, err)
	}
	start, err := at.Value()
	if err != nil {
		return nil, err
	}
	defer func() {
		var b remote.Batch
		b.Call(unix.SYS_MUNMAP, start, size)
		err = errors.Join(err, c.Run(ctx, &b))
	}()
	end := (start + size + PageSize - 1) &^ (PageSize - 1)
	return os.OpenFile(procfs.Host.Path(c.PID(), "map_files", fmt.Sprintf("%x-%x", start, end)), os.O_RDWR, 0)
}

// newMemfd makes a memfd. It can be executed or not by its mode, which Settle sets like its seals.
func newMemfd(r *imagespb.Object) (*os.File, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING | unix.MFD_EXEC
	if r.GetHugePage() != 0 {
		flags |= unix.MFD_HUGETLB | (bits.Len64(r.GetHugePage())-1)<<mapHugeShift
	}
	fd, err := unix.MemfdCreate(r.GetPath(), flags)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 there is no MFD_EXEC, and all are
		fd, err = unix.MemfdCreate(r.GetPath(), flags&^unix.MFD_EXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create(%q): %w", r.GetPath(), err)
	}
	f := os.NewFile(uintptr(fd), memfdName+r.GetPath())
	if err := f.Truncate(int64(r.GetSize())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mapHugeShift is where flags of mmap(2), memfd_create(2) and shmget(2) hold the binary logarithm of the size of huge pages.
const mapHugeShift = 26
