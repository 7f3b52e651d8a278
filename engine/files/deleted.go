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
	"golang.org/x/sys/unix"

	"migrate/engine/images"
)

// maxGhost bounds the content of a deleted file, which travels during the freeze.
const maxGhost = 16 << 20

// A file that was deleted while it is open travels with its content, and becomes a file without a name in the same directory
// (O_TMPFILE in open(2)). Its blob is the id of the first record with the same inode (4 bytes, little-endian); that
// one's goes on with the content.
var kindDeleted = &Kind{
	Name: "deleted file", Type: fdinfo.FdTypes_REG, Carried: true,
	Note:  "with its content up to 16 MiB, into the directory where it was; not one that has another name left or is mapped",
	match: func(d *description) bool { return d.format() == unix.S_IFREG && d.isDeleted() },
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		switch name, ok := inRoot(d.path(), d.root); {
		case !ok || !strings.HasSuffix(name, " (deleted)"):
			return []problem{{reason: "it is a file without a name" + named(d)}}
		case d.stat.Nlink > 0:
			return []problem{{reason: "its name was deleted while the file has others" + named(d)}}
		case d.stat.Size > maxGhost:
			return []problem{{reason: fmt.Sprintf("it is a deleted file of %d bytes, more than the %d that are carried%s", d.stat.Size, maxGhost, named(d))}}
		}
		return nil
	},
	dump: dumpGhost,
}

func ghostBlob(id uint32) string { return fmt.Sprintf("ghost-%d", id) }

func isGhost(cp *images.Checkpoint, id uint32) bool { return cp.Blobs[ghostBlob(id)] != nil }

func dumpGhost(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	name, _ := inRoot(strings.TrimSuffix(d.path(), " (deleted)"), d.root)
	e, err := r.regEntry(d, name)
	if err != nil {
		return nil, err
	}
	for _, o := range r.snap.list {
		if o.stat.Ino != d.stat.Ino || o.stat.Dev != d.stat.Dev {
			continue
		}
		blob := binary.LittleEndian.AppendUint32(nil, o.id)
		if o == d {
			content, err := readAll(d)
			if err != nil {
				return nil, err
			}
			blob = append(blob, content...)
		}
		r.blob(ghostBlob(d.id), blob)
		break
	}
	return e, nil
}

// readAll reads a file by a description of its own, because the tree's may be open for writing only.
func readAll(d *description) (b []byte, err error) {
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(d.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, fmt.Errorf("open the deleted file for reading: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	b = make([]byte, d.stat.Size)
	for done := 0; done < len(b); {
		n, err := unix.Pread(fd, b[done:], int64(done))
		if err != nil || n == 0 {
			return nil, fmt.Errorf("read the deleted file: %d of %d bytes: %w", done, len(b), err)
		}
		done += n
	}
	return b, nil
}

// openGhost makes the file, or opens the one again that another record has made.
func (r *Restorer) openGhost(e *fdinfo.FileEntry) error {
	blob := r.cp.Blobs[ghostBlob(e.GetId())]
	if len(blob) < 4 {
		return fmt.Errorf("blob %s has %d bytes", ghostBlob(e.GetId()), len(blob))
	}
	from := binary.LittleEndian.Uint32(blob)
	if from == e.GetId() {
		if err := r.newGhost(e, blob[4:]); err != nil {
			return err
		}
	}
	base, ok := r.ghosts[from]
	if !ok {
		return fmt.Errorf("blob %s names file %d, which is not a deleted file before it", ghostBlob(e.GetId()), from)
	}
	flags := int(e.Reg.GetFlags())&(reopen&^unix.O_NOFOLLOW&^unix.O_DIRECTORY) | unix.O_CLOEXEC
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(base), flags, 0)
	if err != nil {
		return fmt.Errorf("open the deleted file %s: %w", e.Reg.GetName(), err)
	}
	r.put(e.GetId(), fd)
	return restorePosition(fd, e.Reg)
}

func (r *Restorer) newGhost(e *fdinfo.FileEntry, content []byte) error {
	root, err := r.rootOf(e.GetId())
	if err != nil {
		return err
	}
	dir, err := openIn(root, path.Dir(e.Reg.GetName()), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return missing(path.Dir(e.Reg.GetName()), err)
	}
	fd, err := unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, e.Reg.GetMode()&0o7777)
	if err = errors.Join(err, unix.Close(dir)); err != nil {
		return fmt.Errorf("a file without a name in %s: %w", path.Dir(e.Reg.GetName()), err)
	}
	r.ghosts[e.GetId()] = fd
	for done := 0; done < len(content); {
		n, err := unix.Write(fd, content[done:])
		if err != nil {
			return fmt.Errorf("write the content of the deleted file %s: %w", e.Reg.GetName(), err)
		}
		done += n
	}
	return nil
}
