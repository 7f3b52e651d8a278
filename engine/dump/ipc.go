//go:build linux

package dump

import (
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
)

// addAround adds what the surroundings of the tree have in their IPC namespace: its settings and, of a stopped tree, its objects.
func (s *Source) addAround(n *namespaces) error {
	in, header, found, err := s.around.Read(n.frozen)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return &ObstacleError{found}
	}
	if n.header == nil {
		n.images, n.header = &images.Namespaces{}, &imagespb.Namespaces{}
	}
	n.header.Around, n.images.IPC = header.Around, in.IPC
	o := *n.images
	n.outline.images, n.outline.header = &o, proto.CloneOf(n.header)
	n.images.Sems, n.images.Queues = in.Sems, in.Queues
	n.header.Semaphores, n.header.Queues = header.Semaphores, header.Queues
	return nil
}

// leavesIPC tells that the tree is in an IPC namespace which stays behind.
func (s *Source) leavesIPC() (bool, error) {
	if s.opts.SameHost || s.around != nil {
		return false, nil
	}
	own, err := s.own()
	return own&unix.CLONE_NEWIPC == 0, err
}

// checkIPC names what the tree has in the IPC namespace of its surroundings, or in one that it leaves, and would lose.
func (s *Source) checkIPC() ([]engine.Obstacle, error) {
	if s.around != nil {
		_, _, found, err := s.around.Read(true)
		return found, err
	}
	leaves, err := s.leavesIPC()
	if err != nil || !leaves {
		return nil, err
	}
	if s.target.Init == 0 {
		found, err := ns.ForeignIPC(s.procs[0].PID)
		if err != nil || len(found) > 0 {
			return found, err
		}
	}
	if s.asker == nil {
		return nil, nil
	}
	return s.undos.Check(s.asker, s.procs), nil
}
