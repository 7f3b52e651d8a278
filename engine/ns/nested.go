//go:build linux

package ns

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// A nested namespace is one that processes of a tree are in and its root is not.
type nested struct {
	id   uint32
	kind kind
	proc *engine.Process // the first that is in it
}

// Nests tells whether a kind of namespace, by its link below /proc/PID/ns, may differ inside a tree.
func Nests(link string) bool {
	return slices.ContainsFunc(kinds, func(k kind) bool { return k.link == link && k.nests })
}

// Differ names the processes whose namespaces are not those of the root, where that is carried.
func Differ(fs procfs.FS, tree []*engine.Process) ([]engine.Obstacle, error) {
	list, _, err := findNested(fs, tree)
	var out []engine.Obstacle
	for _, n := range list {
		out = append(out, engine.Obstacle{PID: n.proc.PID, Kind: "namespaces", Where: n.kind.Name,
			Reason: fmt.Sprintf("it is not the one of pid %d, the root of the tree, which is carried by migrate dump and restore alone", tree[0].PID)})
	}
	return out, err
}

// findNested lists the nested namespaces of a tree and who is in them.
func findNested(fs procfs.FS, tree []*engine.Process) (list []nested, members []*imagespb.ProcessNamespaces, err error) {
	in := map[*engine.Process]*imagespb.ProcessNamespaces{}
	for _, k := range kinds {
		if !k.nests {
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
				list = append(list, nested{ids[link], k, p})
			}
			if in[p] == nil {
				in[p] = &imagespb.ProcessNamespaces{Pid: uint32(p.VPID)}
				members = append(members, in[p])
			}
			in[p].Ids = append(in[p].Ids, ids[link])
		}
	}
	return list, members, nil
}

// readNested reads the nested namespaces.
func (d *dumper) readNested(tree []*engine.Process) error {
	list, members, err := findNested(d.fs, tree)
	if err != nil {
		return err
	}
	d.header.Processes = members
	for _, n := range list {
		sub := &dumper{ctx: d.ctx, fs: d.fs, root: n.proc, content: d.content, own: n.kind.flag, mounts: d.mounts, out: &images.Namespaces{},
			header: &imagespb.Namespaces{Own: uint64(n.kind.flag)}}
		if err := sub.checkOwner(tree[0], n.kind); err != nil {
			return err
		}
		if err := sub.read(n.kind); err != nil {
			return err
		}
		d.found = append(d.found, sub.found...)
		d.out.Nested[n.id] = sub.out
		d.header.Nested = append(d.header.Nested, &imagespb.NestedNamespace{Id: n.id, State: sub.header})
	}
	return nil
}

// checkOwner refuses a nested namespace that does not belong to the user namespace of the tree.
func (d *dumper) checkOwner(root *engine.Process, k kind) error {
	var user unix.Stat_t
	if err := unix.Stat(d.fs.Path(root.PID, "ns", "user"), &user); err != nil {
		return err
	}
	owner, err := d.related(k.link, getUserNS)
	if err == nil && owner != user.Ino {
		d.kind = k.Name
		d.refuse("the process", "its "+k.Name+" does not belong to the user namespace of the tree", "")
	}
	return err
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
