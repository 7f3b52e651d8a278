//go:build linux

package ns

import (
	"context"
	"errors"
	"fmt"

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
}

// kinds is filled in init, because its functions read it. They are restored in this order.
var kinds []kind

func init() {
	carried := func(flag int, link, about string, dump func(*dumper) error, restore func(*restorer) error) kind {
		return kind{Kind{link + " namespace", about, true}, flag, link, dump, restore}
	}
	kinds = []kind{
		carried(unix.CLONE_NEWUSER, "user", "its maps of user and group ids; the other namespaces belong to it", dumpUser, restoreUser),
		carried(unix.CLONE_NEWPID, "pid", "of which the root of the tree is the pid 1; the ids inside are kept, and that of the root outside, where it is free", dumpPID, nil),
		carried(unix.CLONE_NEWUTS, "uts", "host and domain name", dumpUTS, restoreUTS),
		carried(unix.CLONE_NEWIPC, "ipc", "its sysctls; System V semaphores and message queues with ids, values, contents and owners, not the times and process ids of their last use, and not what SEM_UNDO would undo; shared memory, attached or not; POSIX message queues are refused", dumpIPC, restoreIPC),
		carried(unix.CLONE_NEWNET, "net", aboutNet, dumpNet, restoreNet),
		carried(unix.CLONE_NEWNS, "mnt", aboutMounts, dumpMounts, restoreMounts),
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
	root    *engine.Process
	content bool // with the content of file systems and queues
	own     int
	kind    string // that is being read
	out     *images.Namespaces
	header  *imagespb.Namespaces
	found   []engine.Obstacle
}

func (d *dumper) refuse(where, reason, remedy string) {
	d.found = append(d.found, engine.Obstacle{PID: d.root.PID, Kind: d.kind, Where: where, Reason: reason, Remedy: remedy})
}

// ErrNotCarried means that a namespace has something that is not carried.
var ErrNotCarried = errors.New("it is not carried")

// Check names what of the namespaces own (CLONE_NEW*) of a tree is not carried. It changes nothing.
func Check(ctx context.Context, fs procfs.FS, root *engine.Process, own int) ([]engine.Obstacle, error) {
	d, err := read(ctx, fs, root, own, false)
	if err != nil {
		return nil, err
	}
	return d.found, nil
}

// Dump records the namespaces own (CLONE_NEW*) of a tree, which its root has for itself.
func Dump(ctx context.Context, fs procfs.FS, root *engine.Process, own int) (*images.Namespaces, *imagespb.Namespaces, error) {
	d, err := read(ctx, fs, root, own, true)
	if err != nil {
		return nil, nil, err
	}
	if len(d.found) > 0 {
		return nil, nil, fmt.Errorf("%v: %w", d.found[0], ErrNotCarried)
	}
	return d.out, d.header, nil
}

func read(ctx context.Context, fs procfs.FS, root *engine.Process, own int, content bool) (*dumper, error) {
	d := &dumper{ctx: ctx, fs: fs, root: root, content: content, own: own,
		out: &images.Namespaces{Trees: map[uint32][]byte{}}, header: &imagespb.Namespaces{Own: uint64(own), RootPid: uint32(root.PID)}}
	for _, k := range kinds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if own&k.flag == 0 {
			continue
		}
		d.kind = k.Name
		if !k.Carried {
			d.refuse("the process", "it is in a "+k.Name+" of its own", "")
			continue
		}
		if err := k.dump(d); err != nil {
			return nil, fmt.Errorf("%s of pid %d: %w", k.Name, root.PID, err)
		}
	}
	return d, nil
}

// restorer fills the namespaces of a skeleton's root.
type restorer struct {
	ctx    context.Context
	caller remote.Caller // runs calls in the root
	in     *images.Namespaces
	header *imagespb.Namespaces
}

// Restore fills the namespaces of a skeleton's root, which was born into new ones (Flags) and is alone in them.
func Restore(ctx context.Context, caller remote.Caller, in *images.Namespaces, header *imagespb.Namespaces) error {
	r := &restorer{ctx: ctx, caller: caller, in: in, header: header}
	for _, k := range kinds {
		if header.GetOwn()&uint64(k.flag) == 0 || k.restore == nil {
			continue
		}
		if err := k.restore(r); err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
	}
	return nil
}

// Flags are the CLONE_NEW* with which the root of a tree is to be born. They name only kinds that are known.
func Flags(header *imagespb.Namespaces) uint64 {
	flags := uint64(0)
	for _, k := range kinds {
		if k.Carried {
			flags |= header.GetOwn() & uint64(k.flag)
		}
	}
	return flags
}
