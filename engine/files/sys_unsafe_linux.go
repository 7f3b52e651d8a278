package files

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Types of kcmp(2) (include/uapi/linux/kcmp.h).
const (
	kcmpFile     = 0
	kcmpFiles    = 2
	kcmpEpollTFD = 7
)

// kcmp compares kernel objects of two tasks: 0 equal, 1 and 2 less and greater, 3 neither.
func kcmp(pid1, pid2, typ int, idx1, idx2 uint64) (int, error) {
	r, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(typ), uintptr(idx1), uintptr(idx2), 0)
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}

// kcmpEpoll tells whether the n-th registration of the number tfd in the epoll set efd is of the description fd, all
// of this process.
func kcmpEpoll(self, fd, efd, tfd, n int) (bool, error) {
	slot := struct{ efd, tfd, toff uint32 }{uint32(efd), uint32(tfd), uint32(n)}
	r, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(self), uintptr(self), kcmpEpollTFD, uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
	if e != 0 {
		return false, e
	}
	return r == 0, nil
}

// epollParams is ioctl(EPIOCSPARAMS) or EPIOCGPARAMS with a struct epoll_params.
func epollParams(fd int, request uintptr, params [8]byte) ([8]byte, error) {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&params)))
	if e != 0 {
		return params, e
	}
	return params, nil
}

// ownerEx is struct f_owner_ex (fcntl(2)).
type ownerEx struct{ Type, PID int32 }

// getOwner is fcntl(F_GETOWN_EX).
func getOwner(fd int) (o ownerEx, err error) {
	_, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GETOWN_EX, uintptr(unsafe.Pointer(&o)))
	if e != 0 {
		return o, e
	}
	return o, nil
}

// getOwnerUIDs is fcntl(F_GETOWNER_UIDS), which needs CONFIG_CHECKPOINT_RESTORE: real and effective user of who set the owner.
func getOwnerUIDs(fd int) (ids [2]uint32, err error) {
	_, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), 17, uintptr(unsafe.Pointer(&ids)))
	if e != 0 {
		return ids, e
	}
	return ids, nil
}

// mqOpen is mq_open(2) of a queue that exists; its name has no slash.
func mqOpen(name string, flags int) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), uintptr(flags), 0, 0, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

// mqGetattr is mq_getattr(3): flags, size of the queue, size of a message, messages that wait.
func mqGetattr(fd int) (attr [8]int64, err error) {
	_, _, e := unix.Syscall(unix.SYS_MQ_GETSETATTR, uintptr(fd), 0, uintptr(unsafe.Pointer(&attr)))
	if e != 0 {
		return attr, e
	}
	return attr, nil
}
