// Package ptrace is the only caller of ptrace(2) and of waitid(2) for tracees.
//
// The kernel ties a tracee to the OS thread that attached it, so a Tracer owns one goroutine that is locked to a
// thread, and every request is a function run there. None of them blocks: to wait for a stop, the goroutine that
// asked polls once on the tracer's thread and then sleeps until the next SIGCHLD, which the kernel sends for every
// stop and every end of a tracee, or until its context ends. Several goroutines may wait at a time, for different
// threads.
//
// All tracees are seized (PTRACE_SEIZE), never attached, so that group stops stay visible. When the tracer's process
// dies, the kernel detaches its tracees and they run on with the registers that they have; with PTRACE_O_EXITKILL it
// kills them. Close does the same.
//
// The Tracer takes no locks but one that guards the wake-up channel. The death of a tracee is ErrGone.
package ptrace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/thread"
)

// Errors that callers match with errors.Is.
var (
	// ErrGone means that the tracee ended.
	ErrGone = errors.New("the process ended")
	// ErrClosed means that the tracer was closed.
	ErrClosed = errors.New("ptrace: the tracer is closed")
	// ErrNotTraced means that the thread was never seized by this tracer, or was detached.
	ErrNotTraced = errors.New("not traced by this tracer")
	// ErrRunning means that a call needs a stopped thread and got a running one.
	ErrRunning = errors.New("the thread is running")
	// ErrTraced means that another program traces the thread, such as a debugger.
	ErrTraced = errors.New("another program traces it")
)

// Tracer traces threads of any number of processes from one OS thread.
type Tracer struct {
	requests chan func()
	quit     chan struct{}
	ended    chan struct{} // closed when no request is taken any more
	end      *thread.End   // of the thread
	closing  sync.Once
	closeErr error

	mu      sync.Mutex
	changed chan struct{} // closed at the next SIGCHLD

	// Owned by the tracer's thread.
	tid     int
	tracees map[int]*tracee
}

// tracee is what the tracer knows of one thread.
type tracee struct {
	stopped bool
	stop    Stop // the last one, if stopped or ended
	ended   bool // reaped; the entry stays for whoever asks next
	options int
	// rewound: the stop made a call fail with EINTR, which has been set to be made again (rewind.go).
	rewound bool
	// unwanted: nobody waits for it any more; it is let go at its next stop.
	unwanted bool
}

// New starts a tracer. It ends with Close.
func New() *Tracer {
	t := &Tracer{
		requests: make(chan func()),
		quit:     make(chan struct{}),
		ended:    make(chan struct{}),
		changed:  make(chan struct{}),
		tracees:  map[int]*tracee{},
	}
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	begun := make(chan struct{})
	thread.Go(func() bool {
		t.end = thread.OfThisThread()
		close(begun)
		t.serve()
		return false // the thread ends, and with it the kernel lets go of all tracees
	})
	go t.notify(sigchld)
	<-begun
	return t
}

// serve runs requests on its thread.
func (t *Tracer) serve() {
	defer close(t.ended)
	t.tid = unix.Gettid()
	// While this thread waits for a processor, stopped programs stand still, and a call that a stop has made fail
	// waits to be mended (rewind.go). Without the right to it, it is as it is.
	_ = unix.Setpriority(unix.PRIO_PROCESS, t.tid, -20)
	for {
		select {
		case f := <-t.requests:
			f()
		case <-t.quit:
			return
		}
	}
}

// reapDelay is how long after a SIGCHLD the dead are looked for. Looking takes a system call for each tracee, and
// signals come in swarms, one for each thread that stops.
const reapDelay = 20 * time.Millisecond

// notify wakes whoever waits at each SIGCHLD, and has the dead reaped some time after.
func (t *Tracer) notify(sigchld chan os.Signal) {
	defer signal.Stop(sigchld)
	var reap <-chan time.Time // nil: nothing has happened since the last time
	for {
		select {
		case <-sigchld:
			t.mu.Lock()
			close(t.changed)
			t.changed = make(chan struct{})
			t.mu.Unlock()
			if reap == nil {
				reap = time.After(reapDelay)
			}
		case <-reap:
			reap = nil
			if err := t.do(context.Background(), func() error { t.reapDead(); return nil }); err != nil {
				return // closed
			}
		case <-t.quit:
			return
		}
	}
}

// Close ends the tracer, and returns when the kernel has let go of all tracees. Those that were not detached run on, or are killed if seized with PTRACE_O_EXITKILL.
func (t *Tracer) Close() error {
	t.closing.Do(func() {
		close(t.quit)
		<-t.ended
		t.closeErr = t.end.Await()
	})
	return t.closeErr
}

// onThread marks the contexts that OnThread hands out.
type onThread struct{}

// OnThread runs f on the tracer's own thread. Calls of this tracer that are made in f, in its goroutine, with the
// context that f gets, need no switch of threads, which is most of what they cost otherwise. While such a call waits
// for a stop, the requests of other goroutines are served. The context must not be used after f has returned, and f
// must not start processes: they would inherit the thread's priority.
func (t *Tracer) OnThread(ctx context.Context, f func(ctx context.Context) error) error {
	return t.do(ctx, func() error { return f(context.WithValue(ctx, onThread{}, t)) })
}

// do runs f on the tracer's thread and returns its error. Once begun, f is not interrupted: it must not block.
func (t *Tracer) do(ctx context.Context, f func() error) error {
	if ctx.Value(onThread{}) == t {
		return f()
	}
	var err error
	done := make(chan struct{})
	request := func() {
		defer close(done)
		err = f()
	}
	select {
	case t.requests <- request:
		<-done
		return err
	case <-t.quit:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("ptrace: %w", context.Cause(ctx))
	}
}

// await repeats f on the tracer's thread, each time after something has happened to a child, until f is done.
func (t *Tracer) await(ctx context.Context, what string, tid int, f func() (done bool, err error)) error {
	var others chan func() // requests to serve while this goroutine, which is the tracer's own, waits
	if ctx.Value(onThread{}) == t {
		others = t.requests
	}
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		var done bool
		err := t.do(ctx, func() (err error) { done, err = f(); return err })
		if done || err != nil {
			return err
		}
		for waiting := true; waiting; {
			select {
			case <-changed:
				waiting = false
			case request := <-others:
				request()
			case <-t.quit:
				return ErrClosed
			case <-ctx.Done():
				return fmt.Errorf("%s (thread %d): %w", what, tid, context.Cause(ctx))
			}
		}
	}
}

// find returns the tracee, on the tracer's thread.
func (t *Tracer) find(tid int) (*tracee, error) {
	switch te := t.tracees[tid]; {
	case te == nil:
	case te.ended:
		return te, fmt.Errorf("thread %d: %w", tid, ErrGone)
	default:
		return te, nil
	}
	return nil, fmt.Errorf("thread %d: %w", tid, ErrNotTraced)
}

// stoppedCall makes a ptrace call that needs a stopped tracee, on the tracer's thread, and explains its failure.
func (t *Tracer) stoppedCall(ctx context.Context, what string, tid int, f func() error) error {
	return t.do(ctx, func() error { return t.onStopped(what, tid, f) })
}

func (t *Tracer) onStopped(what string, tid int, f func() error) error {
	te, err := t.find(tid)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !te.stopped {
		return fmt.Errorf("%s of thread %d: %w", what, tid, ErrRunning)
	}
	return t.explain(what, tid, f())
}

// explain turns the errno of a ptrace call on a stopped tracee into an error of this package.
func (t *Tracer) explain(what string, tid int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH): // it was stopped, so only SIGKILL can have taken it out of that
		t.reap(tid, 0)
		return fmt.Errorf("%s of thread %d: %w", what, tid, ErrGone)
	}
	return fmt.Errorf("%s of thread %d: %w", what, tid, err)
}
