//go:build linux

package ns

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// maxTree bounds the content of one file system in memory that is carried, in bytes.
const maxTree = 512 << 20

// treeReader reads the files of one file system.
type treeReader struct {
	tree *imagespb.Tree
	seen map[uint64]string // files with several names, by inode
	left int64
}

// readTree reads what is mounted, without what is mounted on it, through a mount of its own.
func readTree(tree *imagespb.Tree, m *mountinfo.Info) (err error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Mountpoint, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	// Reading must not leave a trace.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOATIME, Attr_clr: unix.MOUNT_ATTR__ATIME, Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	r := &treeReader{tree: tree, seen: map[uint64]string{}, left: maxTree}
	for _, f := range tree.GetFiles() {
		for _, x := range f.GetExtents() {
			r.left -= int64(len(x.GetData()))
		}
	}
	top := strings.TrimPrefix(m.Root, "/")
	if top == "" {
		top = "."
	}
	return r.read(fd, ".", top)
}

// read reads a file by its name in a directory, and what is below it.
func (r *treeReader) read(dir int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f := &imagespb.TreeFile{Path: path, Mode: st.Mode, Uid: st.Uid, Gid: st.Gid, Rdev: uint64(st.Rdev), Atime: st.Atim.Nano(), Mtime: st.Mtim.Nano()}
	r.tree.Files = append(r.tree.Files, f)
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if f.SameAs = r.seen[st.Ino]; f.SameAs != "" {
			return nil
		}
		r.seen[st.Ino] = path
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		f.Target = string(buf[:n])
		return nil
	case unix.S_IFREG:
		f.Size = uint64(st.Size)
		err = r.data(dir, name, f)
	case unix.S_IFDIR:
		err = r.directory(dir, name, path, f)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (r *treeReader) directory(dir int, name, path string, f *imagespb.TreeFile) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), path)
	defer func() { _ = d.Close() }() // opened for reading: nothing is lost
	if f.Xattrs, err = readXattrs(int(d.Fd())); err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if errors.Is(err, unix.ENOENT) {
		return nil // it was deleted, and so has nothing in it
	}
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := r.read(int(d.Fd()), n, filepath.Join(path, n)); err != nil {
			return err
		}
	}
	return nil
}

// data reads what of a regular file is not a hole.
func (r *treeReader) data(dir int, name string, f *imagespb.TreeFile) (err error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if f.Xattrs, err = readXattrs(fd); err != nil {
		return err
	}
	for at := int64(0); at < int64(f.Size); {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("SEEK_DATA: %w", err)
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("SEEK_HOLE: %w", err)
		}
		if r.left -= end - start; r.left < 0 {
			return fmt.Errorf("the file system holds more than the %d bytes that are carried: %w", maxTree, ErrNotCarried)
		}
		b := make([]byte, end-start)
		for n := 0; n < len(b); {
			got, err := unix.Pread(fd, b[n:], start+int64(n))
			if err != nil {
				return err
			}
			if got == 0 {
				return errors.New("it became shorter while it was read")
			}
			n += got
		}
		f.Extents = append(f.Extents, &imagespb.TreeExtent{Offset: uint64(start), Data: b})
		at = end
	}
	return nil
}

// readXattrs reads the extended attributes of an open file (xattr(7)), access control lists among them.
func readXattrs(fd int) (map[string][]byte, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, buf)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	out := map[string][]byte{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", name, err)
		}
		out[name] = slices.Clone(value[:n])
	}
	return out, nil
}

// writeTree makes the files in a file system, whose root dir is; the directories that lead to them are there or are made.
func writeTree(dir int, tree *imagespb.Tree) error {
	w := &treeWriter{dir: dir}
	for i, f := range tree.GetFiles() {
		if !filepath.IsLocal(f.GetPath()) || f.GetSameAs() != "" && !filepath.IsLocal(f.GetSameAs()) {
			return fmt.Errorf("file %d of the tree: %.200q leads out of it", i, f.GetPath())
		}
		if err := w.write(f); err != nil {
			return fmt.Errorf("%s: %w", f.GetPath(), err)
		}
	}
	// Times last, and those of directories after all that was made in them.
	order := slices.Clone(tree.GetFiles())
	slices.SortStableFunc(order, func(a, b *imagespb.TreeFile) int { return cmp.Compare(len(b.GetPath()), len(a.GetPath())) })
	for _, f := range order {
		ts := []unix.Timespec{unix.NsecToTimespec(f.GetAtime()), unix.NsecToTimespec(f.GetMtime())}
		if err := unix.UtimesNanoAt(dir, f.GetPath(), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("times of %s: %w", f.GetPath(), err)
		}
	}
	return nil
}

type treeWriter struct{ dir int }

// make makes the file without its attributes and reports whether it is a new one.
func (w *treeWriter) make(f *imagespb.TreeFile) error {
	path := f.GetPath()
	switch format := f.GetMode() & unix.S_IFMT; {
	case f.GetSameAs() != "":
		return unix.Linkat(w.dir, f.GetSameAs(), w.dir, path, 0)
	case format == unix.S_IFDIR:
		if path == "." {
			return nil
		}
		return w.mkdirs(path)
	case format == unix.S_IFLNK:
		return unix.Symlinkat(f.GetTarget(), w.dir, path)
	default:
		return unix.Mknodat(w.dir, path, format|0o600, int(f.GetRdev()))
	}
}

// mkdirs makes a directory and those that lead to it.
func (w *treeWriter) mkdirs(path string) error {
	err := unix.Mkdirat(w.dir, path, 0o700)
	if errors.Is(err, unix.ENOENT) && filepath.Dir(path) != "." {
		if err := w.mkdirs(filepath.Dir(path)); err != nil {
			return err
		}
		err = unix.Mkdirat(w.dir, path, 0o700)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (w *treeWriter) write(f *imagespb.TreeFile) error {
	if err := w.make(f); err != nil {
		return err
	}
	if f.GetSameAs() != "" {
		return nil
	}
	path := f.GetPath()
	if err := unix.Fchownat(w.dir, path, int(f.GetUid()), int(f.GetGid()), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", f.GetUid(), f.GetGid(), err)
	}
	if f.GetMode()&unix.S_IFMT == unix.S_IFREG || f.GetMode()&unix.S_IFMT == unix.S_IFDIR {
		if err := w.fill(f); err != nil {
			return err
		}
	}
	if f.GetMode()&unix.S_IFMT != unix.S_IFLNK { // after the owner, which takes set-id bits away
		if err := unix.Fchmodat(w.dir, path, f.GetMode()&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	return nil
}

// fill writes the content and the extended attributes of a regular file or a directory.
func (w *treeWriter) fill(f *imagespb.TreeFile) (err error) {
	flags := unix.O_WRONLY
	if f.GetMode()&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	}
	fd, err := unix.Openat(w.dir, f.GetPath(), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	for name, value := range f.GetXattrs() {
		if err := unix.Fsetxattr(fd, name, value, 0); err != nil {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	if flags != unix.O_WRONLY {
		return nil
	}
	if err := unix.Ftruncate(fd, int64(f.GetSize())); err != nil {
		return fmt.Errorf("size %d: %w", f.GetSize(), err)
	}
	for _, x := range f.GetExtents() {
		for b, at := x.GetData(), int64(x.GetOffset()); len(b) > 0; {
			n, err := unix.Pwrite(fd, b, at)
			if err != nil {
				return fmt.Errorf("writing %d bytes at %d: %w", len(b), at, err)
			}
			b, at = b[n:], at+int64(n)
		}
	}
	return nil
}
