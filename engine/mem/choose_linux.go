package mem

import (
	"context"
	"errors"

	"migrate/engine/kernel"
	"migrate/engine/remote"
)

// NewTracker returns the best Tracker that this kernel has for the process of c: by userfaultfd, else by soft-dirty
// bits, for which stopped runs fn while no thread of the process runs, else by comparing hashes.
func NewTracker(c remote.Caller, stopped func(ctx context.Context, fn func() error) error) Tracker {
	switch {
	case errors.Join(kernel.UserfaultWP.Probe(), kernel.PagemapScan.Probe()) == nil:
		return NewUserfault(c)
	case kernel.SoftDirty.Have():
		return NewSoftDirty(c.PID(), stopped)
	}
	return NewHashes(c.PID())
}
