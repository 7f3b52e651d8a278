//go:build linux

package thread

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Pidfd opens a pidfd of a process. The id may be that of a thread of one whose leader has ended: the pidfd is then of that
// thread (PIDFD_THREAD, Linux 6.9), by which the process's descriptors and namespaces are reached as well.
func Pidfd(id int) (int, error) {
	fd, err := unix.PidfdOpen(id, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return unix.PidfdOpen(id, unix.PIDFD_THREAD)
	}
	return fd, err
}
