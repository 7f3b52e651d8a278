//go:build linux

package files

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/procfs"
)

// A description is one open file description of the tree, held by a duplicate.
type description struct {
	id      uint32
	fd      int // in this program
	stat    unix.Stat_t
	flags   int    // F_GETFL
	fstype  int64  // magic number of its file system, 0 until asked for
	link    string // what /proc/PID/fd/N points to, "" until asked for
	kind    *Kind
	holders []holder // in the order of the processes, then of the numbers
	sock    *socketID
	file    *os.File // owns fd once a package that wants files has asked for it
	// external is the name that the agent has given to a file of its own; "" for all others.
	external string
	// object is its number in Options.Objects; reachable says that its name only looks like that of a deleted file.
	object    uint32
	reachable bool
	// detached says that its name is on a file system that is mounted nowhere any more.
	detached bool
	root     string          // root directory of the first holder, or of via, as this program sees it
	via      *engine.Process // in the mount namespace where the file is, which is not that of the first holder; nil if it is
	queue    []unixPacket    // of a unix socket of a stopped tree
	unseen   bool            // what waits in it has not been read
}

// A holder is one descriptor.
type holder struct {
	proc *engine.Process
	fd   int
}

// socketID is what a socket is made of.
type socketID struct{ domain, typ, proto int }

func (d *description) where() string {
	h := d.holders[0]
	return fmt.Sprintf("pid %d, %s", h.proc.PID, h.where())
}

func (h holder) where() string {
	if h.fd == inFlight {
		return "a descriptor in flight"
	}
	return fmt.Sprintf("fd %d", h.fd)
}

func (d *description) format() uint32 { return d.stat.Mode & unix.S_IFMT }

// path is the text of the link, as this program sees the file.
func (d *description) path() string {
	if d.link == "" {
		d.link, _ = os.Readlink("/proc/self/fd/" + strconv.Itoa(d.fd))
	}
	return d.link
}

// renamed tells whether the file was removed or got another name since path was asked.
func (d *description) renamed() bool {
	now, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(d.fd))
	return err == nil && now != d.path()
}

// magic is the type of the file system (statfs(2)).
func (d *description) magic() int64 {
	if d.fstype == 0 {
		var s unix.Statfs_t
		if unix.Fstatfs(d.fd, &s) == nil {
			d.fstype = int64(s.Type)
		}
	}
	return d.fstype
}

func (d *description) anon(name string) bool {
	return d.anonymous() && d.path() == "anon_inode:"+name
}

// anonymous tells whether it has no inode of its own (fs/anon_inodes.c).
func (d *description) anonymous() bool { return d.format() == 0 }

// socket is what the socket is made of; nil if it is no socket.
func (d *description) socket() *socketID {
	if d.sock == nil && d.format() == unix.S_IFSOCK {
		s := &socketID{}
		for _, x := range []struct {
			opt int
			to  *int
		}{{unix.SO_DOMAIN, &s.domain}, {unix.SO_TYPE, &s.typ}, {unix.SO_PROTOCOL, &s.proto}} {
			v, err := unix.GetsockoptInt(d.fd, unix.SOL_SOCKET, x.opt)
			if err != nil {
				return nil
			}
			*x.to = v
		}
		d.sock = s
	}
	return d.sock
}

// osFile hands the duplicate to the os package, which owns it from then on.
func (d *description) osFile() *os.File {
	if d.file == nil {
		d.file = os.NewFile(uintptr(d.fd), d.where())
	}
	return d.file
}

func (d *description) close() error {
	var err error
	switch {
	case d.file != nil:
		err = d.file.Close()
	case d.fd >= 0:
		err = unix.Close(d.fd)
	}
	d.fd = -1
	return err
}

// fdinfo reads /proc/self/fdinfo of the duplicate, which tells of the description what that of its owner tells, except
// locks that belong to processes.
func (d *description) fdinfo() (*procfs.FDInfo, error) {
	i, err := procfs.FS("/proc").FDInfo(os.Getpid(), d.fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.where(), err)
	}
	return i, nil
}

// A snapshot is all descriptions of a tree at one time.
type snapshot struct {
	list  []*description
	byFD  map[fdKey]*description
	roots map[int]int    // root directories that were opened meanwhile, by pid
	root  map[int]string // their names, as this program sees them
	// numbers are the open descriptors in ascending order, by pid.
	numbers map[int][]int
	regular int                     // descriptors of regular files
	ttys    []*terminal             // nil until asked for
	sockets map[uint32]*description // by inode number; nil until asked for
	waiting *bool                   // what mayBeInFlight has found
}

type fdKey struct{ pid, fd int }

func (s *snapshot) close() error {
	var errs []error
	for _, d := range s.list {
		if err := d.close(); err != nil {
			errs = append(errs, fmt.Errorf("close the duplicate of %s: %w", d.where(), err))
		}
	}
	s.list = nil
	for pid, fd := range s.roots {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close the root directory of process %d: %w", pid, err))
		}
	}
	s.roots = map[int]int{}
	return errors.Join(errs...)
}

// groupKey holds what descriptors of one description have in common without asking kcmp(2).
type groupKey struct {
	dev, ino uint64
	flags    int
}

// collector groups duplicates into descriptions.
type collector struct {
	*snapshot
	groups map[groupKey][]*description // in kcmp's order
	self   int
	nextID uint32
}

func newCollector(firstID uint32) *collector {
	return &collector{snapshot: &snapshot{byFD: map[fdKey]*description{}, roots: map[int]int{}, root: map[int]string{}, numbers: map[int][]int{}}, groups: map[groupKey][]*description{}, self: os.Getpid(), nextID: firstID}
}

// add takes a duplicate of a descriptor. It closes it when the description is known already.
func (c *collector) add(fd int, h holder, root string) error {
	_, err := c.addDuplicate(fd, h, root)
	return err
}

func (c *collector) addDuplicate(fd int, h holder, root string) (*description, error) {
	d := &description{fd: fd, holders: []holder{h}, root: root}
	err := unix.Fstat(fd, &d.stat)
	if errors.Is(err, unix.ENOENT) { // /proc/PID/fd of a process that has ended
		err = d.statEnded()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", d.where(), err), unix.Close(fd))
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: F_GETFL: %w", d.where(), err), unix.Close(fd))
	}
	d.flags = flags
	key := groupKey{d.stat.Dev, d.stat.Ino, flags}
	group := c.groups[key]
	at, same, err := c.find(group, fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", d.where(), err), unix.Close(fd))
	}
	if same {
		known := group[at]
		if h.fd != inFlight {
			known.holders = append(known.holders, h)
			c.byFD[fdKey{h.proc.PID, h.fd}] = known
		}
		return known, unix.Close(fd)
	}
	d.id = c.nextID
	c.nextID++
	group = append(group, nil)
	copy(group[at+1:], group[at:])
	group[at] = d
	c.groups[key] = group
	c.list = append(c.list, d)
	if h.fd != inFlight {
		c.byFD[fdKey{h.proc.PID, h.fd}] = d
	}
	return d, nil
}

// find looks a duplicate up in a sorted group. The order of kcmp(2) is arbitrary and total.
func (c *collector) find(group []*description, fd int) (at int, same bool, err error) {
	compare := func(i int) int {
		r, e := kcmp(c.self, c.self, kcmpFile, uint64(group[i].fd), uint64(fd))
		if e != nil {
			err = fmt.Errorf("kcmp (CONFIG_KCMP is needed): %w", e)
		}
		return r
	}
	at = sort.Search(len(group), func(i int) bool { return compare(i) != 1 }) // 1: group[i] comes before fd
	same = at < len(group) && compare(at) == 0
	return at, same, err
}

// isDeleted tells whether the file has no name any more.
func (d *description) isDeleted() bool {
	return d.stat.Nlink == 0 || strings.HasSuffix(d.path(), " (deleted)")
}

// statEnded fills in what can be known of a directory of /proc that says that its process has ended.
func (d *description) statEnded() error {
	if d.magic() != unix.PROC_SUPER_MAGIC {
		return unix.ENOENT
	}
	i, err := d.fdinfo()
	if err != nil {
		return err
	}
	d.stat = unix.Stat_t{Ino: i.Ino, Mode: unix.S_IFDIR | 0o500, Nlink: 1}
	return nil
}
