package mem

import (
	"context"
	"errors"
	"fmt"
	"os"

	"migrate/engine/procfs"
)

// hashes tracks nothing: every populated page is read again in each round, and compared with what was sent. It is for
// kernels that have nothing better, for memory that devices write to, and for a program that is stopped anyway.
type hashes struct {
	pid  int
	file *os.File // /proc/PID/pagemap
}

// NewHashes returns a Tracker that needs nothing of the kernel and does not touch the program.
func NewHashes(pid int) Tracker { return &hashes{pid: pid} }

func (*hashes) Name() string { return "hashes" }

func (h *hashes) Start(context.Context) error {
	if err := h.Close(); err != nil {
		return err
	}
	f, err := procfs.Host.Open(h.pid, "pagemap")
	if err != nil {
		return err
	}
	h.file = f
	return nil
}

func (h *hashes) Close() error {
	if h.file == nil {
		return nil
	}
	err := h.file.Close()
	h.file = nil
	return err
}

func (h *hashes) Collect(ctx context.Context, areas []Area, _ *Digest) ([]Extent, error) {
	if h.file == nil {
		return nil, errors.New("tracking has not been started")
	}
	var out []Extent
	for _, a := range areas {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ext, err := population(h.file, a, nil)
		if err != nil {
			return nil, fmt.Errorf("pid %d: populated pages of %v: %w", h.pid, a.Range, err)
		}
		for i := range ext {
			if ext[i].State == Written {
				ext[i].State = Suspect
			}
		}
		out = append(out, ext...)
	}
	return out, nil
}
