//go:build linux

package dump

import (
	"context"
	"errors"
	"os"

	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// borrower is a Caller that borrows its thread when it is called: until giveBack or, if brief, for each batch alone. Between
// batches a brief one leaves the thread ptrace-stopped, so that the tracer can ask about it.
type borrower struct {
	tracer   *ptrace.Tracer
	pid, tid int
	brief    bool
	session  *remote.Session
}

var _ remote.Caller = (*borrower)(nil)

func (b *borrower) open(ctx context.Context) (err error) {
	if b.session == nil {
		b.session, err = remote.Open(ctx, b.tracer, b.tid, remote.Options{})
	}
	return err
}

// Run implements remote.Caller.
func (b *borrower) Run(ctx context.Context, batch *remote.Batch) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	err := b.session.Run(ctx, batch)
	if b.brief {
		err = errors.Join(err, b.giveBack())
	}
	return err
}

// Pull implements remote.Caller.
func (b *borrower) Pull(ctx context.Context, fd int) (*os.File, error) {
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	return b.session.Pull(ctx, fd)
}

// Push implements remote.Caller.
func (b *borrower) Push(ctx context.Context, files []remote.PushFile) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	return b.session.Push(ctx, files)
}

// PID implements remote.Caller.
func (b *borrower) PID() int { return b.pid }

// TID implements remote.Caller.
func (b *borrower) TID() int { return b.tid }

// giveBack lets the process go on.
func (b *borrower) giveBack() error {
	if b.session == nil {
		return nil
	}
	err := b.session.Close()
	b.session = nil
	return err
}
