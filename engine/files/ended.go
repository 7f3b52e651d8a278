//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// A file or directory of /proc may be open though its process or thread has ended: reading it gives ESRCH (proc(5)). It is made
// again by way of a process that ends during the restore, with the same id if that is free. Its blob holds the id, 4
// bytes, little-endian.
func endedBlob(id uint32) string { return fmt.Sprintf("ended-%d", id) }

// taskPath takes a path below /proc apart: mount point, id of the process, id of the thread, the rest.
var taskPath = regexp.MustCompile(`^(/.*/proc|/proc)/(\d+)(/task/(\d+))?(/.*)?$`)

// endedTask is the id, as the path tells it, of the process or thread that a file of /proc was of, and the path.
func (d *Dumper) endedTask(desc *description) (id int, name string, ended bool) {
	if desc.magic() != unix.PROC_SUPER_MAGIC {
		return 0, "", false
	}
	path, deleted := strings.CutSuffix(desc.path(), " (deleted)")
	name, ok := inRoot(path, desc.root)
	m := taskPath.FindStringSubmatch(name)
	if !ok || m == nil {
		return 0, "", false
	}
	text := m[2]
	if m[4] != "" {
		text = m[4]
	}
	id, err := strconv.Atoi(text)
	if err != nil {
		return 0, "", false
	}
	if deleted {
		return id, name, true
	}
	root, err := d.rootOf(desc)
	if err != nil {
		return 0, "", false
	}
	_, err = statIn(root, m[1]+"/"+m[2]+m[3])
	return id, name, errors.Is(err, unix.ENOENT)
}

func (r *dump) regEntryOfEnded(d *description, id int, name string) (*fdinfo.FileEntry, error) {
	e, err := r.regEntry(d, name)
	if err == nil {
		r.blob(endedBlob(d.id), binary.LittleEndian.AppendUint32(nil, uint32(id)))
	}
	return e, err
}

// openEndedTask opens a file of a process that then ends.
func (r *Restorer) openEndedTask(ctx context.Context, e *fdinfo.FileEntry, blob []byte) error {
	m := taskPath.FindStringSubmatch(e.Reg.GetName())
	if len(blob) != 4 || m == nil {
		return fmt.Errorf("blob %s: %d bytes for the file %s", endedBlob(e.GetId()), len(blob), e.Reg.GetName())
	}
	if r.env.Ended == nil {
		return fmt.Errorf("%s is of a process that has ended", e.Reg.GetName())
	}
	return r.env.Ended(ctx, int(binary.LittleEndian.Uint32(blob)), func(_, vpid int) error {
		id := strconv.Itoa(vpid)
		name := m[1] + "/" + id + m[5]
		if m[4] != "" {
			name = m[1] + "/" + id + "/task/" + id + m[5]
		}
		root, err := r.rootOf(e.GetId())
		if err != nil {
			return err
		}
		flags := uint64(e.Reg.GetFlags()&reopen) | unix.O_NONBLOCK
		if flags&unix.O_PATH != 0 {
			flags &^= unix.O_NONBLOCK | unix.O_ACCMODE
		}
		fd, err := openItself(root, name, flags)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		r.put(e.GetId(), fd)
		return restorePosition(fd, e.Reg)
	})
}
