package mem

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/remote"
)

// filler puts pages where a process that is being built has none yet. The kernel hands it a page that is neither cleared
// first nor faulted in, which is twice as fast as writing (UFFDIO_COPY, ioctl_userfaultfd(2)). A write by other means to
// what is registered and not yet filled fails instead of waiting for ever.
type filler struct{ fd *os.File }

// newFiller makes the process of c open a userfaultfd, and takes it.
func newFiller(ctx context.Context, c remote.Caller) (_ *filler, err error) {
	var b remote.Batch
	opened := b.Call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly)
	if err := c.Run(ctx, &b); err != nil {
		return nil, fmt.Errorf("userfaultfd(2): %w", err)
	}
	n, err := opened.Value()
	if err != nil {
		return nil, fmt.Errorf("userfaultfd(2): %w", err)
	}
	f, err := c.Pull(ctx, int(n))
	var after remote.Batch
	after.Call(unix.SYS_CLOSE, n)
	if err := errors.Join(err, c.Run(ctx, &after)); err != nil {
		return nil, err
	}
	if err := uffdAPI(int(f.Fd()), uffdSigbus); err != nil {
		return nil, errors.Join(fmt.Errorf("UFFDIO_API: %w", err), f.Close())
	}
	return &filler{f}, nil
}

// register takes over a range of private anonymous memory. Where that fails, pages are written as anywhere else.
func (f *filler) register(r Range) { _ = uffdRegister(int(f.fd.Fd()), r, uffdModeMissing) }

// fill puts pages at addr, up to the first place that has one or is not registered, and returns the number of bytes.
func (f *filler) fill(addr uint64, data []byte) int {
	done := 0
	for done < len(data) {
		n, err := uffdFill(int(f.fd.Fd()), addr+uint64(done), data[done:])
		done += n
		if err != nil && (n == 0 || !errors.Is(err, unix.EAGAIN)) {
			break
		}
	}
	return done
}

// Close ends all registrations.
func (f *filler) Close() error { return f.fd.Close() }
