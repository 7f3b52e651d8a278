package mem

import (
	"context"
	"fmt"

	"migrate/engine/images/imagespb"
	"migrate/engine/remote"
)

func describeSegment(r *imagespb.Object, inode uint64) error {
	return fmt.Errorf("%s: %w", r.GetPath(), ErrNoObject)
}

func newSegment(_ context.Context, _ remote.Caller, r *imagespb.Object) (*Object, error) {
	return nil, fmt.Errorf("object %d: %w", r.GetId(), ErrNoObject)
}
