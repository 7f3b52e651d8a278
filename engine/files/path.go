//go:build linux

package files

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine"
)

// inRoot makes a path, as this program sees it, one that begins at a root directory.
func inRoot(path, root string) (string, bool) {
	if root == "/" {
		return path, strings.HasPrefix(path, "/")
	}
	rest, ok := strings.CutPrefix(path, root)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	if rest == "" {
		rest = "/"
	}
	return rest, true
}

// openIn opens a path inside a root directory, out of which no link leads (openat2(2)).
func openIn(root int, name string, flags uint64) (int, error) {
	name = strings.TrimLeft(name, "/")
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(root, name, &how)
		// EAGAIN: a rename elsewhere made the walk uncertain.
		if err == unix.EINTR || err == unix.EAGAIN && flags&unix.O_NONBLOCK == 0 {
			continue
		}
		return fd, err
	}
}

// openItself opens a path inside a root directory without following a link at its end, and without the trace that
// O_NOFOLLOW would leave in the flags of the description.
func openItself(root int, name string, flags uint64) (int, error) {
	if flags&unix.O_NOFOLLOW != 0 {
		return openIn(root, name, flags)
	}
	at, err := openIn(root, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(at), int(flags)|unix.O_CLOEXEC, 0)
	return fd, errors.Join(err, unix.Close(at))
}

// statIn is stat(2) of a path inside a root directory, without following a link at its end.
func statIn(root int, path string) (st unix.Stat_t, err error) {
	fd, err := openIn(root, path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return st, err
	}
	err = unix.Fstat(fd, &st)
	return st, errors.Join(err, unix.Close(fd))
}

// openRoot opens a directory that is to serve as a root.
func openRoot(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("root directory %s: %w", path, err)
	}
	return fd, nil
}

// A Needed is a file that a restore will open: the destination is asked for it before the tree is touched.
type Needed struct {
	Path string // from the root of the process
	Mode uint32 // st_mode
	Size uint64
	// Fixed tells that no process of the tree writes to it, so that its size must be the same already now.
	Fixed bool
}

// Precheck looks for files inside a root directory (a path of this program) and returns an obstacle for each that
// is missing or another one.
func Precheck(root string, files []Needed) []engine.Obstacle {
	var out []engine.Obstacle
	against := func(path string, err error) {
		out = append(out, engine.Obstacle{Kind: "file", Where: path, Reason: err.Error(), Remedy: "the file must be there with the same content and size"})
	}
	dir, err := openRoot(root)
	if err != nil {
		against(root, err)
		return out
	}
	for _, f := range files {
		st, err := statIn(dir, f.Path)
		if err != nil {
			against(f.Path, missing(f.Path, err))
			continue
		}
		size := uint64(st.Size)
		if !f.Fixed {
			size = f.Size
		}
		if err := compare(f.Path, st, f.Mode, size, &f.Size); err != nil {
			against(f.Path, err)
		}
	}
	if err := unix.Close(dir); err != nil {
		against(root, err)
	}
	return out
}

func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist here; put the file in place or on a file system that both hosts mount", path)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// compare tells whether a file is the one that was open at the source, as far as type and size tell.
func compare(path string, st unix.Stat_t, mode uint32, size uint64, want *uint64) error {
	if st.Mode&unix.S_IFMT != mode&unix.S_IFMT {
		return fmt.Errorf("%s is %s here and was %s at the source", path, typeName(st.Mode), typeName(mode))
	}
	if mode&unix.S_IFMT == unix.S_IFREG && want != nil && size != *want {
		return fmt.Errorf("%s has %d bytes here and had %d at the source; it is another file or another version of it", path, size, *want)
	}
	return nil
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "a device"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFLNK:
		return "a symbolic link"
	}
	return fmt.Sprintf("of type %o", mode&unix.S_IFMT)
}

// Needed lists what a restore will open by path, as the last Check has found it.
func (d *Dumper) Needed() []Needed { return d.needed }

// neededOf collects it from a snapshot.
func (d *Dumper) neededOf(s *snapshot) []Needed {
	written := map[FileID]bool{}
	for _, desc := range s.list {
		if desc.flags&unix.O_ACCMODE != unix.O_RDONLY {
			written[FileID{desc.stat.Dev, desc.stat.Ino}] = true
		}
	}
	seen := map[string]bool{}
	var out []Needed
	for _, desc := range s.list {
		if d.opts.Young != nil && !slices.ContainsFunc(desc.holders, func(h holder) bool { return !d.opts.Young(h.proc) }) {
			continue
		}
		if n, ok := d.neededService(desc); ok && !seen[n.Path] {
			seen[n.Path] = true
			out = append(out, n)
		}
		if desc.kind != kindRegular && desc.kind != kindDirectory && desc.kind != kindPath && desc.kind != kindFifo {
			continue
		}
		if desc.isNameless() && !desc.reachable {
			continue
		}
		name, ok := inRoot(desc.path(), desc.root)
		n := Needed{Path: name, Mode: desc.stat.Mode, Size: uint64(desc.stat.Size), Fixed: !written[FileID{desc.stat.Dev, desc.stat.Ino}]}
		if ok && !seen[n.Path] {
			seen[n.Path] = true
			out = append(out, n)
		}
	}
	return out
}

// neededService is the socket to which a datagram socket sends.
func (d *Dumper) neededService(desc *description) (Needed, bool) {
	if desc.kind != kindUnix {
		return Needed{}, false
	}
	u, err := d.diag.Unix(uint32(desc.stat.Ino))
	if err != nil {
		return Needed{}, false // Check has said so
	}
	name := d.service(desc, u)
	return Needed{Path: string(name), Mode: unix.S_IFSOCK}, len(name) > 0 && name[0] == '/'
}
