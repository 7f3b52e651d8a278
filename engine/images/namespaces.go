package images

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	ipc_sem "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-sem"
	ipc_var "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-var"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"

	"migrate/engine/images/imagespb"
)

// Namespaces are those that the root of a tree has for itself. A part is nil or empty if the tree shares that namespace
// with the program that dumped it; Header.Namespaces says which.
//
//	utsns-1.img   UtsnsEntry      ipcns-var-1.img   IpcVarEntry     ipcns-msg-1.img   IpcMsgEntry for each queue
//	userns-1.img  UsernsEntry     mountpoints-1.img MntEntry        ipcns-sem-1.img   IpcSemEntry for each set
//	blob-tree-N.raw               imagespb.Tree, content of the file system N (imagespb.Mount.fs)
//
// Nested are those in which only other processes of the tree are, by their ids, which stand in the names of their files instead of
// the 1. The content of all file systems is with the root's.
type Namespaces struct {
	Nested map[uint32]*Namespaces
	UTS    *utsns.UtsnsEntry
	IPC    *ipc_var.IpcVarEntry
	Queues []*ipc_msg.IpcMsgEntry
	Sems   []*ipc_sem.IpcSemEntry
	User   *userns.UsernsEntry
	Mounts []*mnt.MntEntry // parents before what is mounted on them
	Trees  map[uint32][]byte
}

// Bounds of namespaces. Those of mounts and of IPC are the kernel's default sysctls, or above.
const (
	maxMounts   = 100_000
	maxIPC      = 1 << 15
	maxIDRanges = 340 // user_namespaces(7)
	maxHostname = 64
	maxSysctls  = 1 << 16
	maxNested   = 1 << 16
)

// treeBlob is the name of the blob that holds the content of a file system.
func treeBlob(fs uint32) string { return fmt.Sprintf("tree-%d", fs) }

// encode adds the image files.
func (n *Namespaces) encode(p *packer) {
	if n == nil {
		return
	}
	n.encodeAs(p, 1)
	for _, id := range slices.Sorted(maps.Keys(n.Nested)) {
		n.Nested[id].encodeAs(p, id)
	}
	for _, id := range slices.Sorted(maps.Keys(n.Trees)) {
		p.files = append(p.files, file{blobFile(treeBlob(id)), n.Trees[id]})
	}
}

// image is the name of a file of the namespaces with an id.
func image(kind string, id uint32) string { return fmt.Sprintf("%s-%d.img", kind, id) }

func (n *Namespaces) encodeAs(p *packer, id uint32) {
	if n.UTS != nil {
		put(p, image("utsns", id), "UTSNS", n.UTS)
	}
	if n.IPC != nil {
		put(p, image("ipcns-var", id), "IPC_VAR", n.IPC)
		put(p, image("ipcns-msg", id), "IPCNS_MSG", n.Queues...)
		put(p, image("ipcns-sem", id), "IPCNS_SEM", n.Sems...)
	}
	if n.User != nil {
		put(p, image("userns", id), "USERNS", n.User)
	}
	if len(n.Mounts) > 0 {
		put(p, image("mountpoints", id), "MNTS", n.Mounts...)
	}
}

// decodeNamespaces is the inverse of encode; nil if the header names none.
func decodeNamespaces(files map[string][]byte, h *imagespb.Header) (*Namespaces, error) {
	x := h.GetNamespaces()
	if x == nil {
		return nil, nil
	}
	n, err := decodeAs(files, 1)
	if err != nil {
		return nil, err
	}
	trees := func(x *imagespb.Namespaces) {
		for _, m := range x.GetMounts() {
			if data, ok := files[blobFile(treeBlob(m.GetFs()))]; ok {
				n.Trees[m.GetFs()] = data
			}
		}
	}
	trees(x)
	if len(x.GetNested()) > maxNested {
		return nil, fmt.Errorf("migrate.img: header.namespaces.nested: %d entries", len(x.GetNested()))
	}
	for _, nested := range x.GetNested() {
		if n.Nested[nested.GetId()], err = decodeAs(files, nested.GetId()); err != nil {
			return nil, err
		}
		trees(nested.GetState())
	}
	return n, nil
}

func decodeAs(files map[string][]byte, id uint32) (*Namespaces, error) {
	n := &Namespaces{Trees: map[uint32][]byte{}, Nested: map[uint32]*Namespaces{}}
	has := func(kind string) bool { _, ok := files[image(kind, id)]; return ok }
	var err error
	if has("utsns") {
		if n.UTS, err = one[utsns.UtsnsEntry](files, image("utsns", id), "UTSNS"); err != nil {
			return nil, err
		}
	}
	if has("ipcns-var") {
		if err := n.decodeIPC(files, id); err != nil {
			return nil, err
		}
	}
	if has("userns") {
		if n.User, err = one[userns.UsernsEntry](files, image("userns", id), "USERNS"); err != nil {
			return nil, err
		}
	}
	if has("mountpoints") {
		if n.Mounts, err = open[mnt.MntEntry](files, image("mountpoints", id), "MNTS", maxMounts); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *Namespaces) decodeIPC(files map[string][]byte, id uint32) (err error) {
	if n.IPC, err = one[ipc_var.IpcVarEntry](files, image("ipcns-var", id), "IPC_VAR"); err != nil {
		return err
	}
	if n.Queues, err = open[ipc_msg.IpcMsgEntry](files, image("ipcns-msg", id), "IPCNS_MSG", maxIPC); err != nil {
		return err
	}
	n.Sems, err = open[ipc_sem.IpcSemEntry](files, image("ipcns-sem", id), "IPCNS_SEM", maxIPC)
	return err
}

// isTree tells the blobs that belong to Namespaces.
func isTree(blob string) bool { return strings.HasPrefix(blob, "tree-") }

// validateNamespaces checks counts, lengths and references.
func validateNamespaces(n *Namespaces, h *imagespb.Header) error {
	x := h.GetNamespaces()
	if (n == nil) != (x == nil) {
		return fmt.Errorf("migrate.img: header.namespaces: there are images without it, or it is there without images")
	}
	if n == nil {
		return nil
	}
	if err := n.validate(x, 1); err != nil {
		return err
	}
	if a := x.GetAround(); a&^cloneNewIPC != 0 || a&x.GetOwn() != 0 || a != 0 && n.IPC == nil {
		return fmt.Errorf("migrate.img: header.namespaces.around: 0x%x is of the tree itself, or has no images", a)
	}
	return n.validateNested(x)
}

const (
	cloneNewTime = 0x80      // CLONE_NEWTIME
	cloneNewIPC  = 0x8000000 // CLONE_NEWIPC
)

// kindsOfNamespaces are CLONE_NEW* of clone(2).
const kindsOfNamespaces = cloneNewTime | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000

// validateNested checks the nested namespaces, and that a process is in one of a kind.
func (n *Namespaces) validateNested(x *imagespb.Namespaces) error {
	kinds := map[uint32]uint64{}
	for i, e := range x.GetNested() {
		bad := func(field, why string) error {
			return fmt.Errorf("migrate.img: header.namespaces.nested[%d].%s: %s", i, field, why)
		}
		state, own := e.GetState(), e.GetState().GetOwn()
		switch {
		case e.GetId() < 2 || e.GetId() > maxNested+1 || kinds[e.GetId()] != 0:
			return bad("id", fmt.Sprintf("%d is out of range or stands twice", e.GetId()))
		case n.Nested[e.GetId()] == nil:
			return bad("id", "has no images")
		case bits.OnesCount64(own) != 1 || own&^kindsOfNamespaces != 0:
			return bad("state.own", fmt.Sprintf("0x%x is not one kind of namespace", own))
		case len(state.GetNested()) > 0 || len(state.GetProcesses()) > 0:
			return bad("state", "has nested namespaces itself")
		}
		kinds[e.GetId()] = own
		if err := n.Nested[e.GetId()].validate(state, e.GetId()); err != nil {
			return err
		}
	}
	seen := map[uint32]bool{}
	for i, p := range x.GetProcesses() {
		if seen[p.GetPid()] {
			return fmt.Errorf("migrate.img: header.namespaces.processes[%d].pid: %d stands twice", i, p.GetPid())
		}
		seen[p.GetPid()] = true
		in := uint64(0)
		for _, id := range p.GetIds() {
			if kinds[id] == 0 || in&kinds[id] != 0 {
				return fmt.Errorf("migrate.img: header.namespaces.processes[%d].ids: %d is no nested namespace, or a second one of its kind", i, id)
			}
			in |= kinds[id]
		}
		if id := p.GetTimeForChildren(); id != 0 && kinds[id] != cloneNewTime {
			return fmt.Errorf("migrate.img: header.namespaces.processes[%d].time_for_children: %d is no nested time namespace", i, id)
		}
	}
	return nil
}

// validate checks the namespaces that have one id.
func (n *Namespaces) validate(x *imagespb.Namespaces, id uint32) error {
	if l := max(len(n.UTS.GetNodename()), len(n.UTS.GetDomainname())); l > maxHostname {
		return fmt.Errorf("utsns-%d.img: a name of %d bytes", id, l)
	}
	if l := max(len(n.User.GetUidMap()), len(n.User.GetGidMap())); l > maxIDRanges {
		return fmt.Errorf("userns-%d.img: a map of %d ranges", id, l)
	}
	if len(x.GetSemaphores()) != len(n.Sems) || len(x.GetQueues()) != len(n.Queues) {
		return fmt.Errorf("migrate.img: header.namespaces: %d semaphore sets and %d queues for %d and %d", len(x.GetSemaphores()), len(x.GetQueues()), len(n.Sems), len(n.Queues))
	}
	for i, s := range n.Sems {
		if v := x.GetSemaphores()[i]; v.GetId() != s.GetDesc().GetId() || len(v.GetValues()) != int(s.GetNsems()) {
			return fmt.Errorf("ipcns-sem-%d.img: entry %d: has no values, or of another set", id, i)
		}
	}
	for i, q := range n.Queues {
		if v := x.GetQueues()[i]; v.GetId() != q.GetDesc().GetId() {
			return fmt.Errorf("ipcns-msg-%d.img: entry %d: its messages are those of queue %d", id, i, v.GetId())
		}
	}
	if s := len(x.GetNet().GetSysctls()); s > maxSysctls {
		return fmt.Errorf("migrate.img: header.namespaces.net.sysctls: %d", s)
	}
	return n.validateMounts(x, id)
}

// validateMounts makes sure that the mounts are a tree of which the first is the root.
func (n *Namespaces) validateMounts(x *imagespb.Namespaces, id uint32) error {
	if len(n.Mounts) != len(x.GetMounts()) {
		return fmt.Errorf("mountpoints-%d.img: %d entries, header.namespaces has %d", id, len(n.Mounts), len(x.GetMounts()))
	}
	seen := map[uint32]string{}
	for i, m := range n.Mounts {
		bad := func(field, why string) error {
			return fmt.Errorf("mountpoints-%d.img: entry %d (%.200q): %s: %s", id, i, m.GetMountpoint(), field, why)
		}
		at := m.GetMountpoint()
		parent, ok := seen[m.GetParentMntId()]
		_, dup := seen[m.GetMntId()]
		switch {
		case x.GetMounts()[i].GetId() != m.GetMntId():
			return bad("mnt_id", "header.namespaces has another at this place")
		case dup:
			return bad("mnt_id", "stands twice")
		case !strings.HasPrefix(at, "/") || !strings.HasPrefix(m.GetRoot(), "/") && m.GetFsname() != "nsfs" || strings.ContainsRune(at+m.GetRoot(), 0):
			return bad("mountpoint or root", "is no absolute path")
		case i == 0 && at != "/":
			return bad("mountpoint", "the first must be the root")
		case i > 0 && !ok:
			return bad("parent_mnt_id", "is not of a mount that stands before it")
		case i > 0 && !below(at, parent):
			return bad("mountpoint", "is not below that of the mount that it is on")
		}
		seen[m.GetMntId()] = at
	}
	return nil
}

// below tells whether a path is dir or lies in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
