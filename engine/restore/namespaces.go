//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/ns"
	"migrate/engine/remote"
	"migrate/engine/task"
)

// namespaces takes from the first layout which namespaces the tree has for itself.
func (s *Skeleton) namespaces(l *images.Layout) error {
	if s.own != nil || l.Namespaces == nil {
		return nil
	}
	header := l.Header.GetNamespaces()
	if len(l.Tree) == 0 || (header.GetOwn()&unix.CLONE_NEWPID != 0) != (l.Tree[0].GetPid() == 1) {
		return errors.New("layout: the tree has a pid namespace of its own and its root is not the pid 1, or the other way round")
	}
	s.own, s.ownHeader, s.spaces = l.Namespaces, header, ns.NewLive(l.Namespaces, header)
	if header.GetOwn() == 0 {
		return s.spaces.Base(s.parent.PID())
	}
	return nil
}

// aroundSettings gives the IPC namespace in the surroundings of the tree the settings of a layout, unless it has them.
func (s *Skeleton) aroundSettings(l *images.Layout) error {
	if l.Header.GetNamespaces().GetAround()&unix.CLONE_NEWIPC == 0 || proto.Equal(s.settings, l.Namespaces.IPC) {
		return nil
	}
	s.settings = l.Namespaces.IPC
	return ns.RestoreAroundSettings(s.parent.PID(), l.Namespaces.IPC)
}

// fillIPC gives the IPC namespace of the tree, or that in its surroundings, what is in it: a skeleton is made before that is known.
func (s *Skeleton) fillIPC(cp *images.Checkpoint) error {
	header := cp.Header.GetNamespaces()
	pid := 0
	switch {
	case header.GetAround()&unix.CLONE_NEWIPC != 0:
		in := cp.Namespaces
		if len(in.Sems) == 0 && len(in.Queues) == 0 && in.IPC.GetShmRmidForced() == 0 && proto.Equal(s.settings, in.IPC) {
			return nil // the skeleton has all of it
		}
		pid = s.parent.PID()
	case header.GetOwn()&unix.CLONE_NEWIPC != 0 && cp.Namespaces.IPC != nil:
		pid = s.procs[s.order[0]].PID
	default:
		return nil
	}
	return ns.RestoreIPC(pid, cp.Namespaces, header)
}

// isContainer tells that the root of the tree is the pid 1 of a pid namespace of its own.
func (s *Skeleton) isContainer() bool { return s.ownHeader.GetOwn()&unix.CLONE_NEWPID != 0 }

// has tells whether the tree has a kind of namespace (CLONE_NEW*) for itself.
func (s *Skeleton) has(kind uint64) bool { return s.ownHeader.GetOwn()&kind != 0 }

// bearRoot makes the root of a tree that has a pid namespace for itself: as its pid 1, and outside with the id that it had there, if
// that is free and this program's pid namespace is around the new one. The namespaces are filled before it has children.
func (s *Skeleton) bearRoot(ctx context.Context, tree []*pstree.PstreeEntry) error {
	if !s.isContainer() || s.procs[1] != nil {
		return nil
	}
	e := tree[0]
	trap, err := s.cloneRoot(ctx)
	if err != nil {
		return fmt.Errorf("the root of the tree: %w", err)
	}
	p := &process{trap: trap, threads: map[int]*remote.Trap{}, session: int(e.GetSid()), group: int(e.GetPgid()), Process: engine.Process{
		PID: trap.PID(), VPID: 1, VPGID: int(e.GetPgid()), VSID: int(e.GetSid()), Threads: []engine.Thread{{TID: trap.TID(), VTID: 1}}, Caller: trap, Shared: s.sharing[1],
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
	if err := s.fillNamespaces(ctx, trap); err != nil {
		return err
	}
	return s.enterNamespaces(ctx, p)
}

// fillNamespaces fills the namespaces into which the root was born.
func (s *Skeleton) fillNamespaces(ctx context.Context, root *remote.Trap) error {
	if err := s.spaces.Fill(ctx, root); err != nil {
		return fmt.Errorf("namespaces of the tree: %w", err)
	}
	return s.spaces.Base(root.PID())
}

// enterNamespaces puts a new process into its namespaces.
func (s *Skeleton) enterNamespaces(ctx context.Context, p *process) error {
	if s.spaces == nil {
		return nil
	}
	if err := s.spaces.Enter(ctx, p.trap, p.VPID); err != nil {
		return fmt.Errorf("namespaces of process %d: %w", p.VPID, err)
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

// plannedRoot stands for the id of a container's root in the plan of its tree, where 1 is whoever bears the roots. No process has it.
const plannedRoot = 1 << 23

// planned is an id of the tree as the planner knows it.
func (s *Skeleton) planned(id int) int {
	if s.isContainer() && id == 1 {
		return plannedRoot
	}
	return id
}

// unplanned is the inverse of planned.
func unplanned(steps []task.Step) {
	for i := range steps {
		st := &steps[i]
		for _, id := range []*int{&st.PID, &st.By, &st.PGID, &st.Parent} {
			if *id == plannedRoot {
				*id = 1
			}
		}
	}
}

// netNS is the network namespace of the tree; nil for that of this program. It is open until Close or Destroy.
func (s *Skeleton) netNS() (*os.File, error) {
	if !s.has(unix.CLONE_NEWNET) {
		return s.env.NetNS, nil
	}
	if s.ownNet != nil {
		return s.ownNet, nil
	}
	var err error
	s.ownNet, err = ns.NetNS(s.procs[s.order[0]].PID)
	return s.ownNet, err
}

// closeNamespaces lets go of what this program holds of the tree's namespaces.
func (s *Skeleton) closeNamespaces() error {
	var errs []error
	if s.ownNet != nil {
		errs = append(errs, s.ownNet.Close())
		s.ownNet = nil
	}
	if s.spaces != nil {
		errs = append(errs, s.spaces.Close())
	}
	return errors.Join(errs...)
}
