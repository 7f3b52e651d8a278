package mem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// Objects are the memory and the files of one tree that no name reaches: shared anonymous memory, memfds, System V shared
// memory, deleted files and directories. Each has a small number and, if it has content, a space of its own (ObjectSpace),
// so that it is carried once, however many processes map it or have it open. Content is read by an open file of this
// program, which costs the processes nothing. No tracker sees all writes to it: in each round its pages are compared with what was
// sent.
type Objects struct {
	mu     sync.Mutex
	list   []*object // in the order of their numbers
	byFile map[objectKey]*object
	byMap  map[mapKey]*object
	byName map[objectKey]*object // those in shm
	last   uint32
	shm    *os.File // the tree's own /dev/shm; nil if it has none
	shmPID int      // of a process that has it
	links  []madeLink
	pid    int    // of a process of the tree
	root   string // of the tree's mount namespace, as a path of this program; "" for this program's own
}

// In says that the tree is in the mount namespace of a process.
func (o *Objects) In(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.root, o.pid = "", pid
	own, err := os.Readlink("/proc/self/ns/mnt")
	if its, err2 := os.Readlink(procfs.Host.Path(pid, "ns", "mnt")); err == nil && err2 == nil && its != own {
		o.root = procfs.Host.Path(pid, "root")
	}
}

// objectKey names an open file. The inode number of System V memory is its id, which may be that of other memory, too.
type objectKey struct {
	dev, inode uint64
	sysv       bool
}

// mapKey names what a mapping maps, by what maps tells of it.
type mapKey struct {
	major, minor uint32
	inode        uint64
	sysv         bool
}

// An object is held open, so that its inode number is no other's.
type object struct {
	file   *os.File
	record *imagespb.Object
	sent   *Digest
	used   bool // since Begin
	mapped bool // shared, by a process of the tree
	inMaps bool // mapped in any way: a running tree's skeleton needs it
}

// NewObjects returns an empty set.
func NewObjects() *Objects {
	return &Objects{byFile: map[objectKey]*object{}, byMap: map[mapKey]*object{}, byName: map[objectKey]*object{}}
}

// Begin begins a new description of the tree: an object that is not named again until Records is forgotten then.
func (o *Objects) Begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, x := range o.list {
		x.used, x.mapped, x.inMaps = false, false, false
	}
}

// addMapping finds or opens the object behind a mapping.
func (o *Objects) addMapping(pid int, m *procfs.Mapping) (*object, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := keyOf(m)
	x := o.byMap[key]
	if x == nil {
		var err error
		link := procfs.Host.Path(pid, "map_files", fmt.Sprintf("%x-%x", m.Start, m.End))
		// A private mapping of a file that another one hides is as good as one of a file without a name.
		if x, err = o.open(link, !m.Shared); err != nil {
			return nil, fmt.Errorf("opening what is mapped: %w", err)
		}
		o.byMap[key] = x
	}
	x.used, x.inMaps, x.mapped = true, true, x.mapped || m.Shared
	return x, nil
}

func keyOf(m *procfs.Mapping) mapKey {
	return mapKey{m.Major, m.Minor, m.Inode, strings.HasPrefix(m.Path, sysvName)}
}

// AddLink finds or opens the object that a link of /proc leads to, such as /proc/12/exe or /proc/self/fd/7. Its number is 1 or
// more. ErrReachable: it is none.
func (o *Objects) AddLink(link string) (uint32, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x, err := o.open(link, false)
	if err != nil {
		return 0, err
	}
	x.used = true
	return x.record.Id, nil
}

// AddDetached is AddLink of a file that has a name, on a file system that is mounted nowhere any more.
func (o *Objects) AddDetached(link string) (uint32, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x, err := o.open(link, true)
	if err != nil {
		return 0, err
	}
	x.used, x.record.Detached = true, true
	return x.record.Id, nil
}

// open finds or opens an object. hidden says that it may be a file that has a name. The lock must be held.
func (o *Objects) open(link string, hidden bool) (*object, error) {
	f, record, key, err := o.openObject(link, hidden)
	if err != nil {
		return nil, err
	}
	if x := o.byFile[key]; x != nil {
		return x, f.Close()
	}
	o.last++
	record.Id = o.last
	x := &object{file: f, record: record, sent: NewDigest(ObjectSpace(o.last))}
	o.list = append(o.list, x)
	o.byFile[key] = x
	return x, nil
}

// Records describes the objects as they are now, and forgets those that nothing has named since Begin. The next Round sends pages up
// to the sizes that are told here. final says that the tree is stopped, and its files get the names that a restore needs.
func (o *Objects) Records(final bool) ([]*imagespb.Object, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.forget(); err != nil {
		return nil, err
	}
	out := make([]*imagespb.Object, 0, len(o.list))
	for _, x := range o.list {
		before := x.record.Size
		if err := x.describe(o.pid, final); err != nil {
			return nil, fmt.Errorf("%s: %w", x, err)
		}
		if x.record.Kind == imagespb.Object_LINK {
			if err := o.findOther(x, final || x.inMaps); err != nil {
				return nil, fmt.Errorf("%s: %w", x, err)
			}
			if x.record.Other == "" {
				continue // a descriptor's, which is not needed yet
			}
		}
		if x.record.Size < before {
			x.sent.Remove(Range{pageUp(x.record.Size), 1 << 62})
		}
		out = append(out, proto.CloneOf(x.record))
	}
	return out, nil
}

// forget closes the objects that are not used any more. The lock must be held.
func (o *Objects) forget() error {
	gone := func(x *object) bool { return !x.used }
	maps.DeleteFunc(o.byFile, func(_ objectKey, x *object) bool { return gone(x) })
	maps.DeleteFunc(o.byMap, func(_ mapKey, x *object) bool { return gone(x) })
	maps.DeleteFunc(o.byName, func(_ objectKey, x *object) bool { return gone(x) })
	var errs []error
	for _, x := range o.list {
		if gone(x) {
			errs = append(errs, x.file.Close())
		}
	}
	o.list = slices.DeleteFunc(o.list, gone)
	return errors.Join(errs...)
}

func pageUp(n uint64) uint64 { return (n + PageSize - 1) &^ (PageSize - 1) }

func (x *object) String() string {
	return fmt.Sprintf("object %d (%s)", x.record.Id, x.file.Name())
}

// Outside names the mappings of the objects by processes that are not in the tree: they would no longer share the memory.
// It reads the mappings of every process of this host that it may read, unless there are no objects.
func (o *Objects) Outside(ctx context.Context, inTree func(pid int) bool) ([]engine.Obstacle, error) {
	o.mu.Lock()
	known := maps.Clone(o.byMap)
	o.mu.Unlock()
	maps.DeleteFunc(known, func(_ mapKey, x *object) bool { return !x.mapped })
	if len(known) == 0 {
		return nil, nil
	}
	pids, err := procfs.Host.PIDs()
	if err != nil {
		return nil, err
	}
	var out []engine.Obstacle
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if inTree(pid) {
			continue
		}
		mapped, err := procfs.Host.Maps(pid)
		if err != nil && !errors.Is(err, procfs.ErrGone) && !errors.Is(err, os.ErrPermission) {
			return nil, err
		}
		for _, m := range mapped {
			if x := known[keyOf(&m)]; x != nil && m.Shared && (m.Prot&procfs.ProtWrite != 0 || !x.isFile()) {
				out = append(out, engine.Obstacle{PID: pid, Kind: refuseOutside.Kind, Where: m.String(), Reason: refuseOutside.About,
					Remedy: "move that process with it, by naming a common ancestor, or end it"})
			}
		}
	}
	return out, nil
}

// Sum is the hash over all pages of all objects that were sent.
func (o *Objects) Sum() Sum {
	o.mu.Lock()
	defer o.mu.Unlock()
	var sum Sum
	for _, x := range o.list {
		sum = sum.Add(x.sent.Sum())
	}
	return sum
}

// Round sends the pages of all objects that differ from what was sent before.
func (o *Objects) Round(ctx context.Context, sink Sink) (stats RoundStats, err error) {
	start := time.Now()
	o.mu.Lock()
	objects := slices.Clone(o.list)
	o.mu.Unlock()
	for _, x := range objects {
		if !hasContent(x.record) {
			continue
		}
		if err := x.round(ctx, ObjectSpace(x.record.Id), sink, &stats); err != nil {
			return stats, fmt.Errorf("%s: %w", x, err)
		}
	}
	stats.Duration = time.Since(start)
	return stats, nil
}

// round sends the populated pages of an object that changed, and zeros for those that are no longer populated.
func (x *object) round(ctx context.Context, space uint32, sink Sink, stats *RoundStats) error {
	populated, err := x.content()
	if err != nil {
		return err
	}
	stats.Ranges += uint64(len(populated))
	at := uint64(0)
	for _, r := range append(populated, Range{1 << 62, 1 << 62}) {
		for _, gone := range x.sent.known(Range{at, r.Start}) {
			x.sent.Remove(gone)
			stats.ZeroPages += gone.Pages()
			if err := sink.Send(ctx, space, []Run{{gone.Start, uint32(gone.Pages()), true}}, nil); err != nil {
				return err
			}
		}
		for a := r.Start; a < r.End; a += BatchBytes {
			if err := x.batch(ctx, space, Range{a, min(a+BatchBytes, r.End)}, sink, stats); err != nil {
				return err
			}
		}
		at = r.End
	}
	return nil
}

// batch sends the pages of r that changed.
func (x *object) batch(ctx context.Context, space uint32, r Range, sink Sink, stats *RoundStats) error {
	buf := sink.Buffer()[:r.Size()]
	n, err := x.readAt(buf, int64(r.Start))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// What lies beyond the size that was told is for the next round.
	n = int(min(uint64(n), x.record.Size-min(x.record.Size, r.Start)))
	clear(buf[n:])
	c := chooser{sent: x.sent}
	for i := range r.Pages() {
		c.addrs[i] = r.Start + i*PageSize
		c.hashes[i] = pageHash(buf[i*PageSize:][:PageSize])
	}
	runs, kept := c.choose(buf, int(r.Pages()), func(uint64) bool { return false })
	stats.Add(c.stats)
	return sink.Send(ctx, space, runs, buf[:kept*PageSize])
}

// extentsOf lists the populated ranges of the first size bytes of a file, widened to pages.
func extentsOf(f *os.File, size uint64) ([]Range, error) {
	var out []Range
	for at := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && uint64(start) >= size {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("SEEK_DATA at %d: %w", at, err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("SEEK_HOLE at %d: %w", start, err)
		}
		r := Range{uint64(start) &^ (PageSize - 1), pageUp(min(uint64(end), size))}
		if n := len(out); n > 0 && out[n-1].End >= r.Start { // blocks smaller than pages
			out[n-1].End = r.End
		} else {
			out = append(out, r)
		}
		at = end
	}
}

// Close lets go of the objects and takes away the names that were made for them.
func (o *Objects) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	errs := []error{o.unlink()}
	for _, x := range o.list {
		errs = append(errs, x.file.Close())
	}
	if o.shm != nil {
		errs = append(errs, o.shm.Close())
		o.shm = nil
	}
	o.list, o.byFile, o.byMap, o.byName = nil, map[objectKey]*object{}, map[mapKey]*object{}, map[objectKey]*object{}
	return errors.Join(errs...)
}
