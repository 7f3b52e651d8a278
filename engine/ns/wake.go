//go:build linux

package ns

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// wakeOn returns an eventfd that becomes readable when ctx ends, for use in a poll, and the function that gives it up.
func wakeOn(ctx context.Context) (fd int, release func(), err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, nil, fmt.Errorf("eventfd: %w", err)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // an eventfd at zero takes the write
	})
	return fd, func() {
		if !stop() {
			<-woken // the number must not be written to once it can belong to another file
		}
		_ = unix.Close(fd)
	}, nil
}
