//go:build linux

package task

import (
	"encoding/binary"
	"errors"
	"fmt"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// dumpLimits asks from inside: prlimit(2) on another user's process needs CAP_SYS_RESOURCE.
func dumpLimits(d *dumper) error {
	var bufs []*remote.Data
	for n := range procfs.NumLimits {
		buf := d.batch.Buffer(16)
		d.batch.Call(unix.SYS_PRLIMIT64, 0, n, 0, buf)
		bufs = append(bufs, buf)
	}
	d.then(func() error {
		l := &criu_core.TaskRlimitsEntry{}
		for _, buf := range bufs {
			l.Rlimits = append(l.Rlimits, &rlimit.RlimitEntry{
				Cur: proto.Uint64(binary.LittleEndian.Uint64(buf.Bytes())), Max: proto.Uint64(binary.LittleEndian.Uint64(buf.Bytes()[8:])),
			})
		}
		d.thread.Core.Tc.Rlimits = l
		return nil
	})
	return nil
}

func restoreLimits(r *restorer) error {
	for n, l := range r.thread.Core.GetTc().GetRlimits().GetRlimits() {
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], l.GetCur())
		binary.LittleEndian.PutUint64(b[8:], l.GetMax())
		res := r.batch.Try(unix.SYS_PRLIMIT64, 0, n, r.batch.Bytes(b[:]), 0)
		r.then(func() error {
			err := res.Err()
			if errors.Is(err, unix.EPERM) {
				return fmt.Errorf("%q: soft %s, hard %s: this host lets nobody raise its hard limit (CAP_SYS_RESOURCE is missing, or fs.nr_open is lower); raise the agent's own limit: %w",
					procfs.LimitName(n), limitText(l.GetCur()), limitText(l.GetMax()), err)
			}
			if err != nil {
				return fmt.Errorf("%q: %w", procfs.LimitName(n), err)
			}
			return nil
		})
	}
	return nil
}

func limitText(v uint64) string {
	if v == procfs.Unlimited {
		return "unlimited"
	}
	return fmt.Sprint(v)
}
