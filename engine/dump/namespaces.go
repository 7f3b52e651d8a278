//go:build linux

package dump

import (
	"context"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
)

// namespaces are those that the tree has for itself.
type namespaces struct {
	images *images.Namespaces
	header *imagespb.Namespaces
	frozen bool // they were read from the stopped tree
}

// managed tells that the namespaces of the tree belong to its surroundings, which the destination makes: those of a workload
// whose pid 1 is not part of the tree.
func (s *Source) managed() bool {
	return s.target.Init != 0 || s.procs[0].VPID != 1
}

func (s *Source) checkNamespaces(ctx context.Context) ([]engine.Obstacle, error) {
	if s.managed() {
		return nil, nil
	}
	return ns.Check(ctx, s.fs, s.procs[0])
}

// describeNamespaces reads the namespaces: once while the tree runs, once when it has been stopped.
func (s *Source) describeNamespaces(ctx context.Context) (*namespaces, error) {
	if s.managed() {
		return &namespaces{}, nil
	}
	if n := s.spaces; n != nil && (n.frozen || s.frozen == nil) {
		return n, nil
	}
	img, header, err := ns.Dump(ctx, s.fs, s.procs[0])
	if err != nil {
		return nil, err
	}
	s.spaces = &namespaces{img, header, s.frozen != nil}
	return s.spaces, nil
}
