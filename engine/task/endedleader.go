//go:build linux

package task

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// A process goes on when its first thread ends before others (pthread_exit(3) in main): that thread stays as a zombie, by
// whose id the process is known. What such a process has is asked of another thread. It is built with a first thread like any
// other process, which ends when there is nothing left to do for it.

// AddEndedLeader puts the first thread of a process before the others of its image, if it has ended. What belongs to the process
// stands in the first thread's record. It is the last step of a dump.
func AddEndedLeader(fs procfs.FS, p *engine.Process, img *images.Process) error {
	if p.EndedLeader == 0 {
		return nil
	}
	st, err := fs.ThreadStat(p.EndedLeader, p.EndedLeader)
	if err != nil {
		return err
	}
	whole, err := fs.Stat(p.EndedLeader)
	if err != nil {
		return err
	}
	img.Extra.ExitSignal = int32(whole.ExitSignal)
	from := img.Threads[0]
	core, extra := proto.CloneOf(from.Core), proto.CloneOf(from.Extra)
	extra.Tid, extra.Ended = img.PID, true
	extra.Restart, extra.Dispatch, extra.ClearTid, extra.Mempolicy, extra.MempolicyNodes = nil, nil, 0, 0, nil
	core.Tc.ExitCode, core.Tc.Comm = proto.Uint32(uint32(st.ExitCode)), proto.String(st.Comm)
	tc := core.ThreadCore
	tc.Comm = proto.String(st.Comm)
	tc.FutexRla, tc.FutexRlaLen = proto.Uint64(0), proto.Uint32(0)
	tc.Sas, tc.PdeathSig, tc.SignalsP, tc.RseqEntry = nil, nil, nil, nil
	setClearTID(core, 0)
	from.Core.Tc = nil
	img.Threads = append([]*images.Thread{{TID: img.PID, Core: core, Extra: extra}}, img.Threads...)
	return nil
}

// EndedLeader reports whether the first thread of a process is to end before it runs.
func EndedLeader(img *images.Process) bool {
	l := img.Leader()
	return l != nil && l.Extra.GetEnded()
}

// EndLeader ends the first thread of a process that is being built. When it returns, the thread is a zombie: its children have
// been told (prctl(2), PR_SET_PDEATHSIG), unless they did not ask for it yet.
func EndLeader(ctx context.Context, fs procfs.FS, trap *remote.Trap, img *images.Process) error {
	status := unix.WaitStatus(img.Leader().GetCore().GetTc().GetExitCode())
	if err := trap.Exit(ctx, status.ExitStatus()); err != nil {
		return fmt.Errorf("ending the first thread: %w", err)
	}
	for { // nobody is told of the end of a first thread while others run
		st, err := fs.ThreadStat(trap.TID(), trap.TID())
		if err != nil {
			return fmt.Errorf("the first thread that has ended: %w", err)
		}
		if st.State == 'Z' {
			return nil
		}
		select {
		case <-time.After(50 * time.Microsecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
