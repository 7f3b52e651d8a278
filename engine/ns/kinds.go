//go:build linux

package ns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// Kind is one kind of namespace, or of what is in one.
type Kind struct {
	Name    string // as in docs/coverage.md and in obstacles
	About   string // what it is and how far it is carried
	Carried bool
}

type kind struct {
	Kind
	flag int    // CLONE_NEW*
	link string // below /proc/PID/ns
	// dump records the namespace of the tree's root; what it cannot carry it refuses.
	dump func(d *dumper) error
	// restore fills the namespace, which the root of the skeleton is in, alone.
	restore func(r *restorer) error
	// inner: that of the root is not made by its birth, as the others are.
	inner bool
	// nests tells that processes of a tree may have one that its root is not in.
	nests bool
}

// nesting are the kinds (CLONE_NEW*) of which processes of a tree may have one that its root is not in.
const nesting = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

const nestingNote = "; on a dump to disk also those that only some processes of the tree are in"

// kinds is filled in init, because its functions read it. They are restored in this order.
var kinds []kind

func init() {
	carried := func(flag int, link, about string, dump func(*dumper) error, restore func(*restorer) error) kind {
		if flag&nesting != 0 {
			about += nestingNote
		}
		return kind{Kind: Kind{link + " namespace", about, true}, flag: flag, link: link, dump: dump, restore: restore, nests: flag&nesting != 0}
	}
	kinds = []kind{
		carried(unix.CLONE_NEWUSER, "user", "its maps of user and group ids; the other namespaces belong to it", dumpUser, restoreUser),
		carried(unix.CLONE_NEWPID, "pid", "of which the root of the tree is the pid 1; the ids inside are kept, and that of the root outside, where it is free", dumpPID, nil),
		carried(unix.CLONE_NEWUTS, "uts", "host and domain name", dumpUTS, restoreUTS),
		carried(unix.CLONE_NEWIPC, "ipc", "its sysctls; System V semaphores and message queues with ids, values, contents and owners, not the times and process ids of their last use; shared memory, attached or not; POSIX message queues are refused. That which an agent has made for a workload moves with it", dumpIPC, restoreIPC),
		carried(unix.CLONE_NEWNET, "net", aboutNet, dumpNet, nil),
		carried(unix.CLONE_NEWNS, "mnt", aboutMounts, dumpMounts, restoreMounts),
		{Kind: Kind{"time namespace", "in which only some processes of the tree are, or into which their children are to be born, on a dump to disk; that of the tree itself: its clocks go on, on any host", true},
			flag: unix.CLONE_NEWTIME, link: timeLink, dump: dumpTime, inner: true, nests: true},
		carried(unix.CLONE_NEWCGROUP, "cgroup", "the root of the tree is at its root, as it is in the cgroups where it is restored", dumpCgroupNS, nil),
	}
}

// Kinds lists the kinds, in the order in which they are restored.
func Kinds() []Kind {
	out := make([]Kind, 0, len(kinds))
	for _, k := range kinds {
		out = append(out, k.Kind)
	}
	return out
}

// Own returns which namespaces (CLONE_NEW*) the root of a tree has that are not those of this program.
func Own(fs procfs.FS, pid int) (int, error) {
	own := 0
	for _, k := range kinds {
		if k.inner {
			continue
		}
		theirs, err := fs.Link(pid, "ns", k.link)
		if err != nil {
			return 0, err
		}
		ours, err := procfs.Host.Link("self", "ns", k.link)
		if err != nil {
			return 0, err
		}
		if ours != theirs {
			own |= k.flag
		}
	}
	return own, nil
}

// dumper is one reading of the namespaces of a tree.
type dumper struct {
	ctx     context.Context
	fs      procfs.FS
	root    *engine.Process // in the namespace that is read
	first   *engine.Process // the root of the tree
	content bool            // with the content of file systems and queues
	own     int
	kind    string // that is being read
	mounts  *mountTable
	list    []*nested
	nets    []netHandle // all network namespaces of the tree
	nested  bool        // it is not the root's
	ownNet  bool        // the root has a network namespace for itself
	file    *os.File    // of a nested one in which no process is
	out     *images.Namespaces
	header  *imagespb.Namespaces
	found   []engine.Obstacle
}

func (d *dumper) refuse(where, reason, remedy string) {
	d.found = append(d.found, engine.Obstacle{PID: d.root.PID, Kind: d.kind, Where: where, Reason: reason, Remedy: remedy})
}

// ErrNotCarried means that a namespace has something that is not carried.
var ErrNotCarried = errors.New("it is not carried")

// Check names what of the namespaces of a tree is not carried: of those that its root, the first process, has for itself (own,
// CLONE_NEW*), and of those that only others are in. nets are handles of network namespaces in which the tree has sockets. It changes
// nothing.
func Check(ctx context.Context, fs procfs.FS, tree []*engine.Process, own int, nets []*os.File) ([]engine.Obstacle, error) {
	d, err := read(ctx, fs, tree, own, nets, false)
	if err != nil {
		return nil, err
	}
	return d.found, nil
}

// Dump records the namespaces that a tree has for itself. Without any, it returns nil.
func Dump(ctx context.Context, fs procfs.FS, tree []*engine.Process, own int, nets []*os.File) (*images.Namespaces, *imagespb.Namespaces, error) {
	d, err := read(ctx, fs, tree, own, nets, true)
	if err != nil {
		return nil, nil, err
	}
	if len(d.found) > 0 {
		return nil, nil, fmt.Errorf("%v: %w", d.found[0], ErrNotCarried)
	}
	if own == 0 && len(d.out.Nested) == 0 {
		return nil, nil, nil
	}
	return d.out, d.header, nil
}

func read(ctx context.Context, fs procfs.FS, tree []*engine.Process, own int, nets []*os.File, content bool) (_ *dumper, err error) {
	root := tree[0]
	d := &dumper{ctx: ctx, fs: fs, root: root, first: root, content: content, own: own, mounts: newMountTable(), ownNet: own&unix.CLONE_NEWNET != 0,
		out:    &images.Namespaces{Trees: map[uint32][]byte{}, Nested: map[uint32]*images.Namespaces{}},
		header: &imagespb.Namespaces{Own: uint64(own), RootPid: uint32(root.PID)}}
	mounted, err := d.mountedNets(tree)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range mounted {
			_ = f.Close() // a namespace's handle: nothing is lost
		}
	}()
	list, members, err := findNested(fs, tree, slices.Concat(nets, mounted))
	d.list = list
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.closeNets()) }()
	if err := d.openNets(list); err != nil {
		return nil, err
	}
	for _, k := range kinds {
		if own&k.flag == 0 {
			continue
		}
		if err := d.read(k); err != nil {
			return nil, err
		}
	}
	if err := d.readNested(tree, list, members); err != nil {
		return nil, err
	}
	if err := d.openDeleted(tree); err != nil {
		return nil, err
	}
	return d, d.mounts.marshal(d.out.Trees)
}

// read reads the namespace of a kind.
func (d *dumper) read(k kind) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	d.kind = k.Name
	if !k.Carried {
		d.refuse("the process", "it is in a "+k.Name+" of its own", "")
		return nil
	}
	if err := k.dump(d); err != nil {
		return fmt.Errorf("%s of pid %d: %w", k.Name, d.root.PID, err)
	}
	return nil
}

// restorer fills the namespaces of a process of a skeleton.
type restorer struct {
	ctx    context.Context
	caller remote.Caller // runs calls in the process
	in     *images.Namespaces
	header *imagespb.Namespaces
	mounts *mountMaker
	at     *os.File                                       // a handle of the nested namespace that is filled; nil: the process is in it
	handle func(id uint32, kind uint64) (*os.File, error) // of a namespace of the tree
}

// inside runs fn in the namespace that is filled.
func (r *restorer) inside(kind int, fn func() error) error {
	if r.at != nil {
		return InsideOf(r.at, kind, fn)
	}
	return Inside(r.caller.PID(), kind, fn)
}

// Flags are the CLONE_NEW* with which the root of a tree is to be born. They name only kinds that are known.
func Flags(header *imagespb.Namespaces) uint64 {
	flags := uint64(0)
	for _, k := range kinds {
		if k.Carried && !k.inner {
			flags |= header.GetOwn() & uint64(k.flag)
		}
	}
	return flags
}
