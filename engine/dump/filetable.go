//go:build linux

package dump

import (
	"errors"
	"fmt"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/procfs"
)

// fileTable gives the files that a tree has mapped, executes or stands in their ids in files.img. A file keeps its id in all
// layouts and in the checkpoint.
type fileTable struct {
	ids     map[fileKey]uint32
	entries []*fdinfo.FileEntry
	extras  []*imagespb.FileExtra
	views   []mem.View // of the mount namespaces of the tree, if there are several
}

type fileKey struct {
	path         string
	major, minor uint32
	inode        uint64
	object, via  uint32
}

func newFileTable() *fileTable { return &fileTable{ids: map[fileKey]uint32{}} }

// addMapped returns the id of a mapped file.
func (t *fileTable) addMapped(f *mem.File) (uint32, error) {
	return t.add(fileKey{f.Path, f.Major, f.Minor, f.Inode, f.Object, f.Via}, &imagespb.FileExtra{
		Object: f.Object, Via: f.Via,
		DevMajor: f.Major, DevMinor: f.Minor, Ino: f.Inode, Size: uint64(f.Size), Mode: f.Mode, BuildId: f.BuildID,
	}), nil
}

// addLink returns the id of what a link below /proc leads to, such as "12/exe" or "12/cwd"; objects takes those whose
// names were deleted.
func (t *fileTable) addLink(fs procfs.FS, objects *mem.Objects, link string) (uint32, error) {
	path, err := fs.Link(link)
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(fs.Path(link), &st); err != nil {
		return 0, fmt.Errorf("%s (%s): %w", link, path, err)
	}
	var object uint32
	if strings.HasSuffix(path, " (deleted)") {
		object, err = objects.AddLink(fs.Path(link))
		if err != nil && !errors.Is(err, mem.ErrReachable) {
			return 0, err
		}
	}
	major, minor, via := unix.Major(st.Dev), unix.Minor(st.Dev), uint32(0)
	if object == 0 {
		via = t.via(fs, link, path, &st)
	}
	return t.add(fileKey{path, major, minor, st.Ino, object, via}, &imagespb.FileExtra{
		Object: object, Via: via,
		DevMajor: major, DevMinor: minor, Ino: st.Ino, Size: uint64(st.Size), Mode: st.Mode,
	}), nil
}

// via finds from whose root directory the path of a link below /proc/PID leads to what the link does: 0, that of the process
// itself, or a view.
func (t *fileTable) via(fs procfs.FS, link, path string, st *unix.Stat_t) uint32 {
	leads := func(root string) bool {
		var at unix.Stat_t
		return unix.Stat(root+path, &at) == nil && at.Dev == st.Dev && at.Ino == st.Ino
	}
	var pid int
	if _, err := fmt.Sscanf(link, "%d/", &pid); err != nil || len(t.views) == 0 || leads(fs.OuterRoot(pid)) {
		return 0
	}
	for _, v := range t.views {
		if leads(fs.OuterRoot(v.PID)) {
			return v.VPID
		}
	}
	return 0
}

func (t *fileTable) add(key fileKey, extra *imagespb.FileExtra) uint32 {
	if id := t.ids[key]; id != 0 {
		return id
	}
	id := uint32(len(t.entries) + 1)
	t.ids[key] = id
	extra.Id = id
	t.extras = append(t.extras, extra)
	t.entries = append(t.entries, &fdinfo.FileEntry{
		Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(id),
		Reg: &regfile.RegFileEntry{
			Id: proto.Uint32(id), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Name: proto.String(key.path), Mode: proto.Uint32(extra.Mode), Size: proto.Uint64(extra.Size),
			Fown: &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)},
		},
	})
	return id
}
