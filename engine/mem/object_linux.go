package mem

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// ErrReachable means that a file has a name, by which it can be opened.
var ErrReachable = errors.New("the file can be reached by its name")

// ErrNoObject means that something without a name is of a kind that is not carried.
var ErrNoObject = errors.New("it has no name and is of a kind that is not carried")

// What the kernel calls memory that never had a name (mm/shmem.c, mm/memfd.c, ipc/shm.c).
const (
	memfdName = "/memfd:"
	zeroName  = "/dev/zero"
	sysvName  = "/SYSV"
	deleted   = " (deleted)"
)

// internalDevice is the device of memory that is on no mounted file system: memfds, shared anonymous memory, segments.
var internalDevice = sync.OnceValues(func() (dev uint64, err error) {
	fd, err := unix.MemfdCreate("migrate", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("memfd_create: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Dev, err
})

// openObject opens what a link of /proc leads to, for reading its content where it has any.
func (o *Objects) openObject(link string, hidden bool) (_ *os.File, _ *imagespb.Object, key objectKey, err error) {
	text, err := os.Readlink(link)
	if err != nil {
		return nil, nil, key, err
	}
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, key, fmt.Errorf("%s (%s): %w", link, text, err)
	}
	f := os.NewFile(uintptr(fd), text)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", text, err), f.Close())
		}
	}()
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		return nil, nil, key, err
	}
	if strings.HasSuffix(text, deleted) && namesFile(o.root+text, f) { // it is called so
		return nil, nil, key, ErrReachable
	}
	record, err := classifyObject(text, &st, int64(fs.Type), hidden)
	if err != nil {
		return nil, nil, key, err
	}
	if record.Kind == imagespb.Object_SYSV {
		if err := describeSegment(o.pid, record, uint32(st.Ino)); err != nil {
			return nil, nil, key, err
		}
	}
	if int64(fs.Type) == unix.HUGETLBFS_MAGIC {
		record.HugePage = uint64(fs.Bsize)
	}
	key = objectKey{st.Dev, st.Ino, record.Kind == imagespb.Object_SYSV}
	if record.Kind == imagespb.Object_SECRET {
		secret, err := secretFile(link, &st)
		if err != nil {
			return nil, nil, key, err
		}
		err = f.Close()
		f = secret
		return f, record, key, err
	}
	if hasContent(record) {
		content, err := reopen(f, unix.O_RDONLY|unix.O_NOATIME)
		if err != nil {
			return nil, nil, key, err
		}
		err = f.Close()
		f = content
		return f, record, key, err
	}
	return f, record, key, nil
}

// classifyObject tells what an open file is, by the text of the link to it.
func classifyObject(text string, st *unix.Stat_t, magic int64, hidden bool) (*imagespb.Object, error) {
	internal, err := internalDevice()
	if err != nil {
		return nil, err
	}
	name, gone := strings.CutSuffix(text, deleted)
	memory := gone && st.Mode&unix.S_IFMT == unix.S_IFREG && (st.Dev == internal || magic == unix.HUGETLBFS_MAGIC)
	r := &imagespb.Object{Path: name}
	switch {
	case magic == secretMagic:
		r.Kind, r.Path = imagespb.Object_SECRET, ""
	case memory && strings.HasPrefix(name, memfdName):
		r.Kind, r.Path = imagespb.Object_MEMFD, strings.TrimPrefix(name, memfdName)
	case memory && strings.HasPrefix(name, sysvName):
		r.Kind = imagespb.Object_SYSV
	case memory && (st.Dev == internal || name == hugeMapping):
		r.Kind = imagespb.Object_ANON
	case !gone && !hidden:
		return nil, ErrReachable
	case magic == unix.HUGETLBFS_MAGIC:
		return nil, ErrNoObject
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		r.Kind = imagespb.Object_FILE
		r.Tmpfile = path.Base(name) == fmt.Sprintf("#%d", st.Ino)
		if gone && st.Nlink > 0 {
			r.Kind = imagespb.Object_LINK
		}
	case st.Mode&unix.S_IFMT == unix.S_IFDIR && gone:
		r.Kind = imagespb.Object_DIRECTORY
	case st.Mode&unix.S_IFMT == unix.S_IFLNK && gone && st.Nlink == 0:
		r.Kind = imagespb.Object_SYMLINK
	default:
		return nil, ErrNoObject
	}
	return r, nil
}

// hasContent tells the objects whose content travels as pages.
func hasContent(r *imagespb.Object) bool {
	switch r.GetKind() {
	case imagespb.Object_ANON, imagespb.Object_MEMFD, imagespb.Object_SYSV, imagespb.Object_FILE, imagespb.Object_SECRET:
		return true
	}
	return false
}

// isFile tells files of file systems from memory.
func (x *object) isFile() bool {
	return x.record.Kind >= imagespb.Object_FILE && x.record.Kind != imagespb.Object_SECRET
}

// reopen opens an open file anew, with an offset and flags of its own.
func reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) && flags&unix.O_NOATIME != 0 {
		return reopen(f, flags&^unix.O_NOATIME)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// maxExtents bounds the list of the parts of a file that are no holes; a file with more loses the difference between
// zeros and holes, which only its allocated size tells.
const maxExtents = 1 << 16

// describe brings the record of an object up to date; pid is a process of the tree.
func (x *object) describe(pid int, final bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(x.file.Fd()), &st); err != nil {
		return err
	}
	r := x.record
	r.Size, r.Mode, r.Uid, r.Gid = uint64(st.Size), st.Mode, st.Uid, st.Gid
	r.Atime, r.Mtime = st.Atim.Nano(), st.Mtim.Nano()
	switch r.Kind {
	case imagespb.Object_MEMFD:
		seals, err := unix.FcntlInt(x.file.Fd(), unix.F_GET_SEALS, 0)
		if err != nil {
			return fmt.Errorf("F_GET_SEALS: %w", err)
		}
		r.Seals = uint32(seals)
	case imagespb.Object_SYSV:
		if err := describeSegment(pid, r, r.GetSegment().GetId()); err != nil {
			return err
		}
	case imagespb.Object_SYMLINK:
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(int(x.file.Fd()), "", buf[:])
		if err != nil {
			return fmt.Errorf("readlink: %w", err)
		}
		r.Other, r.Size = string(buf[:n]), 0
	}
	r.Extents = nil
	if final && (r.Kind == imagespb.Object_FILE || r.Kind == imagespb.Object_MEMFD) && r.HugePage == 0 {
		extents, err := extentsOf(x.file, r.Size)
		if err != nil || len(extents) > maxExtents {
			return err
		}
		for _, e := range extents {
			r.Extents = append(r.Extents, &imagespb.Extent{Start: e.Start, End: e.End})
		}
	}
	return nil
}
