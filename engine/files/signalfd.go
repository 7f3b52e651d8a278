//go:build linux

package files

import (
	"context"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/signalfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A signalfd is its mask: what it reads are the pending signals of whoever reads it.
var kindSignalfd = &Kind{
	Name: "signalfd", Type: fdinfo.FdTypes_SIGNALFD, Carried: true, Note: "with its mask",
	match: func(d *description) bool { return d.anon("[signalfd]") },
	dump: func(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
		i, err := d.fdinfo()
		if err != nil {
			return nil, err
		}
		if i.SignalFD == nil {
			return nil, fmt.Errorf("its fdinfo tells no mask: %w", ErrNotCarried)
		}
		owner, err := r.fown(d)
		if err != nil {
			return nil, err
		}
		return &fdinfo.FileEntry{Sgfd: &signalfd.SignalfdEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(uint32(d.flags)), Fown: owner,
			Sigmask: proto.Uint64(uint64(*i.SignalFD))}}, nil
	},
	open: func(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
		var mask unix.Sigset_t
		mask.Val[0] = e.Sgfd.GetSigmask()
		fd, err := unix.Signalfd(-1, &mask, unix.SFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("signalfd: %w", err)
		}
		r.put(e.GetId(), fd)
		return nil
	},
}
