//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/remote"
)

// spareFDs is how many numbers above all others a process needs while its descriptors are put into place.
const spareFDs = 300

// raiseLimit lets a process of the skeleton have the numbers that it is to get: it was born with the limit of whoever started this
// program, and its own limit comes later.
func raiseLimit(ctx context.Context, p *engine.Process, push []remote.PushFile) error {
	need := uint64(spareFDs)
	for _, f := range push {
		need = max(need, uint64(f.FD)+1+spareFDs)
	}
	need += uint64(len(push))
	var have unix.Rlimit
	if err := unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, nil, &have); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	if have.Cur >= need {
		return nil
	}
	// Within the hard limit it always works; if that is too low, only the highest numbers may be missing.
	var b remote.Batch
	limit := b.Bytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, need), max(need, have.Max)))
	within := b.Bytes(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, have.Max), have.Max))
	b.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, within, 0)
	b.Try(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, limit, 0)
	if err := p.Caller.Run(ctx, &b); err != nil {
		return fmt.Errorf("raising RLIMIT_NOFILE: %w", err)
	}
	return nil
}
