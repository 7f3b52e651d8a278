//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/ns"
	"migrate/engine/remote"
)

// namespaces takes from the first layout which namespaces the tree has for itself.
func (s *Skeleton) namespaces(l *images.Layout) error {
	if s.own != nil || l.Namespaces == nil {
		return nil
	}
	if len(l.Tree) == 0 || l.Tree[0].GetPid() != 1 {
		return errors.New("layout: the tree has namespaces of its own and its root is not their pid 1")
	}
	s.own, s.ownHeader = l.Namespaces, l.Header.GetNamespaces()
	return nil
}

// bearRoot makes the root of a tree that has namespaces for itself: as their pid 1, and outside with the id that it had there, if
// that is free and this program's pid namespace is around the new one. The namespaces are filled before it has children.
func (s *Skeleton) bearRoot(ctx context.Context, tree []*pstree.PstreeEntry) error {
	if s.own == nil || s.procs[1] != nil {
		return nil
	}
	e := tree[0]
	trap, err := s.cloneRoot(ctx)
	if err != nil {
		return fmt.Errorf("the root of the tree: %w", err)
	}
	p := &process{trap: trap, threads: map[int]*remote.Trap{}, session: int(e.GetSid()), group: int(e.GetPgid()), Process: engine.Process{
		PID: trap.PID(), VPID: 1, VPGID: int(e.GetPgid()), VSID: int(e.GetSid()), Threads: []engine.Thread{{TID: trap.TID(), VTID: 1}}, Caller: trap,
	}}
	s.procs[1] = p
	s.order = append(s.order[:0], 1)
	if s.env.Cgroup != nil {
		if err := s.env.Cgroup.Add(p.PID); err != nil {
			return err
		}
	}
	var b remote.Batch
	b.Call(unix.SYS_CLOSE_RANGE, 0, uint32(1<<32-1), 0)
	switch {
	case e.GetSid() == 1:
		b.Call(unix.SYS_SETSID)
	case e.GetPgid() == 1:
		b.Call(unix.SYS_SETPGID, 0, 0)
	}
	if err := trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("the root of the tree: its descriptors, session and group: %w", err)
	}
	if err := ns.Restore(ctx, trap, s.own, s.ownHeader); err != nil {
		return fmt.Errorf("namespaces of the tree: %w", err)
	}
	return nil
}

func (s *Skeleton) cloneRoot(ctx context.Context) (*remote.Trap, error) {
	args := remote.CloneArgs{Flags: ns.Flags(s.ownHeader), IDs: []int{1}, ExitSignal: unix.SIGCHLD}
	if s.env.Sibling {
		args.Flags |= unix.CLONE_PARENT
		args.ExitSignal = 0 // the kernel takes that of the parent
		if outer := int(s.ownHeader.GetRootPid()); outer != 0 {
			same := args
			same.IDs = []int{1, outer}
			trap, err := s.parent.Clone(ctx, same)
			if !errors.Is(err, unix.EEXIST) {
				return trap, err
			}
		}
	}
	return s.parent.Clone(ctx, args)
}

// fromOutside makes a session or group that is the root's own one that its children have by birth, as the planner wants it.
func (s *Skeleton) fromOutside(id int) int {
	if s.own != nil && id == 1 {
		return 0
	}
	return id
}

// netNS is the network namespace of the tree; nil for that of this program. It is open until Close or Destroy.
func (s *Skeleton) netNS() (*os.File, error) {
	if s.ownHeader.GetOwn()&unix.CLONE_NEWNET == 0 {
		return s.env.NetNS, nil
	}
	if s.ownNet != nil {
		return s.ownNet, nil
	}
	var err error
	s.ownNet, err = ns.NetNS(s.procs[s.order[0]].PID)
	return s.ownNet, err
}
