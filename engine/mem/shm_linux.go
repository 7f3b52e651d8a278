package mem

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// The /dev/shm of a workload is a file system in memory of its own (shm_overview(7), sem_overview(7)). What is in it moves with
// the workload: each file is an object with names, whose content travels in rounds, whether or not somebody has it open or mapped.

// Bounds of what is carried: all of it is compared with what was sent while the tree stands still, some 0.3 ms for each MiB.
const (
	maxShmBytes = 1 << 30
	maxShmFiles = 1 << 14
)

// OwnShm tells whether the /dev/shm of a process is a file system in memory that this program has not mounted.
func OwnShm(pid int) (bool, error) {
	var st unix.Statx_t
	var fs unix.Statfs_t
	dir := procfs.Host.Path(pid, "root") + images.ShmDir
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st)
	if err == nil {
		err = unix.Statfs(dir, &fs)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || int64(fs.Type) != unix.TMPFS_MAGIC {
		return false, nil
	}
	own, err := procfs.Host.Mounts(os.Getpid())
	if err != nil {
		return false, err
	}
	for _, m := range own {
		if uint32(m.Major) == st.Dev_major && uint32(m.Minor) == st.Dev_minor {
			return false, nil
		}
	}
	return true, nil
}

// TakeShm says that the tree has the /dev/shm of a process for itself, if OwnShm.
func (o *Objects) TakeShm(pid int) error {
	own, err := OwnShm(pid)
	if err != nil || !own {
		return err
	}
	fd, err := unix.Open(procfs.Host.Path(pid, "root")+images.ShmDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return fmt.Errorf("%s of pid %d: %w", images.ShmDir, pid, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shm, o.shmPID = os.NewFile(uintptr(fd), images.ShmDir), pid
	return nil
}

// HasShm tells whether TakeShm has found one.
func (o *Objects) HasShm() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.shm != nil
}

// AddShm names all that is in the tree's own /dev/shm, and tells what of it is not carried.
func (o *Objects) AddShm() ([]engine.Obstacle, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.shm == nil {
		return nil, nil
	}
	w := &shmWalk{Objects: o}
	fd, err := unix.Openat(int(o.shm.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", images.ShmDir, err)
	}
	if err := w.directory(os.NewFile(uintptr(fd), images.ShmDir)); err != nil {
		return nil, fmt.Errorf("%s of pid %d: %w", images.ShmDir, o.shmPID, err)
	}
	if w.bytes > maxShmBytes || w.files > maxShmFiles {
		w.refuse(images.ShmDir, fmt.Sprintf("it holds %d files of %d MiB together, more than the %d files or %d MiB that move with a workload", w.files, w.bytes>>20, maxShmFiles, maxShmBytes>>20))
	}
	return w.found, nil
}

// shmWalk is one look at all that is there.
type shmWalk struct {
	*Objects
	bytes, files int64
	sockets      string // /proc/PID/net/unix, once it is needed
	seen         map[*object]bool
	found        []engine.Obstacle
}

func (w *shmWalk) refuse(name, why string) {
	w.found = append(w.found, engine.Obstacle{PID: w.shmPID, Kind: refuseShmFile.Kind, Where: name, Reason: why, Remedy: "let the program remove it"})
}

// directory takes a directory, which it closes, and what is in it. What vanishes meanwhile was never there.
func (w *shmWalk) directory(d *os.File) (err error) {
	defer func() { err = errors.Join(err, d.Close()) }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, base := range names {
		if w.files > maxShmFiles {
			return nil
		}
		if err := w.entry(int(d.Fd()), base, path.Join(d.Name(), base)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", base, err)
		}
	}
	return nil
}

func (w *shmWalk) entry(dir int, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	w.files++
	flags := unix.O_RDONLY | unix.O_NOATIME
	record := &imagespb.Object{Path: name}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		record.Kind = imagespb.Object_FILE
	case unix.S_IFDIR:
		record.Kind = imagespb.Object_DIRECTORY
	case unix.S_IFLNK:
		record.Kind, flags = imagespb.Object_SYMLINK, unix.O_PATH
	case unix.S_IFSOCK:
		if bound, err := w.bound(name); err != nil || bound {
			return err // it comes with its socket
		}
		w.refuse(name, "it is a socket file to which no socket belongs any more")
		return nil
	default:
		w.refuse(name, "it is neither a file nor a directory")
		return nil
	}
	x, err := w.take(dir, base, flags, &st, record)
	if err != nil {
		return err
	}
	if record.Kind != imagespb.Object_SYMLINK {
		if err := w.attributes(x, name); err != nil {
			return err
		}
	}
	if record.Kind != imagespb.Object_DIRECTORY {
		return nil
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	return w.directory(os.NewFile(uintptr(fd), name))
}

// take finds or opens the object of an entry, and notes the name.
func (w *shmWalk) take(dir int, base string, flags int, st *unix.Stat_t, record *imagespb.Object) (*object, error) {
	key := objectKey{st.Dev, st.Ino, false}
	x := w.byName[key]
	if x == nil {
		fd, err := unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		var is unix.Stat_t
		if err := unix.Fstat(fd, &is); err != nil || is.Ino != st.Ino {
			return nil, errors.Join(err, unix.ENOENT, unix.Close(fd)) // it was replaced
		}
		w.last++
		record.Id = w.last
		x = &object{file: os.NewFile(uintptr(fd), record.Path), record: record, sent: NewDigest(ObjectSpace(w.last))}
		w.list = append(w.list, x)
		w.byName[key] = x
	}
	if w.seen == nil {
		w.seen = map[*object]bool{}
	}
	if !w.seen[x] {
		w.seen[x], x.used, x.record.Names, x.record.Path = true, true, nil, record.Path
		w.bytes += st.Blocks * 512
	}
	x.record.Names = append(x.record.Names, record.Path)
	slices.Sort(x.record.Names)
	return x, nil
}

// attributes refuses extended attributes, except those that a security module gives.
func (w *shmWalk) attributes(x *object, name string) error {
	var buf [1024]byte
	n, err := unix.Flistxattr(int(x.file.Fd()), buf[:])
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("listxattr: %w", err)
	}
	for a := range strings.SplitSeq(strings.TrimSuffix(string(buf[:max(n, 0)]), "\x00"), "\x00") {
		if err != nil || a != "" && !strings.HasPrefix(a, "security.") {
			w.refuse(name, "it has extended attributes or an access control list")
			return nil
		}
	}
	return nil
}

// bound tells whether a socket has this name.
func (w *shmWalk) bound(name string) (bool, error) {
	if w.sockets == "" {
		text, err := os.ReadFile(procfs.Host.Path(w.shmPID, "net", "unix"))
		if err != nil {
			return false, err
		}
		w.sockets = string(text)
	}
	return strings.Contains(w.sockets, " "+name+"\n"), nil
}
