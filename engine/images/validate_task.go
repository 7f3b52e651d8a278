package images

import (
	"fmt"
	"strings"

	"migrate/engine/images/imagespb"
)

// Bounds of seccomp (kernel/seccomp.c, include/uapi/linux/bpf_common.h): BPF_MAXINSNS for a filter, MAX_INSNS_PER_PATH for
// those of a thread, of which each counts four more.
const (
	maxFilter  = 4096
	maxFilters = 32768 / 5
)

// validateSeccomp checks the filters of the tree.
func validateSeccomp(h *imagespb.Header) error {
	if n := len(h.GetSeccomp()); n > maxEntries {
		return fmt.Errorf("migrate.img: header.seccomp: %d filters", n)
	}
	for i, f := range h.GetSeccomp() {
		if n := len(f.GetProgram()); n == 0 || n%8 != 0 || n/8 > maxFilter {
			return fmt.Errorf("migrate.img: header.seccomp[%d].program: %d bytes", i, n)
		}
	}
	return nil
}

// validateChain checks the seccomp state of a thread against the filters of the tree.
func validateChain(h *imagespb.Header, e *imagespb.ThreadExtra) error {
	if e.GetSeccomp() > 2 || len(e.GetSeccompChain()) > maxFilters || e.GetSeccomp() != 2 && len(e.GetSeccompChain()) > 0 {
		return fmt.Errorf("migrate.img: thread %d: seccomp: mode %d with %d filters", e.GetTid(), e.GetSeccomp(), len(e.GetSeccompChain()))
	}
	if n := e.GetCgroupSet(); int(n) > len(h.GetCgroupSets()) {
		return fmt.Errorf("migrate.img: thread %d: cgroup_set: %d is not in header.cgroup_sets", e.GetTid(), n)
	}
	for i, n := range e.GetSeccompChain() {
		if int(n) >= len(h.GetSeccomp()) {
			return fmt.Errorf("migrate.img: thread %d: seccomp_chain[%d]: %d is not in header.seccomp", e.GetTid(), i, n)
		}
	}
	return nil
}

// validateSharedStates checks that each process stands once in what processes share, and names others that do.
func validateSharedStates(h *imagespb.Header) error {
	if n := len(h.GetShared()); n > maxTasks {
		return fmt.Errorf("migrate.img: header.shared: %d entries", n)
	}
	seen := map[uint32]*imagespb.SharedState{}
	for i, s := range h.GetShared() {
		if s.GetPid() == 0 || s.GetPid() > maxID || seen[s.GetPid()] != nil {
			return fmt.Errorf("migrate.img: header.shared[%d].pid: %d is no process or stands twice", i, s.GetPid())
		}
		seen[s.GetPid()] = s
		for name, get := range map[string]func(*imagespb.SharedState) uint32{
			"vm": (*imagespb.SharedState).GetVm, "files": (*imagespb.SharedState).GetFiles, "fs": (*imagespb.SharedState).GetFs, "sighand": (*imagespb.SharedState).GetSighand,
		} {
			if first := get(s); first != 0 && (seen[first] == nil || get(seen[first]) != first) {
				return fmt.Errorf("migrate.img: header.shared[%d].%s: %d, which is not the first that shares it", i, name, first)
			}
		}
	}
	return nil
}

// validateShared checks the ids of the processes' things against what they share.
func (c *Checkpoint) validateShared() error {
	shared := map[uint32]*imagespb.SharedState{}
	for _, s := range c.Header.GetShared() {
		shared[s.GetPid()] = s
	}
	tables := map[uint32]uint32{}
	for _, p := range c.Processes {
		if p.Zombie() {
			continue
		}
		s := shared[p.PID]
		for name, ids := range map[string][2]uint32{
			"vm_id": {p.IDs.GetVmId(), s.GetVm()}, "files_id": {p.IDs.GetFilesId(), s.GetFiles()}, "fs_id": {p.IDs.GetFsId(), s.GetFs()}, "sighand_id": {p.IDs.GetSighandId(), s.GetSighand()},
		} {
			if ids[1] != 0 && ids[0] != ids[1] {
				return fmt.Errorf("ids-%d.img: %s: %d, but by header.shared it is %d", p.PID, name, ids[0], ids[1])
			}
		}
		if other, ok := tables[p.IDs.GetFilesId()]; ok && s.GetFiles() == 0 {
			return fmt.Errorf("ids-%d.img: files_id: %d is also that of pid %d, and header.shared does not say that they share it", p.PID, p.IDs.GetFilesId(), other)
		}
		tables[p.IDs.GetFilesId()] = p.PID
	}
	return nil
}

// validateCgroups checks the cgroups of the tree; their paths stay below the root of a hierarchy.
func validateCgroups(h *imagespb.Header) error {
	if n, m := len(h.GetCgroupDirs()), len(h.GetCgroupSets()); n > maxEntries || m > maxEntries {
		return fmt.Errorf("migrate.img: header: %d cgroup_dirs, %d cgroup_sets", n, m)
	}
	for i, d := range h.GetCgroupDirs() {
		if !strings.HasPrefix(d.GetPath(), "/") || d.GetMode() > 0o7777 || len(d.GetProperties()) > 256 {
			return fmt.Errorf("migrate.img: header.cgroup_dirs[%d]: path %.200q, mode %o, %d properties", i, d.GetPath(), d.GetMode(), len(d.GetProperties()))
		}
	}
	for i, s := range h.GetCgroupSets() {
		for _, p := range s.GetPlaces() {
			if !strings.HasPrefix(p.GetPath(), "/") {
				return fmt.Errorf("migrate.img: header.cgroup_sets[%d]: path %.200q", i, p.GetPath())
			}
		}
	}
	return nil
}
