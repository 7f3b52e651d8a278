package remote

import (
	"context"
	"errors"
	"os"
	"strconv"

	"migrate/engine/ptrace"
)

// Errors that callers match with errors.Is.
var (
	// ErrNotRun marks a call of a batch that did not run because an earlier one failed.
	ErrNotRun = errors.New("not run, because an earlier call of the batch failed")
	// ErrGone means that the tracee ended.
	ErrGone = ptrace.ErrGone
)

// A Caller runs batches of system calls in one thread of a tracee. Its two kinds are the session on a living
// program, which survives the death of the tracer, and the driver of a skeleton that is being built.
type Caller interface {
	// Run executes the batch and reads it back. The error is that of the first call that failed and was not a
	// Try, ErrGone when the tracee ended, or the context's.
	Run(ctx context.Context, b *Batch) error
	// PID is the thread group of the tracee, in the pid namespace of this process.
	PID() int
	// TID is the thread that runs the batches, in the pid namespace of this process.
	TID() int
	// Pull returns a descriptor of this process for the tracee's descriptor fd (pidfd_getfd(2)).
	Pull(ctx context.Context, fd int) (*os.File, error)
	// Push gives the tracee the open files (SCM_RIGHTS) at the numbers given, closing what was there, with FD_CLOEXEC set as asked.
	Push(ctx context.Context, files []PushFile) error
}

// PushFile is one descriptor for Caller.Push.
type PushFile struct {
	File        *os.File
	FD          int // the number in the tracee
	CloseOnExec bool
}

func callName(nr uint64) string { return "nr " + strconv.FormatUint(nr, 10) }
