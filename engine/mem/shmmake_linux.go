package mem

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// ErrNoShm means that a tree has a /dev/shm of its own and its new surroundings have not.
var ErrNoShm = errors.New("the workload has no " + images.ShmDir + " of its own here")

// Shm is the /dev/shm that a tree has for itself, at the destination. Its files are Objects; directories and links are made here.
type Shm struct {
	dir    *os.File
	placed map[string]uint32 // object by name
	kinds  map[uint32]imagespb.Object_Kind
}

// OpenShm takes the /dev/shm of a process, which must be empty and its own (OwnShm).
func OpenShm(pid int) (*Shm, error) {
	own, err := OwnShm(pid)
	if err == nil && !own {
		err = ErrNoShm
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(procfs.Host.Path(pid, "root")+images.ShmDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s of pid %d: %w", images.ShmDir, pid, err)
	}
	return &Shm{dir: os.NewFile(uintptr(fd), images.ShmDir), placed: map[string]uint32{}, kinds: map[uint32]imagespb.Object_Kind{}}, nil
}

// Close lets go of it.
func (s *Shm) Close() error { return s.dir.Close() }

// NewFile makes a file that has no name yet.
func (s *Shm) NewFile(r *imagespb.Object) (*Object, error) {
	fd, err := unix.Openat(int(s.dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("object %d: a file for %s: %w", r.GetId(), r.GetPath(), err)
	}
	o := &Object{record: r, file: os.NewFile(uintptr(fd), r.GetPath())}
	if err := o.file.Truncate(int64(r.GetSize())); err != nil {
		return nil, errors.Join(fmt.Errorf("object %d: %w", r.GetId(), err), o.file.Close())
	}
	o.addWriter()
	return o, nil
}

// A wantedName is one that is not there yet.
type wantedName struct {
	name, aside string // aside: where the file is meanwhile
	record      *imagespb.Object
}

// Place gives the objects of a layout or checkpoint the names that they have, and takes all others away. file opens an object.
func (s *Shm) Place(records []*imagespb.Object, file func(id uint32) *os.File) error {
	var fresh []wantedName
	wanted := map[string]uint32{}
	for _, r := range records {
		for _, name := range r.GetNames() {
			if wanted[name] != 0 {
				return fmt.Errorf("%s is the name of two objects, %d and %d", name, wanted[name], r.GetId())
			}
			wanted[name] = r.GetId()
			if s.placed[name] != r.GetId() && name != images.ShmDir {
				fresh = append(fresh, wantedName{name: name, record: r})
			}
		}
	}
	// A file without any name could not get one again, so each first has one more.
	for i := range fresh {
		n := &fresh[i]
		if n.record.GetKind() != imagespb.Object_FILE {
			continue
		}
		f := file(n.record.GetId())
		if f == nil {
			return fmt.Errorf("%s is object %d, which is not there", n.name, n.record.GetId())
		}
		n.aside = fmt.Sprintf(".migrate-%d-%d", n.record.GetId(), i)
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), int(s.dir.Fd()), n.aside, unix.AT_SYMLINK_FOLLOW); err != nil {
			return fmt.Errorf("a name for %s: %w", n.name, err)
		}
	}
	if err := s.takeAway(wanted); err != nil {
		return err
	}
	slices.SortFunc(fresh, func(a, b wantedName) int { return cmp.Compare(len(a.name), len(b.name)) }) // directories before what is in them
	for _, n := range fresh {
		if err := s.make(n); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		s.placed[n.name], s.kinds[n.record.GetId()] = n.record.GetId(), n.record.GetKind()
	}
	return nil
}

// takeAway removes the names that are not wanted or lead to something else, those in directories before these.
func (s *Shm) takeAway(wanted map[string]uint32) error {
	var stale []string
	for name, id := range s.placed {
		if wanted[name] != id {
			stale = append(stale, name)
		}
	}
	slices.SortFunc(stale, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, name := range stale {
		flags := 0
		if s.kinds[s.placed[name]] == imagespb.Object_DIRECTORY {
			flags = unix.AT_REMOVEDIR
		}
		err := s.in(name, func(dir int, base string) error { return unix.Unlinkat(dir, base, flags) })
		if err != nil {
			return fmt.Errorf("removing %s: %w", name, err)
		}
		delete(s.placed, name)
	}
	return nil
}

func (s *Shm) make(n wantedName) error {
	return s.in(n.name, func(dir int, base string) error {
		switch n.record.GetKind() {
		case imagespb.Object_DIRECTORY:
			return unix.Mkdirat(dir, base, 0o700)
		case imagespb.Object_SYMLINK:
			return unix.Symlinkat(n.record.GetOther(), dir, base)
		}
		return unix.Renameat2(int(s.dir.Fd()), n.aside, dir, base, unix.RENAME_NOREPLACE)
	})
}

// in calls fn with the directory of a name, to which no link leads, and the rest of the name.
func (s *Shm) in(name string, fn func(dir int, base string) error) (err error) {
	rest := strings.TrimPrefix(name, images.ShmDir+"/")
	if path.Dir(rest) == "." {
		return fn(int(s.dir.Fd()), rest)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(int(s.dir.Fd()), path.Dir(rest), &how)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return fn(fd, path.Base(rest))
}

// Settle gives directories and links their owners, modes and times, when all is in place.
func (s *Shm) Settle(records []*imagespb.Object) error {
	for _, r := range records {
		for _, name := range r.GetNames() {
			if r.GetKind() == imagespb.Object_FILE {
				break // Object.Settle
			}
			if name == images.ShmDir {
				name = images.ShmDir + "/."
			}
			if err := s.in(name, func(dir int, base string) error { return settleEntry(dir, base, r) }); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func settleEntry(dir int, base string, r *imagespb.Object) error {
	if err := unix.Fchownat(dir, base, int(r.GetUid()), int(r.GetGid()), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	if r.GetKind() == imagespb.Object_DIRECTORY {
		if err := unix.Fchmodat(dir, base, r.GetMode()&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	times := []unix.Timespec{unix.NsecToTimespec(r.GetAtime()), unix.NsecToTimespec(r.GetMtime())}
	if err := unix.UtimesNanoAt(dir, base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}
