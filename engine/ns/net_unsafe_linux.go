package ns

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctlIfreq makes a call of netdevice(7).
func ioctlIfreq(fd int, request uintptr, req *[ifreqSize]byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(req))); errno != 0 {
		return errno
	}
	return nil
}
