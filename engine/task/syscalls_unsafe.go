//go:build linux

package task

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// getRobustList is get_robust_list(2): the head and the size of a thread's list of robust futexes.
func getRobustList(tid int) (head, size uint64, err error) {
	_, _, errno := unix.Syscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid), uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, 0, errno
	}
	return head, size, nil
}

// schedGetAffinity is sched_getaffinity(2); it returns the number of bytes of mask that were filled.
func schedGetAffinity(tid int, mask []byte) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_SCHED_GETAFFINITY, uintptr(tid), uintptr(len(mask)), uintptr(unsafe.Pointer(unsafe.SliceData(mask))))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// schedSetAffinity is sched_setaffinity(2).
func schedSetAffinity(tid int, mask []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_SCHED_SETAFFINITY, uintptr(tid), uintptr(len(mask)), uintptr(unsafe.Pointer(unsafe.SliceData(mask))))
	if errno != 0 {
		return errno
	}
	return nil
}

// restrictSelf puts the calling thread under Landlock, which forbids it to make symbolic links (landlock_restrict_self(2)). It needs CAP_SYS_ADMIN.
func restrictSelf() (err error) {
	handled := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM) // struct landlock_ruleset_attr, as of its first version
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&handled)), unsafe.Sizeof(handled), 0)
	if errno != 0 {
		return errno
	}
	defer func() { err = errors.Join(err, unix.Close(int(fd))) }()
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
