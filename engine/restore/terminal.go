//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/files"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// A process has its controlling terminal by its birth, or as the leader of a session that takes one (TIOCSCTTY). So the skeleton
// makes a session's terminal when its leader has become one, before the members are born.

// wantTerminals notes the controlling terminals of a layout, and gives those leaders theirs that have taken one since they
// were built. Whoever was born meanwhile would have to be born again.
func (s *Skeleton) wantTerminals(ctx context.Context, layout *images.Layout) error {
	s.sessions = map[int]*imagespb.SessionTerminal{}
	for _, t := range layout.Header.GetTerminals() {
		s.sessions[int(t.GetSid())] = t
	}
	for _, p := range s.procs {
		want := s.sessions[p.VPID]
		if p.session != p.VPID || p.terminal == want.GetId() {
			continue
		}
		for _, o := range s.procs {
			if o != p && o.VSID == p.VPID || p.terminal != 0 {
				return fmt.Errorf("session %d: its controlling terminal changed since it was built: %w", p.VPID, ErrOrder)
			}
		}
		if err := s.takeTerminal(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// takeTerminal gives a new leader of a session its controlling terminal, if it has one.
func (s *Skeleton) takeTerminal(ctx context.Context, p *process) (err error) {
	t := s.sessions[p.VPID]
	if t == nil {
		return nil
	}
	master, slave, err := files.OpenTerminal(s.root(p.VPID), t)
	if err != nil {
		return fmt.Errorf("controlling terminal of session %d: %w", p.VPID, err)
	}
	if master != nil {
		s.terminals[t.GetId()] = master
	}
	defer func() { err = errors.Join(err, slave.Close()) }()
	if err := p.trap.Push(ctx, []remote.PushFile{{File: slave, FD: 0, CloseOnExec: true}}); err != nil {
		return fmt.Errorf("controlling terminal of session %d: %w", p.VPID, err)
	}
	var b remote.Batch
	b.Call(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	b.Call(unix.SYS_CLOSE, 0)
	if err := p.trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("controlling terminal of session %d (TIOCSCTTY): %w", p.VPID, err)
	}
	p.terminal = t.GetId()
	return nil
}

// leaveTerminal makes the process beside which the tree is born give up the terminal of whoever called this program: its children would
// have it too.
func (s *Skeleton) leaveTerminal(ctx context.Context) error {
	st, err := procfs.Host.Stat(s.env.Parent)
	if err != nil || st.TTY == 0 {
		return err
	}
	var b remote.Batch
	tty := b.Call(unix.SYS_OPENAT, unix.AT_FDCWD, b.String("/dev/tty"), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	b.Call(unix.SYS_IOCTL, tty, unix.TIOCNOTTY, 0)
	b.Call(unix.SYS_CLOSE, tty)
	if err := s.parent.Run(ctx, &b); err != nil {
		return fmt.Errorf("leaving the terminal of the caller: %w", err)
	}
	return nil
}

// closeTerminals gives up the masters that no Restorer has taken, which hangs their terminals up.
func (s *Skeleton) closeTerminals() error {
	var errs []error
	for id, f := range s.terminals {
		errs = append(errs, f.Close())
		delete(s.terminals, id)
	}
	return errors.Join(errs...)
}
