package volume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Unit is what is moved as one: a directory with all below it, or a single file.
type Unit struct {
	Dir  string `json:"dir"`            // absolute
	Name string `json:"name,omitempty"` // of a single file in Dir; empty: all of Dir
}

// UnitOf is that of a file, or of a directory, by its path.
func UnitOf(p string, dir bool) Unit {
	p = path.Clean(p)
	if dir {
		return Unit{Dir: p}
	}
	return Unit{Dir: path.Dir(p), Name: path.Base(p)}
}

// Path is where the unit is.
func (u Unit) Path() string { return path.Join(u.Dir, u.Name) }

// Holds says that a path is in the unit.
func (u Unit) Holds(p string) bool {
	return p == u.Path() || u.Name == "" && strings.HasPrefix(p, strings.TrimSuffix(u.Dir, "/")+"/")
}

// CheckDir refuses what cannot be a volume: the root, a system directory, a path that is not plain.
func CheckDir(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || len(p) > maxPath || strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("volume %q is not a plain absolute path", p)
	}
	for _, d := range []string{"/proc", "/sys", "/dev", "/run"} {
		if p == d || strings.HasPrefix(p, d+"/") && d != "/run" {
			return fmt.Errorf("volume %s: what is there belongs to the host", p)
		}
	}
	if slices.Contains([]string{"/", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/var", "/home", "/root", "/boot", "/tmp"}, p) {
		return fmt.Errorf("volume %s: a whole system directory is not moved; name the program's own directories", p)
	}
	return nil
}

// found is an entry of a walk.
type found struct {
	path string
	st   unix.Stat_t
}

func (f *found) kind() Type { return typeOf(f.st.Mode) }

// typeOf returns 0 for what is not carried: sockets, which their program binds anew.
func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return TypeFile
	case unix.S_IFDIR:
		return TypeDir
	case unix.S_IFLNK:
		return TypeSymlink
	case unix.S_IFIFO:
		return TypeFifo
	case unix.S_IFCHR:
		return TypeChar
	case unix.S_IFBLK:
		return TypeBlock
	}
	return 0
}

// errMount means that something is mounted below a unit's root.
var errMount = errors.New("another file system is mounted there; name it as a volume of its own")

// maxEntries bounds what is held of a unit in memory.
const maxEntries = 10 << 20

// walk lists a unit, directories before what is in them. Names that vanish meanwhile are left out: their removal has
// changed their directory, which the next walk sees.
func walk(root *os.File, u Unit) ([]found, error) {
	if u.Name != "" {
		var st unix.Stat_t
		err := unix.Fstatat(int(root.Fd()), u.Name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", u.Path(), err)
		}
		return []found{{u.Name, st}}, nil
	}
	w := walker{root: root}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", u.Dir, err)
	}
	w.dev = st.Dev
	w.list = append(w.list, found{"", st})
	for i := 0; i < len(w.list); i++ { // breadth first: what is appended is below what is read
		if w.list[i].kind() != TypeDir {
			continue
		}
		if err := w.dir(w.list[i].path); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(u.Dir, w.list[i].path), err)
		}
	}
	return w.list, nil
}

type walker struct {
	root *os.File
	dev  uint64
	list []found
}

func (w *walker) dir(name string) (err error) {
	fd, err := openBeneath(int(w.root.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if errors.Is(err, unix.EXDEV) {
		return errMount
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { err = errors.Join(err, f.Close()) }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	if name == "" {
		names = slices.DeleteFunc(names, isOurs)
	}
	if len(w.list)+len(names) > maxEntries {
		return fmt.Errorf("more than %d files", maxEntries)
	}
	at, prefix := len(w.list), name
	if prefix != "" {
		prefix += "/"
	}
	w.list = slices.Grow(w.list, len(names))[:at+len(names)]
	if err := statAll(fd, names, prefix, w.list[at:]); err != nil {
		return err
	}
	kept := w.list[:at]
	for _, f := range w.list[at:] {
		switch {
		case f.st.Mode == 0: // it has vanished
			continue
		case f.kind() == TypeDir && f.st.Dev != w.dev:
			return fmt.Errorf("%s: %w", path.Base(f.path), errMount)
		}
		kept = append(kept, f)
	}
	w.list = kept
	return nil
}

// statPart is how many files are worth a goroutine.
const statPart = 256

// statAll looks at names of an open directory. What has vanished gets the mode 0.
func statAll(dir int, names []string, prefix string, out []found) error {
	var group errgroup.Group
	group.SetLimit(workers())
	for from := 0; from < len(names); from += statPart {
		part := func() error {
			for i := from; i < min(from+statPart, len(names)); i++ {
				out[i] = found{path: prefix + names[i]}
				if err := unix.Fstatat(dir, names[i], &out[i].st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					if !errors.Is(err, unix.ENOENT) {
						return fmt.Errorf("%s: %w", names[i], err)
					}
					out[i].st.Mode = 0
				}
			}
			return nil
		}
		if len(names) <= statPart {
			return part()
		}
		group.Go(part)
	}
	return group.Wait()
}

// entryOf describes an entry. dir is an open directory that base is in.
func entryOf(dir int, base string, f *found) (Entry, error) {
	e := Entry{Path: f.path, Type: f.kind(), Mode: f.st.Mode & 0o7777, UID: f.st.Uid, GID: f.st.Gid,
		ATime: nsec(f.st.Atim), MTime: nsec(f.st.Mtim)}
	switch e.Type {
	case TypeFile:
		e.Size = uint64(f.st.Size)
	case TypeChar, TypeBlock:
		e.Device = f.st.Rdev
	case TypeSymlink:
		buf := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(dir, base, buf)
		if err != nil {
			return Entry{}, err
		}
		e.Target = string(buf[:n])
	}
	var err error
	p := byDescriptor(dir, base)
	e.Xattrs, err = readXattrs(func(b []byte) (int, error) { return unix.Llistxattr(p, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(p, name, b) })
	return e, err
}

// readXattrs reads extended attributes.
func readXattrs(list func(b []byte) (int, error), get func(name string, b []byte) (int, error)) ([]Xattr, error) {
	names, err := sized(list)
	if errors.Is(err, unix.EOPNOTSUPP) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing extended attributes: %w", err)
	}
	var out []Xattr
	for n := range bytes.SplitSeq(bytes.TrimSuffix(names, []byte{0}), []byte{0}) {
		name := string(n)
		if !carriesXattr(name) {
			continue
		}
		v, err := sized(func(b []byte) (int, error) { return get(name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", name, err)
		}
		out = append(out, Xattr{name, v})
	}
	slices.SortFunc(out, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// sized calls a function that fills a buffer and says how large it must be when it is given none.
func sized(f func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := f(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		b := make([]byte, n)
		n, err = f(b)
		if errors.Is(err, unix.ERANGE) { // it has grown meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// newest is the latest time of change of a unit, and how many entries and bytes it has.
func newest(u Unit) (ctime int64, entries int, bytes uint64, err error) {
	root, err := openRoot(u.Dir)
	if err != nil {
		return 0, 0, 0, err
	}
	list, err := walk(root, u)
	for i := range list {
		ctime = max(ctime, nsec(list[i].st.Ctim))
		bytes += uint64(list[i].st.Blocks) * 512
	}
	return ctime, len(list), bytes, errors.Join(err, root.Close())
}

// Measure counts the entries of a unit, and the bytes that they take on disk.
func Measure(u Unit) (entries int, bytes uint64, err error) {
	_, entries, bytes, err = newest(u)
	return entries, bytes, err
}
