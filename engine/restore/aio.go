//go:build linux

package restore

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/mem"
	"migrate/engine/remote"
)

// mapRing makes a context of io_setup(2) and moves its ring to its place, which is what the context is known by.
func (p *process) mapRing(ctx context.Context, c mem.Change) error {
	if c.Start != c.VMA.GetStart() || c.End != c.VMA.GetEnd() {
		return fmt.Errorf("%v: only a part of a ring of io_setup(2) is mapped", c)
	}
	n, err := mem.AIORequests(c.VMA)
	if err != nil {
		return fmt.Errorf("%v: %w", c, err)
	}
	var b remote.Batch
	at := b.Buffer(8)
	b.Call(unix.SYS_IO_SETUP, n, at)
	if err := p.trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("%v: io_setup of %d requests (/proc/sys/fs/aio-max-nr): %w", c, n, err)
	}
	var move remote.Batch
	move.Call(unix.SYS_MREMAP, binary.LittleEndian.Uint64(at.Bytes()), c.Size(), c.Size(), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, c.Start)
	if err := p.trap.Run(ctx, &move); err != nil {
		return fmt.Errorf("%v: moving the ring of io_setup(2), which may have another size here: %w", c, err)
	}
	return nil
}

// maxDummies bounds the requests of one batch.
const maxDummies = 64

// fillRings puts the events that nobody has fetched into the rings of a process: requests that do nothing make the kernel
// count them, and their events are overwritten. No descriptor of the program is there yet.
func (p *process) fillRings(ctx context.Context, img *images.Process, blobs map[string][]byte) error {
	for _, v := range img.MM.GetVmas() {
		blob := blobs[mem.AIOBlob(img.PID, v)]
		if !mem.IsAIORing(v) || len(blob) == 0 {
			continue
		}
		n, at, err := mem.AIOEvents(v, blob)
		if err != nil {
			return err
		}
		for done := 0; done < n; done += maxDummies {
			if err := p.trap.Run(ctx, dummies(v.GetStart(), min(maxDummies, n-done))); err != nil {
				return fmt.Errorf("filling the ring of io_setup(2) at 0x%x: %w", v.GetStart(), err)
			}
		}
		if err := p.trap.Memory().Write(remote.Addr(at), blob); err != nil {
			return fmt.Errorf("filling the ring of io_setup(2) at 0x%x: %w", v.GetStart(), err)
		}
	}
	return nil
}

// dummies reads nothing from /dev/null n times by way of a context (struct iocb in include/uapi/linux/aio_abi.h).
func dummies(ctx uint64, n int) *remote.Batch {
	const pread, size = 0, 64 // IOCB_CMD_PREAD
	var b remote.Batch
	b.Call(unix.SYS_CLOSE_RANGE, dummyFD, dummyFD, 0)
	null := b.Call(unix.SYS_OPENAT, unix.AT_FDCWD, b.String("/dev/null"), unix.O_RDONLY, 0)
	b.Call(unix.SYS_DUP3, null, dummyFD, unix.O_CLOEXEC)
	b.Call(unix.SYS_CLOSE, null)
	data := b.Buffer(8)
	for range n {
		iocb := make([]byte, size)
		binary.LittleEndian.PutUint16(iocb[16:], pread)
		binary.LittleEndian.PutUint32(iocb[20:], dummyFD)
		binary.LittleEndian.PutUint64(iocb[32:], 1) // aio_nbytes
		d, list := b.Bytes(iocb), b.Buffer(8)
		d.SetPointer(24, data, 0) // aio_buf
		list.SetPointer(0, d, 0)
		b.Call(unix.SYS_IO_SUBMIT, ctx, 1, list)
	}
	b.Call(unix.SYS_CLOSE, dummyFD)
	return &b
}

// dummyFD is the number of /dev/null meanwhile.
const dummyFD = 699
