package ptrace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/arch"
)

// StopKind says why a tracee stopped (ptrace(2), "Stopped states").
type StopKind uint8

const (
	// EventStop: PTRACE_INTERRUPT took effect, or the thread is new and was attached automatically.
	EventStop StopKind = iota + 1
	// GroupStop: the whole process is stopped by Signal, one of SIGSTOP, SIGTSTP, SIGTTIN and SIGTTOU.
	GroupStop
	// SignalStop: Signal is about to be delivered; it is, if it is given to Cont.
	SignalStop
	// SyscallStop: the thread enters or leaves a system call, after Syscall.
	SyscallStop
	// TaskStop: one of the PTRACE_EVENT stops that options ask for; Event says which.
	TaskStop
	// Exited: the thread ended. Status is as wait4(2) gives it. The thread is no longer traced.
	Exited
)

func (k StopKind) String() string {
	names := [...]string{"none", "event stop", "group stop", "signal", "system call", "task event", "exited"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Stop is one stop of a tracee.
type Stop struct {
	TID    int
	Kind   StopKind
	Signal unix.Signal     // of GroupStop, SignalStop
	Event  int             // of TaskStop: unix.PTRACE_EVENT_*
	Status unix.WaitStatus // of Exited
	// Held is the signal by which the whole process was stopped when the thread was seen to stop, or 0. Detached,
	// the thread goes back into that group stop by itself.
	Held unix.Signal
}

func (s Stop) String() string {
	switch s.Kind {
	case GroupStop, SignalStop:
		return fmt.Sprintf("%v %v", s.Kind, s.Signal)
	case TaskStop:
		return fmt.Sprintf("%v %d", s.Kind, s.Event)
	}
	return s.Kind.String()
}

// decode reads the si_status of a stopped tracee, which is the status word of wait4(2) shifted down by eight.
func decode(tid int, status int) Stop {
	sig, event := unix.Signal(status&0xff), status>>8
	s := Stop{TID: tid, Signal: sig, Event: event}
	switch {
	case event == unix.PTRACE_EVENT_STOP && sig == unix.SIGTRAP:
		s.Kind, s.Signal, s.Event = EventStop, 0, 0
	case event == unix.PTRACE_EVENT_STOP:
		s.Kind, s.Held, s.Event = GroupStop, sig, 0
	case event != 0:
		s.Kind, s.Signal = TaskStop, 0
	case sig == unix.SIGTRAP|0x80:
		s.Kind, s.Signal = SyscallStop, 0
	default:
		s.Kind = SignalStop
	}
	return s
}

// poll asks once whether tid has stopped or ended, on the tracer's thread. For a stopped thread it returns the
// stop that is already known.
func (t *Tracer) poll(tid int) (stop Stop, done bool, err error) {
	te, err := t.find(tid)
	switch {
	case te != nil && (te.stopped || te.ended):
		return te.stop, true, nil
	case err != nil:
		return Stop{}, false, err
	}
	if stop, done := t.takeStop(tid, te); done {
		return stop, true, nil
	}
	status, gone, err := ended(tid)
	if gone {
		return t.reap(tid, status), true, nil
	}
	if err != nil {
		return Stop{}, false, err
	}
	stop, done = t.takeStop(tid, te) // it may have stopped between the two questions
	return stop, done, nil
}

// takeStop takes the stop of a running tracee, if there is one.
func (t *Tracer) takeStop(tid int, te *tracee) (Stop, bool) {
	info, err := waitid(tid, unix.WSTOPPED|unix.WNOHANG|unix.WALL)
	if err != nil || info.pid == 0 {
		return Stop{}, false // ended finds out what is wrong
	}
	te.stopped, te.stop = true, decode(tid, info.status)
	t.rewind(te)
	t.adopt(te)
	return te.stop, true
}

// adopt notes a new task that the kernel has attached on its own.
func (t *Tracer) adopt(parent *tracee) {
	s := parent.stop
	if s.Kind != TaskStop {
		return
	}
	switch s.Event {
	case unix.PTRACE_EVENT_CLONE, unix.PTRACE_EVENT_FORK, unix.PTRACE_EVENT_VFORK:
		msg, err := eventMsg(s.TID)
		if old := t.tracees[int(msg)]; err == nil && (old == nil || old.ended) {
			t.tracees[int(msg)] = &tracee{options: parent.options}
		}
	}
}

// reap notes that a tracee ended. Its zombie is taken away unless it is a child of this process, whose end belongs
// to whoever started it. The zombies of other threads have to be taken, or their process never ends for its parent.
func (t *Tracer) reap(tid int, status unix.WaitStatus) Stop {
	te := t.tracees[tid]
	if te == nil {
		te = &tracee{}
		t.tracees[tid] = te
	}
	if !te.ended {
		*te = tracee{ended: true, stop: Stop{TID: tid, Kind: Exited, Status: status}}
		if !childOfOurs(tid) {
			_, _ = waitid(tid, unix.WEXITED|unix.WNOHANG|unix.WALL) // nothing to do if it is gone already
		}
	}
	return te.stop
}

// ended asks whether tid has ended. It is not reaped by that. The kernel shows a stop of a tracee to every waitid(2),
// whatever its options (kernel/exit.c, wait_task_stopped); that is no end.
func ended(tid int) (status unix.WaitStatus, gone bool, err error) {
	info, err := waitid(tid, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL)
	if errors.Is(err, unix.ECHILD) { // another waiter of this process has taken the end already
		return 0, true, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("waitid(%d): %w", tid, err)
	}
	return info.waitStatus(), info.isEnd(), nil
}

// reapDead reaps what has ended of this tracer's tracees, whether or not somebody waits for it.
func (t *Tracer) reapDead() {
	for tid, te := range t.tracees {
		if te.ended {
			continue
		}
		if status, gone, err := ended(tid); err == nil && gone {
			t.reap(tid, status)
			continue
		}
		if te.unwanted && !te.stopped {
			t.takeStop(tid, te)
		}
		if te.unwanted && te.stopped {
			_ = t.detachStopped(tid, 0) // it has ended
		}
	}
}

func childOfOurs(tid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return false
	}
	tgid, ppid := 0, 0
	for line := range strings.Lines(string(status)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			switch key {
			case "Tgid":
				tgid, _ = strconv.Atoi(strings.TrimSpace(value))
			case "PPid":
				ppid, _ = strconv.Atoi(strings.TrimSpace(value))
			}
		}
	}
	return tgid == tid && ppid == os.Getpid()
}

// Wait waits until tid stops or ends. For a thread that is stopped it returns at once with its last stop.
func (t *Tracer) Wait(ctx context.Context, tid int) (Stop, error) {
	var stop Stop
	err := t.await(ctx, "waiting for a stop", tid, func() (done bool, err error) {
		stop, done, err = t.poll(tid)
		return done, err
	})
	return stop, err
}

// Interrupt asks a running thread to stop. A thread that is stopped already will stop again when it is resumed.
func (t *Tracer) Interrupt(ctx context.Context, tid int) error {
	return t.do(ctx, func() error {
		if _, err := t.find(tid); err != nil {
			return err
		}
		return t.explain("PTRACE_INTERRUPT", tid, unix.PtraceInterrupt(tid))
	})
}

// Stop stops a thread and returns the stop, an EventStop or a GroupStop. Signals that are about to be delivered
// are, and new tasks are left stopped where they were born. The error is ErrGone if the thread ends instead.
func (t *Tracer) Stop(ctx context.Context, tid int) (Stop, error) {
	first := true
	var stop Stop
	err := t.await(ctx, "stopping", tid, func() (bool, error) {
		if first {
			first = false
			te, err := t.find(tid)
			if err != nil {
				return false, err
			}
			if !te.stopped {
				if err := t.explain("PTRACE_INTERRUPT", tid, unix.PtraceInterrupt(tid)); err != nil {
					return false, err
				}
			}
		}
		var done bool
		var err error
		stop, done, err = t.settle(tid)
		return done, err
	})
	return stop, err
}

// settle polls a thread that has been asked to stop, and sends it on from every stop that is not a lasting one.
func (t *Tracer) settle(tid int) (Stop, bool, error) {
	for {
		stop, done, err := t.pollSpin(tid)
		if !done || err != nil {
			return stop, done, err
		}
		sig := unix.Signal(0)
		switch stop.Kind {
		case EventStop, GroupStop:
			return stop, true, nil
		case Exited:
			return stop, false, fmt.Errorf("stopping thread %d: %w", tid, ErrGone)
		case SignalStop:
			sig = stop.Signal
		}
		// Any stop uses up the pending interrupt (kernel/signal.c, ptrace_stop), so it is asked for again.
		if err := t.explain("PTRACE_INTERRUPT", tid, unix.PtraceInterrupt(tid)); err != nil {
			return stop, false, err
		}
		if err := t.resume(unix.PTRACE_CONT, tid, sig); err != nil {
			return stop, false, err
		}
	}
}

// A thread that is about to stop is polled this often before the tracer sleeps: a batch of system calls takes less time
// than two switches of threads. The first polls keep the processor, because on a busy machine it takes long to come
// back, and a call that the stop has made fail stands unmended meanwhile (rewind.go).
const (
	spins      = 64
	eagerSpins = 16
)

func (t *Tracer) pollSpin(tid int) (stop Stop, done bool, err error) {
	te := t.tracees[tid]
	for i := range spins {
		if te == nil || te.stopped || te.ended {
			break
		}
		if stop, done = t.takeStop(tid, te); done {
			return stop, true, nil
		}
		if i >= eagerSpins {
			schedYield()
		}
	}
	return t.poll(tid)
}

// resume lets a stopped thread go on, on the tracer's thread.
func (t *Tracer) resume(request, tid int, sig unix.Signal) error {
	return t.onStopped("resuming", tid, func() error {
		t.unwind(t.tracees[tid])
		if err := ptrace(request, tid, 0, uintptr(sig)); err != nil {
			return err
		}
		t.tracees[tid].stopped = false
		return nil
	})
}

// Cont lets a stopped thread run, delivering sig if it is not 0 and the thread is in a SignalStop.
func (t *Tracer) Cont(ctx context.Context, tid int, sig unix.Signal) error {
	return t.do(ctx, func() error { return t.resume(unix.PTRACE_CONT, tid, sig) })
}

// Listen leaves a thread in its group stop but lets it notice when that ends; only after a GroupStop.
func (t *Tracer) Listen(ctx context.Context, tid int) error {
	return t.do(ctx, func() error { return t.resume(unix.PTRACE_LISTEN, tid, 0) })
}

// How says how far Resume lets a thread go.
type How int

const (
	// Run lets it run until something stops it.
	Run How = unix.PTRACE_CONT
	// ToSyscall lets it run to the next entry into or exit from a system call. It needs PTRACE_O_TRACESYSGOOD.
	ToSyscall How = unix.PTRACE_SYSCALL
	// Step lets it run one instruction, which ends in a SignalStop with SIGTRAP.
	Step How = unix.PTRACE_SINGLESTEP
)

// Resume sets the registers of a stopped thread, unless regs is nil, lets it go on as how says with signal sig, and
// waits for its next stop. All of it takes one turn of the tracer's thread if the thread stops soon.
func (t *Tracer) Resume(ctx context.Context, tid int, regs *arch.Regs, how How, sig unix.Signal) (Stop, error) {
	var stop Stop
	first := true
	err := t.await(ctx, "waiting for a stop", tid, func() (done bool, err error) {
		if !first {
			stop, done, err = t.poll(tid)
			return done, err
		}
		first = false
		if regs != nil {
			if err := t.onStopped("setting registers", tid, func() error { return t.setRegs(tid, regs) }); err != nil {
				return false, err
			}
		}
		if err := t.resume(int(how), tid, sig); err != nil {
			return false, err
		}
		stop, done, err = t.pollSpin(tid)
		return done, err
	})
	return stop, err
}

// Settle brings a stopped thread into an EventStop or GroupStop without letting it execute an instruction. From there
// the kernel applies its rules for interrupted calls to whatever registers are set; from a system call's stop it
// does not.
func (t *Tracer) Settle(ctx context.Context, tid int) (Stop, error) {
	first := true
	var stop Stop
	err := t.await(ctx, "settling", tid, func() (bool, error) {
		if first {
			first = false
			request := func() error { return unix.PtraceInterrupt(tid) }
			if err := t.onStopped("PTRACE_INTERRUPT", tid, request); err != nil {
				return false, err
			}
			if err := t.resume(unix.PTRACE_CONT, tid, 0); err != nil {
				return false, err
			}
		}
		var done bool
		var err error
		stop, done, err = t.settle(tid)
		return done, err
	})
	return stop, err
}
