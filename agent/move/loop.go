package move

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"migrate/coordinator/handoff"
)

// A stepper is one of the two machines of coordinator/handoff.
type stepper[S, E any] interface {
	comparable
	fmt.Stringer
	Step(E) (S, []handoff.Action, error)
}

// hands carries out the actions of one role. Its methods are called by the loop's goroutine only.
type hands[S, E any] interface {
	// do carries out one action; next is the state that the step leads to.
	do(ctx context.Context, a handoff.Action, next S) error
	// failed says what an action's error means: an event to feed, or that the action is to be tried again.
	failed(ev E, a handoff.Action, next S, err error) (fed E, verdict verdict)
	// settled is called after each step.
	settled(state S)
}

// verdict is what follows from the error of an action.
type verdict int

const (
	feed   verdict = iota // no further action; feed the event
	ignore                // go on with the next action
	again                 // repeat the action until it succeeds: nothing else may happen
	undo                  // the step has not happened: its first action failed, and nothing is durable
)

// loop owns the state of one machine.
type loop[S stepper[S, E], E any] struct {
	log   *slog.Logger
	hands hands[S, E]
	state S
	inbox chan message[E]
	fail  func(point string) // failpoints of tests; never nil
	ended chan struct{}
}

type message[E any] struct {
	ev   E
	from context.Context // once it has ended, the event is of a task that was superseded, and is dropped
	done chan error      // nil: nobody waits
}

// undoneError is why a step has not happened.
type undoneError struct{ err error }

func (e *undoneError) Error() string { return e.err.Error() }
func (e *undoneError) Unwrap() error { return e.err }

// errStopped is the answer to an event that came too late.
var errStopped = errors.New("the agent is shutting down")

func newLoop[S stepper[S, E], E any](log *slog.Logger, h hands[S, E], fail func(string)) *loop[S, E] {
	if fail == nil {
		fail = func(string) {}
	}
	return &loop[S, E]{log: log, hands: h, inbox: make(chan message[E], 16), fail: fail, ended: make(chan struct{})}
}

// run takes events until ctx ends.
func (l *loop[S, E]) run(ctx context.Context) {
	defer close(l.ended)
	for {
		select {
		case m := <-l.inbox:
			if m.from != nil && m.from.Err() != nil {
				continue
			}
			err := l.step(ctx, m.ev)
			if m.done != nil {
				m.done <- err
			}
		case <-ctx.Done():
			return
		}
	}
}

// call gives the loop an event and returns once its actions have been carried out. The error is a *handoff.Refusal
// when the machine did not take it, or that of the action that failed.
func (l *loop[S, E]) call(ctx context.Context, ev E) error {
	m := message[E]{ev: ev, done: make(chan error, 1)}
	select {
	case l.inbox <- m:
	case <-l.ended:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-m.done:
		return err
	case <-l.ended:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// post gives the loop an event without waiting for what comes of it. An event of a task whose context ends before the
// loop takes it is dropped.
func (l *loop[S, E]) post(ctx context.Context, ev E) {
	select {
	case l.inbox <- message[E]{ev: ev, from: ctx}:
	case <-l.ended:
	case <-ctx.Done():
	}
}

// maxFaults bounds the faults that follow from each other within one event.
const maxFaults = 4

func (l *loop[S, E]) step(ctx context.Context, ev E) error {
	var first error
	for range maxFaults {
		before := l.state
		next, actions, err := l.state.Step(ev)
		if err != nil {
			l.log.Debug("refused", "event", fmt.Sprint(ev), "state", l.state.String(), "reason", err)
			return errors.Join(first, err)
		}
		l.state = next
		if next != before {
			l.log.Info("step", "event", fmt.Sprint(ev), "from", before.String(), "to", next.String())
		}
		fed, err := l.act(ctx, ev, actions, next)
		if u := (*undoneError)(nil); errors.As(err, &u) {
			l.state = before
			return u
		}
		l.hands.settled(l.state)
		if err == nil {
			return first
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil { // no fault: the loop ends, and the next start takes up what is on the disk
			return first
		}
		ev = fed
	}
	l.log.Error("each fault was followed by another: the last one is left out", "event", fmt.Sprint(ev), "state", l.state.String(), "error", first)
	return first
}

// act carries out the actions of a step. After an error the event that it returns has to be fed.
func (l *loop[S, E]) act(ctx context.Context, ev E, actions []handoff.Action, next S) (fed E, err error) {
	for _, a := range actions {
		point := a.String()
		l.fail(point + ".before")
		err := l.hands.do(ctx, a, next)
		for wait := 50 * time.Millisecond; err != nil; wait = min(2*wait, time.Second) {
			f, v := l.hands.failed(ev, a, next, err)
			l.log.Warn("action failed", "action", point, "state", next.String(), "error", err)
			if v == feed {
				return f, fmt.Errorf("%v: %w", a, err)
			}
			if v == undo {
				return f, &undoneError{err}
			}
			if v == ignore {
				break
			}
			if !pause(ctx, wait) {
				return f, errors.Join(err, context.Cause(ctx))
			}
			err = l.hands.do(ctx, a, next)
		}
		l.fail(point + ".after")
	}
	return fed, nil
}

// pause waits for d; it reports false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// A task is work beside a loop, of which there is one at a time. Only the loop's goroutine starts and stops it. Its
// context ends when it is stopped, and not when it has ended by itself: the events that it posted count until something
// else is started.
type task struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// start runs f, after the task before it has ended.
func (t *task) start(ctx context.Context, f func(ctx context.Context)) {
	t.stop(errSuperseded)
	ctx, cancel := context.WithCancelCause(ctx)
	t.cancel, t.done = cancel, make(chan struct{})
	done := t.done
	go func() {
		defer close(done)
		f(ctx)
	}()
}

var errSuperseded = errors.New("something else is to be done now")

// stop cancels the task and returns when it has ended.
func (t *task) stop(cause error) {
	if t.cancel == nil {
		return
	}
	t.cancel(cause)
	<-t.done
	t.cancel = nil
}

// wait returns when the task has ended by itself.
func (t *task) wait(ctx context.Context) error {
	if t.cancel == nil {
		return nil
	}
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// view is what people see of a migration on this side, and what goes into reports. It is shared between the loop, its
// tasks and the API.
type view struct {
	mu     sync.Mutex
	reason string // why the attempt or the migration ended
	frozen time.Duration
	down   time.Duration
	// Of a source's attempts.
	failures  int           // for reasons that need not pass
	wait      time.Duration // before the next one
	notBefore time.Time
}

func (v *view) set(f func(*view)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f(v)
}

func get[T any](v *view, f func(*view) T) T {
	v.mu.Lock()
	defer v.mu.Unlock()
	return f(v)
}
