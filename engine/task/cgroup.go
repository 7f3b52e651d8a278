//go:build linux

package task

import (
	"fmt"
	"strings"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// CgroupTable gathers the cgroups that the tasks of a tree are in.
type CgroupTable struct {
	Sets  []*imagespb.CgroupSet
	index map[string]uint32
	known map[uint64]uint32 // by the kernel's css_set
}

// Places lists each cgroup once.
func (t *CgroupTable) Places() []*imagespb.CgroupPlace {
	var out []*imagespb.CgroupPlace
	seen := map[[2]string]bool{}
	for _, s := range t.Sets {
		for _, p := range s.GetPlaces() {
			if key := [2]string{p.GetHierarchy(), p.GetPath()}; !seen[key] {
				seen[key] = true
				out = append(out, p)
			}
		}
	}
	return out
}

// cgroupsOf reads where a thread is.
func cgroupsOf(fs procfs.FS, pid, tid int) (*imagespb.CgroupSet, error) {
	lines, err := fs.ThreadCgroups(pid, tid)
	if err != nil {
		return nil, err
	}
	s := &imagespb.CgroupSet{}
	for _, l := range lines {
		s.Places = append(s.Places, &imagespb.CgroupPlace{Hierarchy: strings.Join(l.Controllers, ","), Path: l.Path})
	}
	return s, nil
}

func setKey(s *imagespb.CgroupSet) string {
	var b strings.Builder
	for _, p := range s.GetPlaces() {
		fmt.Fprintf(&b, "%q%q", p.GetHierarchy(), p.GetPath())
	}
	return b.String()
}

func dumpCgroups(d *dumper) error {
	t := d.Cgroups
	if t == nil {
		return nil
	}
	if t.index == nil {
		t.index, t.known = map[string]uint32{}, map[uint64]uint32{}
	}
	var css uint64
	if d.kernel != nil {
		css = d.kernel.Cgroups
	}
	n, ok := t.known[css]
	if !ok || css == 0 {
		s, err := cgroupsOf(d.FS, d.Proc.PID, d.tid())
		if err != nil {
			return err
		}
		key := setKey(s)
		if n, ok = t.index[key]; !ok {
			t.Sets = append(t.Sets, s)
			n = uint32(len(t.Sets))
			t.index[key] = n
		}
		t.known[css] = n
	}
	d.thread.Extra.CgroupSet = n
	return nil
}

// RestoreCgroups makes the cgroups of the checkpoint that are missing, and moves the tasks of the skeleton to where they
// were, unless they are there by birth. On failure what was made is removed, as far as it is empty.
func RestoreCgroups(cp *images.Checkpoint, proc func(vpid int) *engine.Process) (undo func() error, err error) {
	h := &ns.Hierarchies{}
	undo, err = h.Make(cp.Header.GetCgroupDirs())
	for _, img := range cp.Processes {
		if img.Zombie() || err != nil {
			continue
		}
		if err = enterCgroups(h, cp.Header.GetCgroupSets(), proc(int(img.PID)), img); err != nil {
			err = fmt.Errorf("process %d: %w", img.PID, err)
		}
	}
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	return undo, err
}

func enterCgroups(h *ns.Hierarchies, sets []*imagespb.CgroupSet, p *engine.Process, img *images.Process) error {
	leader := img.Leader().Extra.GetCgroupSet()
	if err := enterSet(h, sets, leader, p, p.Threads[0], false); err != nil {
		return err
	}
	for i, th := range img.Threads {
		if n := th.Extra.GetCgroupSet(); n != leader {
			if err := enterSet(h, sets, n, p, p.Threads[i], true); err != nil {
				return err
			}
		}
	}
	return nil
}

func enterSet(h *ns.Hierarchies, sets []*imagespb.CgroupSet, n uint32, p *engine.Process, th engine.Thread, thread bool) error {
	if n == 0 {
		return nil
	}
	now, err := cgroupsOf(procfs.Host, p.PID, th.TID)
	if err != nil {
		return err
	}
	have := map[string]string{}
	for _, c := range now.GetPlaces() {
		have[c.GetHierarchy()] = c.GetPath()
	}
	for _, c := range sets[n-1].GetPlaces() {
		if have[c.GetHierarchy()] == c.GetPath() || strings.HasPrefix(c.GetPath(), "/..") {
			continue // it is there, or was outside of what the program that dumped it could see
		}
		if err := h.Enter(c, th.TID, thread); err != nil {
			return err
		}
	}
	return nil
}
