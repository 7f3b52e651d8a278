//go:build !linux

package procfs

import (
	"errors"
	"io"

	"github.com/moby/sys/mountinfo"
)

// ParseMounts needs Linux: the parser that it stands on builds only there.
func ParseMounts(io.Reader) ([]*mountinfo.Info, error) { return nil, errors.ErrUnsupported }
