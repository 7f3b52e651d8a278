//go:build linux

package task

import (
	"errors"

	"golang.org/x/sys/unix"

	"migrate/arch"
)

// What a process has decided for the mappings that it is yet to make, or can make. What its mappings have is with them, in
// package mem, which also restores both (mem.RestoreMarks).

// dumpLockFuture finds out whether new mappings are locked (mlockall(2) with MCL_FUTURE), which nothing in /proc tells: it makes
// one, which the kernel refuses to empty if it is locked, and which has a page if it was not locked on fault only.
func dumpLockFuture(d *dumper) error {
	page := d.batch.Try(unix.SYS_MMAP, 0, arch.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
	resident := d.batch.Buffer(8)
	d.batch.Try(unix.SYS_MINCORE, page, arch.PageSize, resident)
	empty := d.batch.Try(unix.SYS_MADVISE, page, arch.PageSize, unix.MADV_DONTNEED)
	d.batch.Try(unix.SYS_MUNMAP, page, arch.PageSize)
	d.then(func() error {
		switch {
		case errors.Is(page.Err(), unix.EAGAIN): // locked memory is at its limit
			d.proc.Extra.LockFuture = unix.MCL_FUTURE
		case page.Err() != nil || empty.Err() == nil:
		case resident.Bytes()[0]&1 != 0:
			d.proc.Extra.LockFuture = unix.MCL_FUTURE
		default:
			d.proc.Extra.LockFuture = unix.MCL_FUTURE | unix.MCL_ONFAULT
		}
		return nil
	})
	return nil
}

const (
	protectionKeys = 16 // arch_max_pkey(), the most that any processor has
	// beyond is an address behind all mappings of a process.
	beyond = 1<<64 - 1<<20
)

// dumpKeys finds out which protection keys are allocated (pkey_alloc(2)). The kernel looks at the key (EINVAL) before it looks
// for the mapping that is to get it (ENOMEM), see do_mprotect_pkey in mm/mprotect.c.
func dumpKeys(d *dumper) error {
	for key := 1; key < protectionKeys; key++ {
		r := d.batch.Try(unix.SYS_PKEY_MPROTECT, uint64(beyond), arch.PageSize, unix.PROT_READ, key)
		d.then(func() error {
			if errors.Is(r.Err(), unix.ENOMEM) {
				d.proc.Extra.Pkeys |= 1 << key
			}
			return nil
		})
	}
	return nil
}
