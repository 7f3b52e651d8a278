//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// eventfdSemaphore is EFD_SEMAPHORE. It is recorded among the flags, where its bit has no other meaning
// (it is that of O_WRONLY, and an eventfd is always open for both).
const eventfdSemaphore = 1

var kindEventfd = &Kind{
	Name: "eventfd", Type: fdinfo.FdTypes_EVENTFD, Carried: true,
	Note:  "with its count; a kernel before 6.5 does not tell whether it is a semaphore, and then it is refused",
	match: func(d *description) bool { return d.anon("[eventfd]") },
	check: func(_ context.Context, _ *Dumper, d *description) []problem {
		i, err := d.fdinfo()
		if err != nil {
			return []problem{{reason: err.Error()}}
		}
		if i.EventFD == nil || !i.EventFD.HasSemaphore {
			return []problem{{reason: "this kernel does not tell whether the eventfd is a semaphore", remedy: "Linux 6.5 or later is needed"}}
		}
		return nil
	},
	dump: func(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
		i, err := d.fdinfo()
		if err != nil {
			return nil, err
		}
		if i.EventFD == nil {
			return nil, fmt.Errorf("its fdinfo tells no count: %w", ErrNotCarried)
		}
		owner, err := r.fown(d)
		if err != nil {
			return nil, err
		}
		flags := uint32(d.flags) &^ unix.O_ACCMODE
		if i.EventFD.Semaphore {
			flags |= eventfdSemaphore
		}
		return &fdinfo.FileEntry{Efd: &eventfd.EventfdFileEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(flags), Fown: owner,
			Counter: proto.Uint64(i.EventFD.Count)}}, nil
	},
	open: func(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|int(e.Efd.GetFlags()&eventfdSemaphore))
		if err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
		r.put(e.GetId(), fd)
		n := e.Efd.GetCounter()
		if n == math.MaxUint64 {
			return fmt.Errorf("a count of %d is impossible", n)
		}
		if n == 0 {
			return nil
		}
		if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, n)); err != nil {
			return fmt.Errorf("set the count to %d: %w", n, err)
		}
		return nil
	},
}
