//go:build linux

package ns

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// openQueue is mq_open(3) for a new queue.
func openQueue(name *byte) (int, error) {
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600, 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
