//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
)

// A FIFO is a pipe behind a path: its record has both, and its pipe_id is the id of the first record of the same FIFO.
var kindFifo = &Kind{
	Name: "FIFO", Type: fdinfo.FdTypes_FIFO, Carried: true,
	Note:  "with its contents, by path; the FIFO must exist at the destination, and nobody outside of the tree may hold it",
	match: func(d *description) bool { return d.format() == unix.S_IFIFO },
	check: func(ctx context.Context, dm *Dumper, d *description) []problem {
		return append(checkPath(ctx, dm, d), checkPipe(ctx, dm, d)...)
	},
	dump: dumpFifo, open: openFifo,
}

func fifoBlob(id uint32) string { return fmt.Sprintf("fifo-%d", id) }

func dumpFifo(ctx context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	e, err := dumpPath(ctx, r, d)
	if err != nil {
		return nil, err
	}
	for _, first := range r.snap.list {
		if first.stat.Dev != d.stat.Dev || first.stat.Ino != d.stat.Ino {
			continue
		}
		e.Fifo = &fifo.FifoEntry{Id: proto.Uint32(d.id), PipeId: proto.Uint32(first.id), RegfId: proto.Uint32(d.id)}
		if first == d {
			blob, err := pipeContents(r.snap, d)
			if err != nil {
				return nil, err
			}
			r.blob(fifoBlob(d.id), blob)
		}
		break
	}
	return e, nil
}

// openFifo opens the path. The first record of a FIFO holds it open for both directions meanwhile, so that no open waits for
// another, and fills it.
func openFifo(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	root, err := r.rootOf(e.GetId())
	if err != nil {
		return err
	}
	name, first := e.Reg.GetName(), e.Fifo.GetPipeId()
	if _, ok := r.fifos[first]; !ok {
		fd, err := r.fillFifo(root, name, r.cp.Blobs[fifoBlob(first)])
		if fd >= 0 {
			r.fifos[first] = fd
		}
		if err != nil {
			return err
		}
	}
	fd, err := openItself(root, name, uint64(e.Reg.GetFlags()&(unix.O_ACCMODE|unix.O_DIRECT|unix.O_LARGEFILE|unix.O_NOFOLLOW))|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	r.put(e.GetId(), fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(e.Reg.GetFlags()&settable&^(unix.O_NONBLOCK|unix.O_ASYNC))); err != nil {
		return fmt.Errorf("flags of %s: %w", name, err)
	}
	return nil
}

func (r *Restorer) fillFifo(root int, name string, blob []byte) (int, error) {
	st, err := statIn(root, name)
	if err != nil {
		return -1, missing(name, err)
	}
	if err := compare(name, st, unix.S_IFIFO, 0, nil); err != nil {
		return -1, err
	}
	fd, err := openIn(root, name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil || n > 0 {
		return fd, fmt.Errorf("%s is in use here: %d bytes wait in it (%w)", name, n, errors.Join(err, unix.EBUSY))
	}
	return fd, fillPipe(fd, blob, false)
}

// fillPipe gives a pipe its capacity and contents.
func fillPipe(fd int, blob []byte, packets bool) error {
	if len(blob) < 4 {
		return fmt.Errorf("the blob of the pipe has %d bytes and no capacity", len(blob))
	}
	size := int(binary.LittleEndian.Uint32(blob))
	msgs, err := sock.DecodeQueue(blob[4:])
	if err != nil {
		return err
	}
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if err == nil && have != size {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
	}
	if err != nil {
		return fmt.Errorf("capacity of %d bytes (/proc/sys/fs/pipe-max-size): %w", size, err)
	}
	if packets || len(msgs) > 1 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK|unix.O_DIRECT); err != nil {
			return fmt.Errorf("packet mode: %w", err)
		}
	}
	for _, m := range msgs {
		if n, err := unix.Write(fd, m.Data); err != nil || n < len(m.Data) {
			return fmt.Errorf("%d of %d bytes fit into the pipe: %w", n, len(m.Data), err)
		}
	}
	return nil
}
