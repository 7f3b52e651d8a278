//go:build linux

package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// rootName is the root directory of a process, as this program sees it. In this program's own mount namespace a root of a
// process's own (chroot(2)) does not matter: it is entered last.
func (s *snapshot) rootName(pid int) (string, error) {
	if root, ok := s.root[pid]; ok {
		return root, nil
	}
	root := procfs.Host.OuterRoot(pid)
	if root != "/" {
		var err error
		if root, err = procfs.Host.Link(pid, "root"); err != nil { // procfs.ErrGone: it ends this moment
			return "", fmt.Errorf("root directory of process %d: %w", pid, err)
		}
	}
	s.root[pid] = root
	return root, nil
}

// findViews finds the files that are open in another mount namespace of the tree than that of their holder: one that was opened before
// the holder got a namespace of its own, or that was handed over. The ids of mounts say so, of which no two namespaces have
// the same.
func (s *snapshot) findViews(procs []*engine.Process) error {
	views, err := ns.MountViews(procfs.Host, procs)
	if err != nil || views == nil {
		return err
	}
	mounts := map[uint64]*engine.Process{}
	for _, v := range views {
		list, err := procfs.Host.Mounts(v.PID)
		if err != nil {
			return err
		}
		for _, m := range list {
			mounts[uint64(m.ID)] = v
		}
	}
	for _, d := range s.list {
		var st unix.Statx_t
		if unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st) != nil {
			continue // of a file system that knows no such thing
		}
		v := mounts[st.Mnt_id]
		if v == nil {
			continue
		}
		theirs, err := procfs.Host.Link(v.PID, "ns", "mnt")
		if err != nil {
			return err
		}
		its, err := procfs.Host.Link(d.holders[0].proc.PID, "ns", "mnt")
		if err != nil {
			return err
		}
		if its == theirs {
			continue
		}
		d.via = v
		if d.root, err = s.rootName(v.PID); err != nil {
			return err
		}
	}
	return nil
}

// extra is what files.img has no field for; nil if there is nothing of the kind.
func (r *dump) extra(d *description) (*imagespb.FileExtra, error) {
	net, err := r.netOf(d)
	if err != nil || d.object == 0 && d.via == nil && net == 0 {
		return nil, err
	}
	x := &imagespb.FileExtra{Id: d.id, Object: d.object, Net: net}
	if d.via != nil {
		x.Via = uint32(d.via.VPID)
	}
	return x, nil
}

// viasOf are the processes from whose roots the paths of files lead to them, by the ids of the files, where that is not their holder.
func viasOf(h *imagespb.Header) map[uint32]int {
	out := map[uint32]int{}
	for _, f := range h.GetFiles() {
		if f.GetVia() != 0 {
			out[f.GetId()] = int(f.GetVia())
		}
	}
	return out
}

// viewer is the process from whose root the path of a record leads to it.
func (r *Restorer) viewer(id uint32) int {
	if v, ok := r.via[id]; ok {
		return v
	}
	return r.homes[id].vpid
}
