//go:build linux

package ns

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// A nested namespace is one that processes of a tree are in and its root is not, or that the tree has by a descriptor alone.
type nested struct {
	id   uint32
	kind *kind
	proc *engine.Process // the first that is in it; nil if none is
	file *os.File        // a handle, if no process is in it
	ino  uint64
}

// Nests tells whether a kind of namespace, by its link below /proc/PID/ns, may differ inside a tree.
func Nests(link string) bool {
	return slices.ContainsFunc(kinds, func(k kind) bool { return k.link == link && k.nests })
}

// Differ names the processes whose namespaces are not those of the root, where that is carried.
func Differ(fs procfs.FS, tree []*engine.Process) ([]engine.Obstacle, error) {
	list, _, err := findNested(fs, tree, nil)
	var out []engine.Obstacle
	for _, n := range list {
		out = append(out, engine.Obstacle{PID: n.proc.PID, Kind: "namespaces", Where: n.kind.Name,
			Reason: fmt.Sprintf("it is not the one of pid %d, the root of the tree, which is carried by migrate dump and restore alone", tree[0].PID)})
	}
	return out, err
}

// Left names the namespaces of its surroundings that a tree has left: what it has made in others in their place does not move with it.
// Init is the pid 1 of the surroundings.
func Left(fs procfs.FS, init int, root *engine.Process) ([]engine.Obstacle, error) {
	var out []engine.Obstacle
	for _, k := range kinds {
		there, err := fs.Link(init, "ns", k.link)
		if errors.Is(err, procfs.ErrGone) {
			continue // a kernel without
		}
		if err != nil {
			return nil, err
		}
		here, err := fs.Link(root.PID, "ns", k.link)
		if err != nil && !errors.Is(err, procfs.ErrGone) {
			return nil, err
		}
		if err == nil && here != there {
			out = append(out, engine.Obstacle{PID: root.PID, Kind: "namespaces", Where: k.Name,
				Reason: "it is not the one in which the workload was started, and is carried by migrate dump and restore alone"})
		}
	}
	return out, nil
}

// findNested lists the nested namespaces of a tree and who is in them. nets are handles of network namespaces.
func findNested(fs procfs.FS, tree []*engine.Process, nets []*os.File) (list []*nested, members []*imagespb.ProcessNamespaces, err error) {
	in := map[*engine.Process]*imagespb.ProcessNamespaces{}
	for i := range kinds {
		k := &kinds[i]
		if !k.nests || k.flag == unix.CLONE_NEWTIME { // see timeFinder
			continue
		}
		base, err := fs.Link(tree[0].PID, "ns", k.link)
		if errors.Is(err, procfs.ErrGone) {
			continue // a kernel without
		}
		if err != nil {
			return nil, nil, err
		}
		ids := map[string]uint32{}
		for _, p := range tree[1:] {
			link, err := fs.Link(p.PID, "ns", k.link)
			if errors.Is(err, procfs.ErrGone) || err == nil && link == base {
				continue // a zombie has left its namespaces
			}
			if err != nil {
				return nil, nil, err
			}
			if ids[link] == 0 {
				ids[link] = uint32(len(list)) + 2
				ino, err := nsNumber(link)
				if err != nil {
					return nil, nil, err
				}
				list = append(list, &nested{id: ids[link], kind: k, proc: p, ino: ino})
			}
			if in[p] == nil {
				in[p] = &imagespb.ProcessNamespaces{Pid: uint32(p.VPID)}
				members = append(members, in[p])
			}
			in[p].Ids = append(in[p].Ids, ids[link])
		}
	}
	if list, err = addHandles(fs, tree[0], list, nets); err != nil {
		return nil, nil, err
	}
	t := &timeFinder{fs: fs, list: list, in: func(p *engine.Process) *imagespb.ProcessNamespaces {
		if in[p] == nil {
			in[p] = &imagespb.ProcessNamespaces{Pid: uint32(p.VPID)}
			members = append(members, in[p])
		}
		return in[p]
	}}
	err = t.find(tree)
	return t.list, members, err
}

// nsNumber is the inode number in a text such as "net:[4026531840]".
func nsNumber(link string) (uint64, error) {
	_, text, _ := strings.Cut(link, ":[")
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the link %q to a namespace: %w", link, err)
	}
	return n, nil
}

// addHandles adds the network namespaces that no process of the tree is in, but descriptors lead to. That of this program is none of
// the tree's.
func addHandles(fs procfs.FS, root *engine.Process, list []*nested, nets []*os.File) ([]*nested, error) {
	if len(nets) == 0 {
		return list, nil
	}
	var base, own unix.Stat_t
	if err := errors.Join(unix.Stat(fs.Path(root.PID, "ns", "net"), &base), unix.Stat("/proc/self/ns/net", &own)); err != nil {
		return nil, err
	}
	for _, f := range nets {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, fmt.Errorf("handle of a network namespace: %w", err)
		}
		known := st.Ino == base.Ino || st.Ino == own.Ino || slices.ContainsFunc(list, func(n *nested) bool { return n.ino == st.Ino })
		if !known {
			list = append(list, &nested{id: uint32(len(list)) + 2, kind: kindOf(unix.CLONE_NEWNET), file: f, ino: st.Ino})
		}
	}
	return list, nil
}

// mountedNets opens the network namespaces that the tree has mounted in mount namespaces of its own, and this program has not.
func (d *dumper) mountedNets(tree []*engine.Process) (out []*os.File, err error) {
	views, err := MountViews(d.fs, tree)
	if d.own&unix.CLONE_NEWNS == 0 && len(views) > 0 {
		views = views[1:]
	} else if d.own&unix.CLONE_NEWNS != 0 && len(views) == 0 {
		views = tree[:1]
	}
	if err != nil || len(views) == 0 {
		return nil, err
	}
	seen := map[string]bool{}
	host, err := procfs.Host.Mounts(os.Getpid())
	if err != nil {
		return nil, err
	}
	for _, m := range host {
		seen[m.Root] = m.FSType == "nsfs" || seen[m.Root]
	}
	for _, v := range views {
		mounts, err := d.fs.Mounts(v.PID)
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			if m.FSType != "nsfs" || seen[m.Root] || !strings.HasPrefix(m.Root, "net:[") {
				continue
			}
			seen[m.Root] = true
			err := Inside(v.PID, unix.CLONE_NEWNS, func() error {
				f, err := os.Open(m.Mountpoint)
				if err == nil {
					out = append(out, f)
				}
				return err
			})
			if err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// handleOf finds the namespace of the tree that a text such as net:[4026531840] names: its id, 1 for the root's, 0 for none, and its kind.
func (d *dumper) handleOf(root *engine.Process, text string) (id uint32, flag int) {
	ino, err := nsNumber(text)
	if err != nil {
		return 0, 0
	}
	for _, n := range d.list {
		if n.ino == ino {
			return n.id, n.kind.flag
		}
	}
	for _, k := range kinds {
		if link, err := d.fs.Link(root.PID, "ns", k.link); err == nil && link == text {
			return 1, k.flag
		}
	}
	return 0, 0
}

// readNested reads the nested namespaces.
func (d *dumper) readNested(tree []*engine.Process, list []*nested, members []*imagespb.ProcessNamespaces) error {
	d.header.Processes = members
	for _, p := range tree {
		i := slices.IndexFunc(members, func(m *imagespb.ProcessNamespaces) bool { return int(m.GetPid()) == p.VPID })
		if i < 0 || members[i].GetTimeForChildren() == 0 && len(members[i].GetIds()) == 0 {
			continue
		}
		sub := &dumper{fs: d.fs, root: p}
		if err := sub.checkTime(p, members[i]); err != nil && !errors.Is(err, procfs.ErrGone) {
			return err
		}
		d.found = append(d.found, sub.found...)
	}
	root := tree[0]
	for _, n := range list {
		sub := &dumper{ctx: d.ctx, fs: d.fs, root: root, first: root, file: n.file, content: d.content, own: n.kind.flag, mounts: d.mounts, nets: d.nets, list: d.list, nested: true, ownNet: d.ownNet,
			out: &images.Namespaces{}, header: &imagespb.Namespaces{Own: uint64(n.kind.flag)}}
		if n.proc != nil {
			sub.root = n.proc
		}
		if err := sub.checkOwner(root, n); err != nil {
			return err
		}
		if err := sub.read(*n.kind); err != nil {
			return err
		}
		d.found = append(d.found, sub.found...)
		d.out.Nested[n.id] = sub.out
		d.header.Nested = append(d.header.Nested, &imagespb.NestedNamespace{Id: n.id, State: sub.header, Ino: n.ino})
	}
	return nil
}

// checkOwner refuses a nested namespace that does not belong to the user namespace of the tree, and one without a process of the tree
// in which others are.
func (d *dumper) checkOwner(root *engine.Process, n *nested) error {
	d.kind = n.kind.Name
	var user unix.Stat_t
	if err := unix.Stat(d.fs.Path(root.PID, "ns", "user"), &user); err != nil {
		return err
	}
	f, link := n.file, n.kind.link
	if n.kind.flag == unix.CLONE_NEWTIME {
		link = timeLinkLater
	}
	if f == nil {
		var err error
		if f, err = d.fs.Open(d.root.PID, "ns", link); err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // a namespace's handle: nothing is lost
	}
	owner, err := relatedTo(f, getUserNS)
	if err != nil {
		return err
	}
	if owner != user.Ino {
		d.refuse("the process", "its "+n.kind.Name+" does not belong to the user namespace of the tree", "")
	}
	if n.file != nil {
		return d.checkOutside(n)
	}
	return nil
}

// checkOutside refuses a namespace that others use, too.
func (d *dumper) checkOutside(n *nested) error {
	pids, err := d.fs.PIDs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		var st unix.Stat_t
		if unix.Stat(d.fs.Path(pid, "ns", n.kind.link), &st) == nil && st.Ino == n.ino {
			d.refuse("a descriptor", fmt.Sprintf("it leads to a %s in which no process of the tree is, but pid %d", n.kind.Name, pid), "")
			return nil
		}
	}
	return nil
}

// inside runs fn in the namespace that is read.
func (d *dumper) inside(kind int, fn func() error) error {
	if d.file != nil {
		return InsideOf(d.file, kind, fn)
	}
	return Inside(d.root.PID, kind, fn)
}

// MountViews returns a process of each mount namespace of a tree, the root first; none if all are in one.
func MountViews(fs procfs.FS, tree []*engine.Process) ([]*engine.Process, error) {
	seen := map[string]bool{}
	var out []*engine.Process
	for _, p := range tree {
		link, err := fs.Link(p.PID, "ns", "mnt")
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !seen[link] {
			seen[link] = true
			out = append(out, p)
		}
	}
	if len(out) < 2 {
		return nil, nil
	}
	return out, nil
}
