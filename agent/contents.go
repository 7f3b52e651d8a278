package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/agent/move"
	"migrate/agent/volume"
	"migrate/engine"
	"migrate/engine/dump"
	"migrate/engine/files"
	"migrate/engine/images"
	"migrate/engine/procfs"
)

// contentsOf describes the regular files that a tree has open or mapped and that are in none of the units. What the tree
// keeps open is as the last Check has found it. Without content no hashes are taken.
func contentsOf(ctx context.Context, h *volume.Hasher, tree []*engine.Process, open []files.Needed, but []volume.Unit, content bool) ([]*agentapi.FileNeed, error) {
	root := procfs.Host.Path(tree[0].PID, "root")
	written := map[string]bool{} // by path: whether it is written to
	for _, f := range open {
		if f.Mode&unix.S_IFMT == unix.S_IFREG {
			written[f.Path] = written[f.Path] || !f.Fixed
		}
	}
	for _, p := range tree {
		maps, err := procfs.Host.Maps(p.PID)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, m := range maps {
			if isFile(&m) {
				written[m.Path] = written[m.Path] || writable(&m)
			}
		}
	}
	var out []*agentapi.FileNeed
	for path, w := range written {
		if slices.ContainsFunc(but, func(u volume.Unit) bool { return u.Holds(path) }) {
			continue
		}
		n, err := h.Describe(ctx, root, path, w, content)
		if err != nil {
			return nil, err
		}
		if n != nil {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *agentapi.FileNeed) int { return strings.Compare(a.GetPath(), b.GetPath()) })
	return out, nil
}

// isFile tells mappings of files that have a path.
func isFile(m *procfs.Mapping) bool {
	return m.Inode != 0 && !m.Deleted && strings.HasPrefix(m.Path, "/") && !strings.HasPrefix(m.Path, "/memfd:") && !strings.HasPrefix(m.Path, "/dev/zero")
}

// writable tells mappings through which a file may be written; also one that mprotect(2) may make so.
func writable(m *procfs.Mapping) bool { return m.Shared && m.Prot&procfs.ProtWrite != 0 }

// mappedWritable lists the files that a tree maps shared and writable.
func mappedWritable(tree []*engine.Process) (map[string]bool, error) {
	out := map[string]bool{}
	for _, p := range tree {
		maps, err := procfs.Host.Maps(p.PID)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, m := range maps {
			if isFile(&m) && writable(&m) {
				out[m.Path] = true
			}
		}
	}
	return out, nil
}

// filesMode is the mode with its default filled in.
func filesMode(o *agentapi.MoveOptions) agentapi.FilesMode {
	if m := o.GetFiles(); m != agentapi.FilesMode_FILES_MODE_UNSPECIFIED {
		return m
	}
	return agentapi.FilesMode_FILES_MODE_CHECK
}

// planVolumes measures the volumes that a move would bring over.
func planVolumes(volumes []string) (list []*agentapi.VolumeNeed, against []engine.Obstacle, err error) {
	for _, v := range volumes {
		n, bytes, err := volume.Measure(volume.Unit{Dir: v})
		if err != nil {
			against = append(against, engine.Obstacle{Kind: "volume", Where: v, Reason: err.Error(), Remedy: "name a directory of this host, or leave it out"})
			continue
		}
		list = append(list, &agentapi.VolumeNeed{Path: v, Bytes: bytes, Entries: uint64(n)})
	}
	return list, against, nil
}

// blocker notes an obstacle.
type blocker func(kind, where, remedy, format string, args ...any)

const overwriteRemedy = "move it away there, or give --overwrite"

// checkContents compares this host's files and directories with what is needed.
func (a *Agent) checkContents(ctx context.Context, needs *agentapi.Requirements, o *agentapi.MoveOptions, block blocker) error {
	mode := filesMode(o)
	bytes := map[string]uint64{} // to be brought, by directory
	for _, f := range needs.GetFiles() {
		why, there, err := a.hasher.Difference(ctx, f, mode != agentapi.FilesMode_FILES_MODE_SHARED)
		switch {
		case ctx.Err() != nil:
			return status.FromContextError(ctx.Err()).Err()
		case err != nil:
			block("file", f.GetPath(), "", "%v", err)
		case why == "":
		case mode != agentapi.FilesMode_FILES_MODE_COPY:
			block("file", f.GetPath(), "put the same there, on storage that both hosts see, or move with --files copy or --volume", "%s", why)
		case there:
			if err := a.store.Check(volume.UnitOf(f.GetPath(), false), o.GetOverwrite()); err != nil {
				block("file", f.GetPath(), overwriteRemedy, "%s; %v", why, err)
				continue
			}
			fallthrough
		default:
			bytes[filepath.Dir(f.GetPath())] += f.GetSize()
		}
	}
	for _, v := range needs.GetVolumes() {
		if err := volume.CheckDir(v.GetPath()); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if err := a.store.Check(volume.Unit{Dir: v.GetPath()}, o.GetOverwrite()); err != nil {
			block("volume", v.GetPath(), overwriteRemedy, "%v", err)
		}
		bytes[v.GetPath()] += v.GetBytes()
	}
	bytes[a.movesDir()] += recordRoom
	return checkRoom(bytes, block)
}

// movesDir is where the records of moves are.
func (a *Agent) movesDir() string { return filepath.Join(a.cfg.DataDir, "moves") }

// recordRoom is what an agent's records of a move may take on its disk, in bytes.
const recordRoom = 1 << 20

// checkRoom sees whether the file systems have room for what is to be brought.
func checkRoom(bytes map[string]uint64, block blocker) error {
	type fsid [2]int32
	need, room, where := map[fsid]uint64{}, map[fsid]uint64{}, map[fsid]string{} // where most goes
	for dir, n := range bytes {
		var st unix.Statfs_t
		err := unix.Statfs(existing(dir), &st)
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		id := fsid(st.Fsid.Val)
		need[id] += n
		if room[id] = st.Bavail * uint64(st.Bsize); n >= bytes[where[id]] {
			where[id] = dir
		}
	}
	for id, n := range need {
		if n > room[id] {
			block("disk", where[id], "make room there, or move to another host", "%d MiB are free there on disk, %d MiB are needed", room[id]>>20, n>>20)
		}
	}
	return nil
}

// existing is the nearest directory that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// withoutContents are the files that Precheck looks at: what has no content, outside of the volumes.
func withoutContents(list []files.Needed, but []volume.Unit) []files.Needed {
	return slices.DeleteFunc(slices.Clone(list), func(n files.Needed) bool {
		return n.Mode&unix.S_IFMT == unix.S_IFREG || slices.ContainsFunc(but, func(u volume.Unit) bool { return u.Holds(n.Path) })
	})
}

// Contents describes the files that the tree has open or mapped, outside of the volumes.
func (s *source) Contents(ctx context.Context, but []volume.Unit, content bool) ([]*agentapi.FileNeed, error) {
	return contentsOf(ctx, s.h.hasher, s.src.Processes(), s.src.Needed(), slices.Concat(but, comesAlong(s.src)), content)
}

// comesAlong is what moves with a tree without being asked for: its own /dev/shm.
func comesAlong(src *dump.Source) []volume.Unit {
	if !src.OwnShm() {
		return nil
	}
	return []volume.Unit{{Dir: images.ShmDir}}
}

// Mapped lists the files that the tree maps shared and writable.
func (s *source) Mapped(context.Context) (map[string]bool, error) {
	return mappedWritable(s.src.Processes())
}

var _ move.Source = (*source)(nil)
