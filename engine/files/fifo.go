//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/sock"
)

// A FIFO is a pipe behind a path: its record has both, and its pipe_id is the id of the first record of the same FIFO. One that
// was deleted is made anew in its directory and deleted again.
var kindFifo = &Kind{
	Name: "FIFO", Type: fdinfo.FdTypes_FIFO, Carried: true,
	Note:  "with its contents, by path, also when it was deleted; the FIFO must exist at the destination, and nobody outside of the tree may hold it",
	match: func(d *description) bool { return d.format() == unix.S_IFIFO },
	check: func(ctx context.Context, dm *Dumper, d *description) []problem {
		var out []problem
		switch name, ok := inRoot(strings.TrimSuffix(d.path(), " (deleted)"), d.root); {
		case !d.isDeleted():
			out = checkPath(ctx, dm, d)
		case d.stat.Nlink > 0:
			out = []problem{{reason: "its name was deleted while the FIFO has others" + named(d)}}
		case !ok:
			out = []problem{{reason: fmt.Sprintf("%s lies outside of the root directory %s of the process", name, d.root)}}
		}
		return append(out, checkPipe(ctx, dm, d)...)
	},
	dump: dumpFifo, open: openFifo, connect: openQuietFifo,
}

func fifoBlob(id uint32) string { return fmt.Sprintf("fifo-%d", id) }

// A blob of a deleted FIFO holds its owner and group (4 bytes each, little-endian). It is named for the first record.
func fifoGhostBlob(id uint32) string { return fmt.Sprintf("fifo-ghost-%d", id) }

// A reading end that has seen no writer since it was opened does not hang up (fifo(7)). Such a record has a blob of one byte.
func fifoQuietBlob(id uint32) string { return fmt.Sprintf("fifo-quiet-%d", id) }

func dumpFifo(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	name, ok := d.path(), true
	if d.isDeleted() {
		name = strings.TrimSuffix(name, " (deleted)")
	}
	if name, ok = inRoot(name, d.root); !ok {
		return nil, fmt.Errorf("%s is outside of root %s: %w", name, d.root, ErrNotCarried)
	}
	e, err := r.regEntry(d, name)
	if err != nil {
		return nil, err
	}
	for _, first := range r.snap.list {
		if first.stat.Dev != d.stat.Dev || first.stat.Ino != d.stat.Ino || first.kind != d.kind {
			continue
		}
		e.Fifo = &fifo.FifoEntry{Id: proto.Uint32(d.id), PipeId: proto.Uint32(first.id), RegfId: proto.Uint32(d.id)}
		if first == d {
			blob, err := pipeContents(r.snap, d)
			if err != nil {
				return nil, err
			}
			r.blob(fifoBlob(d.id), blob)
			if d.isDeleted() {
				r.blob(fifoGhostBlob(d.id), binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, d.stat.Uid), d.stat.Gid))
			}
		}
		break
	}
	if _, write := ends(r.snap, d); write == nil && d.flags&unix.O_ACCMODE == unix.O_RDONLY && !polled(d.fd, unix.POLLHUP) {
		r.blob(fifoQuietBlob(d.id), []byte{1})
	}
	return e, nil
}

// openFifo opens a description by way of another one, which holds the FIFO open for both directions meanwhile, so that no open waits for
// another.
func openFifo(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	first := e.Fifo.GetPipeId()
	if _, ok := r.fifos[first]; !ok {
		fd, err := r.fillFifo(e, r.cp.Blobs[fifoBlob(first)])
		if fd >= 0 {
			r.fifos[first] = fd
		}
		if err != nil {
			return err
		}
	}
	if _, quiet := r.cp.Blobs[fifoQuietBlob(e.GetId())]; quiet {
		return nil // openQuietFifo
	}
	return r.openFifoEnd(e)
}

func (r *Restorer) openFifoEnd(e *fdinfo.FileEntry) error {
	name, at := e.Reg.GetName(), "/proc/self/fd/"+strconv.Itoa(r.fifos[e.Fifo.GetPipeId()])
	fd, err := unix.Open(at, int(e.Reg.GetFlags()&(unix.O_ACCMODE|unix.O_DIRECT))|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	r.put(e.GetId(), fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(e.Reg.GetFlags()&settable&^(unix.O_NONBLOCK|unix.O_ASYNC))); err != nil {
		return fmt.Errorf("flags of %s: %w", name, err)
	}
	return nil
}

// openQuietFifo opens a reading end when no writer is there any more, not even this program.
func openQuietFifo(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	if r.files[e.GetId()] != nil {
		return nil
	}
	first := e.Fifo.GetPipeId()
	held := r.fifos[first]
	reader, err := unix.Open("/proc/self/fd/"+strconv.Itoa(held), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s for reading: %w", e.Reg.GetName(), err)
	}
	r.fifos[first] = reader
	return errors.Join(unix.Close(held), r.openFifoEnd(e))
}

// fillFifo opens a FIFO, or makes it anew if it was deleted, and fills it.
func (r *Restorer) fillFifo(e *fdinfo.FileEntry, blob []byte) (int, error) {
	root, err := r.rootOf(e.GetId())
	if err != nil {
		return -1, err
	}
	if owner := r.cp.Blobs[fifoGhostBlob(e.Fifo.GetPipeId())]; owner != nil {
		fd, err := newGhostFifo(root, e, owner)
		if err != nil {
			return fd, err
		}
		return fd, fillPipe(fd, blob, false)
	}
	name := e.Reg.GetName()
	st, err := statIn(root, name)
	if err != nil {
		return -1, missing(name, err)
	}
	if err := compare(name, st, unix.S_IFIFO, 0, nil); err != nil {
		return -1, err
	}
	fd, err := openItself(root, name, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil || n > 0 {
		return fd, fmt.Errorf("%s is in use here: %d bytes wait in it (%w)", name, n, errors.Join(err, unix.EBUSY))
	}
	return fd, fillPipe(fd, blob, false)
}

// newGhostFifo makes a FIFO, under its old name if that is free, opens it and deletes it.
func newGhostFifo(root int, e *fdinfo.FileEntry, owner []byte) (fd int, err error) {
	if len(owner) != 8 {
		return -1, fmt.Errorf("blob %s has %d bytes", fifoGhostBlob(e.Fifo.GetPipeId()), len(owner))
	}
	dirName, name := path.Dir(e.Reg.GetName()), path.Base(e.Reg.GetName())
	dir, err := openIn(root, dirName, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, missing(dirName, err)
	}
	defer func() { err = errors.Join(err, unix.Close(dir)) }()
	err = unix.Mkfifoat(dir, name, 0o600)
	if errors.Is(err, unix.EEXIST) {
		name = fmt.Sprintf(".migrate-%d-%s", e.GetId(), name)
		err = unix.Mkfifoat(dir, name, 0o600)
	}
	if err != nil {
		return -1, fmt.Errorf("a FIFO in %s: %w", dirName, err)
	}
	defer func() { err = errors.Join(err, unix.Unlinkat(dir, name, 0)) }()
	fd, err = unix.Openat(dir, name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the FIFO %s: %w", name, err)
	}
	err = unix.Fchown(fd, int(binary.LittleEndian.Uint32(owner)), int(binary.LittleEndian.Uint32(owner[4:])))
	if err == nil {
		err = unix.Fchmod(fd, e.Reg.GetMode()&0o7777)
	}
	return fd, err
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
