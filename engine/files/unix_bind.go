//go:build linux

package files

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/sock"
)

// A unixPlace is a socket file that was made here. If there was a file before, such as that of the source on a shared file
// system, it stands aside until the end is known. The file of a socket that had none left at the source gets a name of its
// own until then, by which others connect.
type unixPlace struct {
	dir        int    // descriptor of the directory
	path       string // of the directory, from the root of the mount namespace
	base, side string
	gone       bool // it goes away at the end
}

// madeDir is a directory that was made for socket files whose own is gone.
type madeDir struct {
	parent int
	name   string
}

// chroot is the root directory of a process, which it gets only after its descriptors.
func (r *Restorer) chroot(vpid int) string {
	p := r.cp.Process(uint32(vpid))
	if p == nil || p.FS == nil {
		return ""
	}
	for _, f := range r.cp.Files {
		if f.GetId() == p.FS.GetRootId() && f.GetReg() != nil {
			return strings.TrimSuffix(path.Clean(f.GetReg().GetName()), "/")
		}
	}
	return ""
}

// placeOf is where the name of a socket means what it meant to its process; dir is from the root of the mount namespace, "" for
// the process's own root directory.
func (r *Restorer) placeOf(e *fdinfo.FileEntry, dir string) sock.Place {
	vpid := r.homes[e.GetId()].vpid
	p := sock.Place{NetNS: r.netNS(e.GetId()), Root: r.rootPath(vpid)}
	if dir == "" {
		p.Root = strings.TrimSuffix(p.Root, "/") + r.chroot(vpid)
		if p.Root == "" {
			p.Root = "/"
		}
	}
	p.Dir = dir
	return p
}

// address is how others connect to the socket: its directory, and its name there or its abstract name.
func (s *unixSock) address() (dir string, name []byte) {
	if s.place == nil {
		return "", s.GetName()
	}
	return s.place.path, []byte(s.place.base)
}

// bind gives a socket its name, and its file the place, owner and mode that it had.
func (p *unixPlan) bind(s *unixSock, fd int) error {
	r, name := p.r, s.GetName()
	if len(name) == 0 {
		return nil
	}
	if name[0] == 0 {
		return sock.In(sock.Place{NetNS: r.netNS(s.GetId())}, func() error { return sock.BindUnix(fd, name) })
	}
	full, err := p.fullPath(s)
	if err != nil {
		return err
	}
	place, err := p.clear(s, full)
	if err != nil {
		return err
	}
	r.bound = append(r.bound, place)
	s.place = place
	in := r.placeOf(s.entry, "")
	if !path.IsAbs(string(name)) {
		in.Dir = path.Join("/", s.GetNameDir())
	}
	if err := sock.In(in, func() error { return sock.BindUnix(fd, name) }); err != nil {
		return err
	}
	if f := s.GetFilePerms(); f != nil {
		if err := unix.Fchownat(place.dir, place.base, int(f.GetUid()), int(f.GetGid()), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("owner of %s: %w", full, err)
		}
		if err := unix.Fchmodat(place.dir, place.base, f.GetMode()&0o7777, 0); err != nil {
			return fmt.Errorf("mode of %s: %w", full, err)
		}
	}
	return p.settlePlace(s, full)
}

// fullPath is where a name leads to. A relative one is relative to a directory that is found, or made, so that it leads to
// where the file was.
func (p *unixPlan) fullPath(s *unixSock) (string, error) {
	name := path.Clean(string(s.GetName()))
	if path.IsAbs(name) {
		return name, nil
	}
	if s.NameDir != nil && s.state.Path == "" || path.Join("/", s.GetNameDir(), name) == s.state.Path {
		return path.Join("/", s.GetNameDir(), name), nil
	}
	root, err := p.r.rootOf(s.entry.GetId())
	if err != nil {
		return "", err
	}
	below, ups := name, 0
	for strings.HasPrefix(below, "../") {
		below, ups = below[3:], ups+1
	}
	dir, ok := strings.CutSuffix(s.state.Path, "/"+below)
	if !ok {
		dir = path.Dir(s.state.Path) // it was renamed
	}
	for range ups {
		dir = path.Join("/", dir, p.hidden("d"))
	}
	s.NameDir = &dir
	at, err := p.makeDirs(root, p.r.chroot(p.r.homes[s.entry.GetId()].vpid)+dir)
	if err != nil {
		return "", fmt.Errorf("a directory for the name %q: %w", s.GetName(), err)
	}
	return path.Join(dir, name), unix.Close(at)
}

// clear opens the directory in which a name is bound, and sets aside what has the name.
func (p *unixPlan) clear(s *unixSock, full string) (*unixPlace, error) {
	place := &unixPlace{path: path.Dir(p.r.chroot(p.r.homes[s.entry.GetId()].vpid) + full), base: path.Base(full), gone: s.GetDeleted()}
	root, err := p.r.rootOf(s.entry.GetId())
	if err != nil {
		return nil, err
	}
	place.dir, err = openIn(root, place.path, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) && (s.GetDeleted() || s.state.Path != full) {
		place.dir, err = p.makeDirs(root, place.path)
	}
	if err != nil {
		return nil, missing(path.Dir(full), err)
	}
	var st unix.Stat_t
	if unix.Fstatat(place.dir, place.base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		place.side = p.hidden(place.base)
		if err := unix.Renameat(place.dir, place.base, place.dir, place.side); err != nil {
			return nil, errors.Join(fmt.Errorf("set %s aside: %w", full, err), unix.Close(place.dir))
		}
	}
	return place, nil
}

// hidden is a name that nobody uses.
func (p *unixPlan) hidden(base string) string {
	p.fresh++
	return fmt.Sprintf(".%.200s.migrate-%d-%d", base, os.Getpid(), p.fresh)
}

// settlePlace moves the file of a bound socket to where it was at the source, and puts back what was set aside for a file that
// has no name there any more.
func (p *unixPlan) settlePlace(s *unixSock, full string) error {
	place := s.place
	var to string
	switch {
	case s.GetDeleted():
		to = p.hidden(place.base)
	case s.state.Path != "" && s.state.Path != full:
		to = path.Base(s.state.Path) // it was renamed
	default:
		return nil
	}
	from, dir := place.base, place.dir
	if at := path.Dir(p.r.chroot(p.r.homes[s.entry.GetId()].vpid) + s.state.Path); at != place.path && !s.GetDeleted() {
		root, err := p.r.rootOf(s.entry.GetId())
		if err != nil {
			return err
		}
		if place.dir, err = openIn(root, at, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			place.dir = dir
			return missing(at, err)
		}
		place.path = at
		defer func() { _ = unix.Close(dir) }() // of O_PATH: nothing is lost
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if !s.GetDeleted() {
		flags = 0
	}
	if err := unix.Renameat2(dir, from, place.dir, to, flags); err != nil {
		return fmt.Errorf("rename the socket file %s to %s: %w", full, to, err)
	}
	place.base = to
	if place.side == "" {
		return nil
	}
	side := place.side
	place.side = ""
	return unix.Renameat(dir, side, dir, from)
}

// makeDirs makes a directory with those above it, to be removed at the end.
func (p *unixPlan) makeDirs(root int, dir string) (int, error) {
	at, err := openIn(root, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		err := unix.Mkdirat(at, name, 0o700)
		if err == nil {
			parent, e := unix.FcntlInt(uintptr(at), unix.F_DUPFD_CLOEXEC, 0)
			if e != nil {
				return -1, errors.Join(e, unix.Close(at))
			}
			p.r.dirs = append(p.r.dirs, madeDir{parent, name})
		} else if !errors.Is(err, unix.EEXIST) {
			return -1, errors.Join(err, unix.Close(at))
		}
		next, err := openIn(at, name, unix.O_PATH|unix.O_DIRECTORY)
		if err = errors.Join(err, unix.Close(at)); err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// keepPaths removes the files that stand aside, and the new ones of sockets whose file was deleted at the source.
func (r *Restorer) keepPaths() error {
	errs := []error{r.swapMounts(true)}
	for _, b := range r.bound {
		if b.gone {
			errs = append(errs, unix.Unlinkat(b.dir, b.base, 0))
		}
		if b.side != "" {
			errs = append(errs, unix.Unlinkat(b.dir, b.side, 0))
		}
		errs = append(errs, unix.Close(b.dir))
	}
	r.bound = nil
	return errors.Join(append(errs, r.removeDirs())...)
}

// swapMounts lets mounts of socket files, of which this program has made new ones, show the new ones: in the mount namespace of this
// program, if processes of the tree are in it, or in those that the tree has for itself and that nobody misses if it fails.
func (r *Restorer) swapMounts(ours bool) error {
	var swaps []ns.Swap
	for _, b := range r.bound {
		if b.side != "" && !b.gone {
			swaps = append(swaps, ns.Swap{Dir: b.dir, Base: b.base, Aside: b.side})
		}
	}
	if len(swaps) == 0 {
		return nil
	}
	mine, err := procfs.Host.Link("self", "ns", "mnt")
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for _, p := range r.cp.Processes {
		pid, err := r.pid(int(p.PID))
		if err != nil {
			return err
		}
		link, err := procfs.Host.Link(pid, "ns", "mnt")
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return err
		}
		if done[link] || (link == mine) != ours {
			continue
		}
		done[link] = true
		if err := ns.SwapMounts(pid, swaps); err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
	}
	return nil
}

// putBackPaths undoes bind.
func (r *Restorer) putBackPaths() error {
	var errs []error
	for _, b := range slices.Backward(r.bound) {
		if b.side != "" {
			errs = append(errs, unix.Renameat(b.dir, b.side, b.dir, b.base))
		} else if err := unix.Unlinkat(b.dir, b.base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
		errs = append(errs, unix.Close(b.dir))
	}
	r.bound = nil
	return errors.Join(append(errs, r.removeDirs())...)
}

func (r *Restorer) removeDirs() error {
	var errs []error
	for _, d := range slices.Backward(r.dirs) {
		errs = append(errs, unix.Unlinkat(d.parent, d.name, unix.AT_REMOVEDIR), unix.Close(d.parent))
	}
	r.dirs = nil
	return errors.Join(errs...)
}
