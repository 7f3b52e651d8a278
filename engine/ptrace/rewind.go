package ptrace

import (
	"context"
	"os"
	"strconv"
	"strings"

	"migrate/arch"
)

// Some system calls, epoll_wait(2) the most common, fail with EINTR when their thread is merely stopped
// (arch.RestartSpurious). So that a program does not see that it was stopped, such a call is set to be made again as
// soon as the stop is noticed. Before the thread goes on, this is undone if a signal has come meanwhile whose handler
// would have ended the call. A tracer that dies between the stop and the first of these leaves the EINTR: some tens of
// microseconds that no order of ptrace calls avoids.
//
// A process that a signal has stopped is left alone: it gets its EINTR also without a tracer.

// rewind sets a call that the stop made fail to be made again, on the tracer's thread.
func (t *Tracer) rewind(te *tracee) {
	if te.stop.Kind != EventStop {
		return
	}
	regs, err := getRegs(te.stop.TID)
	if err != nil || regs.Restart() != arch.RestartSpurious {
		return // a thread that has been killed says so at the next call
	}
	again := regs.Restarted()
	te.rewound = setRegs(te.stop.TID, &again) == nil
}

// unwind undoes rewind if a handler is due, before the thread goes on.
func (t *Tracer) unwind(te *tracee) {
	if !te.rewound {
		return
	}
	te.rewound = false
	if !HandlerDue(te.stop.TID) {
		return
	}
	if regs, err := getRegs(te.stop.TID); err == nil {
		failed := regs.Unrestarted()
		_ = setRegs(te.stop.TID, &failed) // fails only for a thread that has been killed
	}
}

// HandlerDue reports whether a signal waits for a thread that it does not block and that has a handler.
func HandlerDue(tid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return false
	}
	sets := map[string]uint64{}
	for line := range strings.Lines(string(status)) {
		if key, value, ok := strings.Cut(line, ":"); ok && (strings.HasPrefix(key, "Sig") || key == "ShdPnd") {
			sets[key], _ = strconv.ParseUint(strings.TrimSpace(value), 16, 64) // SigQ is no set and not asked for
		}
	}
	return (sets["SigPnd"]|sets["ShdPnd"])&sets["SigCgt"]&^sets["SigBlk"] != 0
}

// Interrupted returns the registers of a stopped thread as they were before Stop set a call that it had made fail to be
// made again; for any other thread what GetRegs returns.
func (t *Tracer) Interrupted(ctx context.Context, tid int) (arch.Regs, error) {
	var r arch.Regs
	err := t.stoppedCall(ctx, "reading registers", tid, func() (err error) {
		if r, err = getRegs(tid); err == nil && t.tracees[tid].rewound {
			r = r.Unrestarted()
		}
		return err
	})
	return r, err
}
