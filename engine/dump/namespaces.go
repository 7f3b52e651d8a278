//go:build linux

package dump

import (
	"context"
	"errors"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/span"
)

// namespaces are those that the tree has for itself.
type namespaces struct {
	images *images.Namespaces
	header *imagespb.Namespaces
	frozen bool // they were read from the stopped tree
	// outline is the same without what a skeleton needs at its end only, so that a layout stays what it was.
	outline struct {
		images *images.Namespaces
		header *imagespb.Namespaces
	}
}

// own returns which namespaces the tree has for itself; none if they belong to its surroundings, which the destination makes:
// those of a workload whose pid 1 is not part of the tree.
func (s *Source) own() (int, error) {
	if s.target.Init != 0 {
		return 0, nil
	}
	own, err := ns.Own(s.fs, s.procs[0].PID)
	if err == nil && own&unix.CLONE_NEWPID != 0 && s.procs[0].VPID != 1 {
		own = 0
	}
	return own, err
}

func (s *Source) checkNamespaces(ctx context.Context) ([]engine.Obstacle, error) {
	own, err := s.own()
	if err != nil {
		return nil, err
	}
	if differ, err := s.immovable(); err != nil || len(differ) > 0 {
		return differ, err
	}
	all, err := ns.Check(ctx, s.fs, s.procs, own, s.files.NetSpaces())
	if err != nil {
		return nil, err
	}
	found, err := s.checkIPC()
	return append(all, found...), err
}

// immovable names the namespaces of a tree that a move does not carry.
func (s *Source) immovable() ([]engine.Obstacle, error) {
	if !s.isMoved() {
		return nil, nil
	}
	out, err := ns.Differ(s.fs, s.procs)
	if err != nil || s.target.Init == 0 {
		return out, err
	}
	left, err := ns.Left(s.fs, s.target.Init, s.procs[0])
	return append(out, left...), err
}

// isMoved tells that the tree is followed while it runs, from round to round.
func (s *Source) isMoved() bool { return s.opts.Cgroup != nil }

// describeNamespaces reads the namespaces: once while the tree runs, once when it has been stopped.
func (s *Source) describeNamespaces(ctx context.Context) (*namespaces, error) {
	if n := s.spaces; n != nil && (n.frozen || s.frozen == nil) {
		return n, nil
	}
	n := &namespaces{frozen: s.frozen != nil}
	own, err := s.own()
	if err != nil {
		return nil, err
	}
	differ, err := s.immovable() // seen by the plan, unless it is new
	if err != nil {
		return nil, err
	}
	if len(differ) > 0 {
		return nil, &ObstacleError{differ}
	}
	if n.images, n.header, err = ns.Dump(ctx, s.fs, s.procs, own, s.files.NetSpaces()); err != nil {
		return nil, err
	}
	if err := s.clockOffsets(n); err != nil {
		return nil, err
	}
	n.outline.images, n.outline.header = n.images, n.header
	if s.around != nil {
		if err := span.Do(ctx, "ipc namespace", func(context.Context) error { return s.addAround(n) }); err != nil {
			return nil, err
		}
	}
	s.spaces = n
	return n, nil
}

// clockOffsets notes what the tree's time namespace adds to the host's clocks. It matters only within one boot: elsewhere the
// clocks continue by what they showed (Header.Clocks).
func (s *Source) clockOffsets(n *namespaces) error {
	o, err := s.fs.ClockOffsets(s.procs[0].PID)
	if errors.Is(err, procfs.ErrGone) || err == nil && o == (procfs.ClockOffset{}) {
		return nil // a kernel without, or nothing to note
	}
	if err != nil {
		return err
	}
	if n.header == nil {
		n.images, n.header = &images.Namespaces{}, &imagespb.Namespaces{}
	}
	n.header.MonotonicOffset, n.header.BoottimeOffset = int64(o.Monotonic), int64(o.Boottime)
	return nil
}

// userNamespace holds the maps of the tree's own user namespace, once the namespaces have been described.
func (s *Source) userNamespace() *userns.UsernsEntry {
	if s.spaces == nil || s.spaces.images == nil {
		return nil
	}
	return s.spaces.images.User
}
