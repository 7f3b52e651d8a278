//go:build linux

package files

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// What is watched by inotify(7) or fanotify(7) is an inode, of which the kernel tells device, number and file handle. It is
// recorded by an open descriptor of it, if the tree has one, and else by a path, which is found among the directories that
// the tree uses or by its handle (open_by_handle_at(2)).

// An inode is what fdinfo tells of one that is watched.
type inode struct {
	dev        uint32 // as the kernel encodes it (major<<20 | minor)
	ino        uint64
	handleType int
	handle     string // hexadecimal
}

// A place is where the restore finds something: the description of a record, or a path from the root of a process.
type place struct {
	id   uint32 // of the record; 0 for a path
	vpid int    // whose root the path begins at
	path string
}

// is tells whether a descriptor is of an inode. Where the device number of a file differs from that of its file system (Btrfs,
// overlayfs), the file handle decides.
func (i inode) is(fd int, st *unix.Stat_t) bool {
	if st.Ino != i.ino {
		return false
	}
	if unix.Major(st.Dev) == i.dev>>20 && unix.Minor(st.Dev) == i.dev&(1<<20-1) {
		return true
	}
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	return err == nil && int(h.Type()) == i.handleType && hex.EncodeToString(h.Bytes()) == i.handle
}

// onFilesystem tells whether a mount is of the file system of the inode.
func (i inode) onFilesystem(major, minor int) bool {
	return uint32(major) == i.dev>>20 && uint32(minor) == i.dev&(1<<20-1)
}

// placeOf finds an inode. A path that was found before the freeze is tried first after it.
func (d *Dumper) placeOf(s *snapshot, i inode) (place, error) {
	for _, o := range s.list {
		if i.is(o.fd, &o.stat) && o.external == "" {
			return place{id: o.id, vpid: o.holders[0].proc.VPID}, nil
		}
	}
	if p, ok := d.places[i]; ok && d.leadsTo(p.vpid, p.path, i) {
		return p, nil
	}
	p, err := d.findPath(s, i)
	if err == nil {
		d.places[i] = p
	}
	return p, err
}

// leadsTo tells whether a path of a process leads to an inode.
func (d *Dumper) leadsTo(vpid int, name string, i inode) bool {
	for _, p := range d.procs {
		if p.VPID != vpid {
			continue
		}
		root, err := d.rootOfPID(p.PID)
		if err != nil {
			return false
		}
		fd, err := openIn(root, name, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return false
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		found := err == nil && i.is(fd, &st)
		return errors.Join(err, unix.Close(fd)) == nil && found
	}
	return false
}

// findPath looks for an inode where the tree works, and then by its handle. Nothing is opened that is watched, since that
// would be an event.
func (d *Dumper) findPath(s *snapshot, i inode) (place, error) {
	seen := map[string]bool{}
	for _, p := range d.procs {
		root, ok := s.root[p.PID]
		if !ok {
			continue // it has no descriptors
		}
		mounts, err := procfs.Host.Mounts(p.PID)
		if err != nil {
			continue // it ended
		}
		try := func(name string) bool {
			name, ok := inRoot(name, root)
			key := strconv.Itoa(p.PID) + name
			if !ok || seen[key] {
				return false
			}
			seen[key] = true
			return d.leadsTo(p.VPID, name, i)
		}
		for _, name := range d.haunts(s, p.PID) {
			if try(name) {
				name, _ = inRoot(name, root)
				return place{vpid: p.VPID, path: name}, nil
			}
		}
		for _, m := range mounts {
			if !i.onFilesystem(m.Major, m.Minor) {
				continue
			}
			if d.leadsTo(p.VPID, m.Mountpoint, i) {
				return place{vpid: p.VPID, path: m.Mountpoint}, nil
			}
			if name, ok := d.byHandle(p.PID, m.Mountpoint, i); ok && try(name) {
				name, _ = inRoot(name, root)
				return place{vpid: p.VPID, path: name}, nil
			}
		}
	}
	return place{}, fmt.Errorf("what it watches (inode %d of device %d:%d) cannot be found by a path", i.ino, i.dev>>20, i.dev&(1<<20-1))
}

// haunts are the directories in which a process works, with all above them, as this program sees them.
func (d *Dumper) haunts(s *snapshot, pid int) []string {
	var out []string
	add := func(name string) {
		for strings.HasPrefix(name, "/") && name != "/" {
			out = append(out, name)
			name = path.Dir(name)
		}
	}
	for _, link := range []string{"cwd", "root", "exe"} {
		if name, err := procfs.Host.Link(fmt.Sprintf("%d/%s", pid, link)); err == nil {
			add(name)
		}
	}
	for _, o := range s.list {
		if f := o.format(); f == unix.S_IFREG || f == unix.S_IFDIR {
			add(o.path())
		}
	}
	return append(out, "/")
}

// byHandle asks the kernel for the path of a file handle. What it answers is only a hint: the file may have other names.
func (d *Dumper) byHandle(pid int, mountpoint string, i inode) (string, bool) {
	handle, err := hex.DecodeString(i.handle)
	if err != nil || len(handle) == 0 {
		return "", false
	}
	root, err := d.rootOfPID(pid)
	if err != nil {
		return "", false
	}
	at, err := openIn(root, mountpoint, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", false
	}
	defer func() { _ = unix.Close(at) }() // O_PATH: nothing is lost
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || d.isWatched(at, &st) {
		return "", false
	}
	dir, err := unix.Open("/proc/self/fd/"+strconv.Itoa(at), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(int32(i.handleType), handle), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", false
	}
	defer func() { _ = unix.Close(fd) }()
	name, err := procfs.Host.Link("self/fd/" + strconv.Itoa(fd))
	return name, err == nil && strings.HasPrefix(name, "/")
}

// isWatched tells whether the tree watches a file by inotify.
func (d *Dumper) isWatched(fd int, st *unix.Stat_t) bool {
	for _, o := range d.current.list {
		if !o.anon("inotify") {
			continue
		}
		info, err := o.fdinfo()
		if err != nil {
			return true
		}
		for _, w := range info.Inotify {
			if inodeOf(w).is(fd, st) {
				return true
			}
		}
	}
	return false
}

// A blob of places has 8 bytes, little-endian, for each watch of a record: the id of the description that is
// meant, 0 for a path, and the process at whose root the path begins.
func placeBlob(id uint32) string { return fmt.Sprintf("watch-%d", id) }

func appendPlace(blob []byte, p place) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(blob, p.id), uint32(p.vpid))
}

// placeIn reads the n-th place of a record.
func (r *Restorer) placeIn(id uint32, n int, name string) (place, error) {
	b := r.cp.Blobs[placeBlob(id)]
	if len(b) < 8*(n+1) {
		return place{}, fmt.Errorf("blob %s has %d bytes and no place %d", placeBlob(id), len(b), n)
	}
	b = b[8*n:]
	return place{id: binary.LittleEndian.Uint32(b), vpid: int(binary.LittleEndian.Uint32(b[4:])), path: name}, nil
}

// atPlace calls fn with a path of this program, below /proc/self/fd, that leads to a place.
func (r *Restorer) atPlace(p place, fn func(name string) error) error {
	if p.id != 0 {
		fd, err := r.descriptor(p.id)
		if err != nil {
			return err
		}
		return fn("/proc/self/fd/" + strconv.Itoa(fd))
	}
	root, err := r.rootOfVPID(p.vpid)
	if err != nil {
		return err
	}
	fd, err := openIn(root, p.path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return missing(p.path, err)
	}
	err = fn("/proc/self/fd/" + strconv.Itoa(fd))
	return errors.Join(err, unix.Close(fd))
}
