//go:build linux

package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

const aboutMounts = "the tree of mounts with their flags, propagation and order: what is mounted from the host, by its path there; proc, sysfs, devpts, mqueue, cgroup2 and the like, made anew; tmpfs with its content; overlays, of the same layers, whose paths must be absolute; hugetlbfs, bpffs and binfmt_misc with nothing in them; the name of a source that the host has mounted under another one is that of the host; what was deleted and is mounted, with its content, unless it is open or mapped as well, or has another name or mount namespace"

// fresh are the file systems that are made anew when they are the namespace's own; those with content have it carried.
var fresh = map[string]struct{ content bool }{
	"tmpfs": {true}, "ramfs": {true},
	"proc": {}, "sysfs": {}, "devpts": {}, "mqueue": {}, "cgroup2": {}, "debugfs": {}, "tracefs": {}, "securityfs": {}, "fusectl": {},
	"configfs": {}, "pstore": {}, "binfmt_misc": {}, "bpf": {}, overlay: {}, hugetlbfs: {},
}

const hugetlbfs = "hugetlbfs"

// fsTypes are CRIU's numbers of file systems; the others are AUTO, with their name.
var fsTypes = map[string]mnt.Fstype{
	"proc": mnt.Fstype_PROC, "sysfs": mnt.Fstype_SYSFS, "devtmpfs": mnt.Fstype_DEVTMPFS, "binfmt_misc": mnt.Fstype_BINFMT_MISC,
	"tmpfs": mnt.Fstype_TMPFS, "devpts": mnt.Fstype_DEVPTS, "pstore": mnt.Fstype_PSTORE, "securityfs": mnt.Fstype_SECURITYFS,
	"fusectl": mnt.Fstype_FUSECTL, "debugfs": mnt.Fstype_DEBUGFS, "cgroup": mnt.Fstype_CGROUP, "mqueue": mnt.Fstype_MQUEUE,
	overlay: mnt.Fstype_OVERLAYFS, "tracefs": mnt.Fstype_TRACEFS, "cgroup2": mnt.Fstype_CGROUP2,
}

// mountFlags are the options of mountinfo that belong to a mount and not to its file system (mount(2)).
var mountFlags = map[string]uint32{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
	"nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "nosymfollow": unix.MS_NOSYMFOLLOW,
}

// superFlags are the options that the kernel takes for every file system (fs/fs_context.c, common_set_sb_flag).
var superFlags = map[string]uint32{
	"ro": unix.MS_RDONLY, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "mand": unix.MS_MANDLOCK, "lazytime": unix.MS_LAZYTIME,
}

// device is the number of a file system's device.
type device struct{ major, minor int }

// mountReader reads the mounts of a namespace.
type mountReader struct {
	*dumper
	mounts  []*mountinfo.Info
	host    []*mountinfo.Info
	byID    map[int]*mountinfo.Info
	paths   map[int]string // where a mount is found on the host
	age     map[int]int    // place of a mount in the order in which they were made
	after   map[int][]uint32
	deleted map[int]*deletion
	// covered says how many mounts of the host hide what is at that path.
	covered map[int]int
	handles map[int]*imagespb.Mount // namespaces that are mounted
}

// mountTable is what the mount namespaces of a tree have in common.
type mountTable struct {
	fs    map[device]uint32         // numbers of file systems
	done  map[device][]string       // what has been read of those with content
	trees map[device]*imagespb.Tree // their content
	// deleted are the files that were deleted and are mounted, by device and inode as stat(2) has them.
	deleted map[[2]uint64]*deletion
}

func newMountTable() *mountTable {
	return &mountTable{fs: map[device]uint32{}, done: map[device][]string{}, trees: map[device]*imagespb.Tree{}, deleted: map[[2]uint64]*deletion{}}
}

// marshal adds the content of the file systems, by their numbers.
func (t *mountTable) marshal(out map[uint32][]byte) error {
	for dev, tree := range t.trees {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(tree)
		if err != nil {
			return err
		}
		out[t.fs[dev]] = b
	}
	return nil
}

func dumpMounts(d *dumper) error {
	r := &mountReader{dumper: d, byID: map[int]*mountinfo.Info{}, paths: map[int]string{}, age: map[int]int{}, after: map[int][]uint32{}, deleted: map[int]*deletion{}, covered: map[int]int{}, handles: map[int]*imagespb.Mount{}}
	var err error
	if r.host, err = procfs.Host.Mounts(os.Getpid()); err != nil {
		return err
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer func() { _ = proc.Close() }() // a directory: nothing is lost
	return Inside(d.root.PID, unix.CLONE_NEWNS, func() error {
		if err := r.list(proc); err != nil {
			return err
		}
		if err := r.locate(); err != nil {
			return err
		}
		r.overlays()
		r.mustBeEmpty()
		if err := r.readDeleted(); err != nil {
			return err
		}
		for _, m := range r.mounts {
			r.record(m)
		}
		if len(d.found) > 0 {
			return nil
		}
		return r.contents()
	})
}

// list reads the mounts, from the root of the namespace, and puts them into the order in which they can be made.
func (r *mountReader) list(proc *os.File) error {
	all, err := visibleMounts(proc)
	if err != nil {
		return err
	}
	below := map[int][]*mountinfo.Info{}
	for i, m := range all {
		r.byID[m.ID], r.age[m.ID] = m, i
		below[m.Parent] = append(below[m.Parent], m)
	}
	var roots []*mountinfo.Info
	for _, m := range all {
		if r.byID[m.Parent] == nil || m.Parent == m.ID {
			roots = append(roots, m)
		}
	}
	if len(roots) != 1 || roots[0].Mountpoint != "/" {
		r.refuse("mounts", fmt.Sprintf("%d of them are on none that can be seen; one is the root", len(roots)), "")
		return nil
	}
	// A mount on /a/b beside one on /a, both on the same one, was there before.
	depth := func(m *mountinfo.Info) int { return strings.Count(m.Mountpoint, "/") }
	for queue := roots; len(queue) > 0; queue = queue[1:] {
		m := queue[0]
		r.mounts = append(r.mounts, m)
		next := below[m.ID]
		slices.SortStableFunc(next, func(a, b *mountinfo.Info) int { return depth(b) - depth(a) })
		for _, c := range next {
			if c != m {
				queue = append(queue, c)
			}
		}
	}
	return nil
}

// emptyOnly are file systems of the namespace's own that are made anew without what is in them, and the names that they have by themselves.
var emptyOnly = map[string][]string{hugetlbfs: nil, "bpf": {"maps.debug", "progs.debug"}, "binfmt_misc": {"register", "status"}}

// mustBeEmpty refuses file systems with content that is not carried. It runs in the mount namespace.
func (r *mountReader) mustBeEmpty() {
	for _, m := range r.mounts {
		usual, only := emptyOnly[m.FSType]
		if !only || r.paths[m.ID] != "" {
			continue
		}
		names, err := os.ReadDir(m.Mountpoint)
		names = slices.DeleteFunc(names, func(e fs.DirEntry) bool { return slices.Contains(usual, e.Name()) })
		if id, hidden := mountOf(m.Mountpoint); err != nil || hidden != nil || id != uint64(m.ID) || m.Root != "/" {
			r.refuse("mount "+m.Mountpoint, fmt.Sprintf("what is in this file system of type %s cannot be seen: another mount hides it, or only %s of it is mounted (%v)", m.FSType, m.Root, errors.Join(err, hidden)), "unmount it")
		} else if len(names) > 0 {
			r.refuse("mount "+m.Mountpoint, fmt.Sprintf("a file system of type %s of the namespace's own in which something is (%s)", m.FSType, names[0].Name()), "remove it, or mount the file system on the host, too")
		}
	}
}

// locate finds out what of the mounts the host has too, in this program's mount namespace.
func (r *mountReader) locate() error {
	onHost := map[device]bool{}
	for _, h := range r.host {
		onHost[device{h.Major, h.Minor}] = true
	}
	return Inside(os.Getpid(), unix.CLONE_NEWNS, func() error {
		for _, m := range r.mounts {
			dev := device{m.Major, m.Minor}
			if table := r.dumper.mounts.fs; table[dev] == 0 {
				table[dev] = uint32(len(table) + 1)
			}
			if m.FSType == "nsfs" {
				id, kind := r.handleOf(r.first, m.Root)
				if path, err := r.hostPath(m); err == nil && path != "" {
					r.paths[m.ID] = path
				} else if id != 0 {
					r.handles[m.ID] = &imagespb.Mount{Namespace: id, Kind: uint64(kind)}
				} else {
					r.refuse("mount "+m.Mountpoint, "it is a namespace that no process of the tree is in ("+m.Root+")", "unmount it")
				}
				continue
			}
			if root, ok := deletedRoot(m); ok {
				if err := r.locateDeleted(m, root, onHost[dev]); err != nil {
					return err
				}
				continue
			}
			if !onHost[dev] {
				if _, ok := fresh[m.FSType]; !ok {
					r.refuse("mount "+m.Mountpoint, fmt.Sprintf("a file system of type %s (%s) that the host has not mounted", m.FSType, m.Source), "mount it on the host, too")
				}
				continue
			}
			path, err := r.hostPath(m)
			if err != nil {
				return err
			}
			if path == "" {
				path, r.covered[m.ID] = r.coveredPath(m)
			}
			if path == "" {
				r.refuse("mount "+m.Mountpoint, fmt.Sprintf("%s of a file system that the host has mounted, but where that path cannot be reached", m.Root), "")
				continue
			}
			r.paths[m.ID] = path
		}
		return nil
	})
}

// hostPath finds a path of the host that leads to the root of a mount; "" if there is none.
func (r *mountReader) hostPath(m *mountinfo.Info) (string, error) {
	for _, h := range slices.Backward(r.host) {
		if h.Major != m.Major || h.Minor != m.Minor {
			continue
		}
		rest, ok := cutDir(m.Root, h.Root)
		if !ok {
			continue
		}
		path := strings.TrimSuffix(h.Mountpoint, "/") + rest
		if path == "" {
			path = "/"
		}
		id, err := mountOf(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if id == uint64(h.ID) {
			return path, nil
		}
	}
	return "", nil
}

// coveredPath finds a mount of the host that others, mounted at the same place, hide: its path and their number.
func (r *mountReader) coveredPath(m *mountinfo.Info) (string, int) {
	for i, h := range slices.Backward(r.host) {
		if h.Major != m.Major || h.Minor != m.Minor || h.Root != m.Root || h.Mountpoint != m.Mountpoint {
			continue
		}
		over := 0
		for _, o := range r.host[i+1:] {
			if o.Mountpoint == h.Mountpoint {
				over++
			}
		}
		if fd, err := cloneHost(h.Mountpoint, over); err == nil {
			var st unix.Stat_t
			err = errors.Join(unix.Fstat(fd, &st), unix.Close(fd))
			if err == nil && st.Dev == unix.Mkdev(uint32(m.Major), uint32(m.Minor)) && over > 0 {
				return h.Mountpoint, over
			}
		}
	}
	return "", 0
}

// cloneHost makes a mount of what this program sees at a path, less the mounts that hide it. With such it has no peers.
func cloneHost(path string, covered int) (fd int, err error) {
	open := func() (err error) {
		fd, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
		if err != nil {
			return fmt.Errorf("open_tree %s: %w", path, err)
		}
		return nil
	}
	if covered == 0 {
		err = open()
		return fd, err
	}
	err = Inside(unix.Getpid(), unix.CLONE_NEWNS, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("a copy of the mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("a copy of the mount namespace: %w", err)
		}
		for range covered {
			if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("taking away what hides %s, in a copy of the mount namespace: %w", path, err)
			}
		}
		return open()
	})
	return fd, err
}

// cutDir removes a directory from the beginning of a path; what is left is empty or begins with a slash.
func cutDir(path, dir string) (string, bool) {
	if dir == "/" {
		if path == "/" {
			path = ""
		}
		return path, true
	}
	rest, ok := strings.CutPrefix(path, dir)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// mountOf is the id of the mount that a path leads to (statx(2), STATX_MNT_ID).
func mountOf(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("statx %s: %w", path, err)
	}
	return st.Mnt_id, nil
}

// record makes the entry of a mount.
func (r *mountReader) record(m *mountinfo.Info) {
	flags := mountFlagsOf(m)
	var options []string
	super := uint32(0)
	for o := range strings.SplitSeq(m.VFSOptions, ",") {
		if f := superFlags[o]; f != 0 {
			super |= f
		} else if o != "rw" && o != "" {
			options = append(options, o)
		}
	}
	shared, master, unbindable := peerGroups(m.Optional)
	switch {
	case unbindable:
		flags |= unix.MS_UNBINDABLE
	case shared != 0:
		flags |= unix.MS_SHARED
	case master != 0:
		flags |= unix.MS_SLAVE
	default:
		flags |= unix.MS_PRIVATE
	}
	e := &mnt.MntEntry{
		Fstype: proto.Uint32(uint32(mnt.Fstype_AUTO)), Fsname: proto.String(m.FSType), MntId: proto.Uint32(uint32(m.ID)),
		RootDev: proto.Uint32(uint32(m.Major)<<20 | uint32(m.Minor)), ParentMntId: proto.Uint32(uint32(m.Parent)),
		Flags: proto.Uint32(flags), SbFlags: proto.Uint32(super), Root: proto.String(m.Root), Mountpoint: proto.String(m.Mountpoint),
		Source: proto.String(m.Source), Options: proto.String(strings.Join(options, ",")),
	}
	if t, ok := fsTypes[m.FSType]; ok {
		e.Fstype = proto.Uint32(uint32(t))
	}
	if shared != 0 {
		e.SharedId = proto.Uint32(uint32(shared))
	}
	if master != 0 {
		e.MasterId = proto.Uint32(uint32(master))
	}
	x := &imagespb.Mount{Id: uint32(m.ID), Fs: r.dumper.mounts.fs[device{m.Major, m.Minor}], Path: r.paths[m.ID], Covered: uint32(r.covered[m.ID]), After: r.after[m.ID]}
	if d := r.deleted[m.ID]; d != nil {
		x.Deleted, x.SameAs = d.tree, d.same
	}
	if h := r.handles[m.ID]; h != nil {
		x.Namespace, x.Kind = h.Namespace, h.Kind
	}
	if x.Path != "" {
		e.ExtMount, e.ExtKey = proto.Bool(true), proto.String(x.Path)
	}
	x.SharedOutside, x.SlaveOutside = r.outside(shared), master != 0 && r.outside(master)
	r.out.Mounts = append(r.out.Mounts, e)
	r.header.Mounts = append(r.header.Mounts, x)
}

// mountFlagsOf are the flags of a mount, without those of its file system.
func mountFlagsOf(m *mountinfo.Info) uint32 {
	flags := uint32(0)
	for o := range strings.SplitSeq(m.Options, ",") {
		flags |= mountFlags[o]
	}
	return flags
}

// peerGroups reads the optional fields of mountinfo.
func peerGroups(optional string) (shared, master int, unbindable bool) {
	for f := range strings.FieldsSeq(optional) {
		var n int
		switch {
		case f == "unbindable":
			unbindable = true
		case strings.HasPrefix(f, "shared:"):
			if _, err := fmt.Sscanf(f, "shared:%d", &n); err == nil {
				shared = n
			}
		case strings.HasPrefix(f, "master:"):
			if _, err := fmt.Sscanf(f, "master:%d", &n); err == nil {
				master = n
			}
		}
	}
	return shared, master, unbindable
}

// outside tells whether the host has mounts of a peer group.
func (r *mountReader) outside(group int) bool {
	return group != 0 && slices.ContainsFunc(r.host, func(h *mountinfo.Info) bool {
		shared, _, _ := peerGroups(h.Optional)
		return shared == group
	})
}

// contents reads the file systems that have any and are the namespace's own.
func (r *mountReader) contents() error {
	table := r.dumper.mounts
	sorted := slices.Clone(r.mounts)
	slices.SortStableFunc(sorted, func(a, b *mountinfo.Info) int { return len(a.Root) - len(b.Root) })
	for _, m := range sorted {
		dev := device{m.Major, m.Minor}
		if !fresh[m.FSType].content || r.paths[m.ID] != "" || r.deleted[m.ID] != nil {
			continue
		}
		if slices.ContainsFunc(table.done[dev], func(root string) bool { _, ok := cutDir(m.Root, root); return ok }) {
			continue
		}
		table.done[dev] = append(table.done[dev], m.Root)
		if !r.content {
			continue
		}
		if table.trees[dev] == nil {
			table.trees[dev] = &imagespb.Tree{}
		}
		if err := r.readMount(table.trees[dev], m); err != nil {
			return fmt.Errorf("%s at %s: %w", m.FSType, m.Mountpoint, err)
		}
	}
	return nil
}

// readMount reads the content of a mount. One that is covered by another, or that cannot be cloned, is read in a copy of the
// namespace, in which everything that was mounted after it has been taken away.
func (r *mountReader) readMount(tree *imagespb.Tree, m *mountinfo.Info) error {
	_, _, unbindable := peerGroups(m.Optional)
	if id, err := mountOf(m.Mountpoint); err == nil && id == uint64(m.ID) && !unbindable {
		return readTree(tree, m)
	}
	return Inside(r.root.PID, unix.CLONE_NEWNS, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("a copy of its mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("a copy of its mount namespace: %w", err)
		}
		for _, over := range slices.Backward(r.mounts) {
			if over == m {
				break
			}
			if err := unix.Unmount(over.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("taking %s away, which may cover it, in a copy of its mount namespace: %w", over.Mountpoint, err)
			}
		}
		return readTree(tree, m)
	})
}
