package images

import (
	"fmt"
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
type Namespaces struct {
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
)

// treeBlob is the name of the blob that holds the content of a file system.
func treeBlob(fs uint32) string { return fmt.Sprintf("tree-%d", fs) }

// encode adds the image files.
func (n *Namespaces) encode(p *packer) {
	if n == nil {
		return
	}
	if n.UTS != nil {
		put(p, "utsns-1.img", "UTSNS", n.UTS)
	}
	if n.IPC != nil {
		put(p, "ipcns-var-1.img", "IPC_VAR", n.IPC)
		put(p, "ipcns-msg-1.img", "IPCNS_MSG", n.Queues...)
		put(p, "ipcns-sem-1.img", "IPCNS_SEM", n.Sems...)
	}
	if n.User != nil {
		put(p, "userns-1.img", "USERNS", n.User)
	}
	if len(n.Mounts) > 0 {
		put(p, "mountpoints-1.img", "MNTS", n.Mounts...)
	}
	ids := make([]uint32, 0, len(n.Trees))
	for id := range n.Trees {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		p.files = append(p.files, file{blobFile(treeBlob(id)), n.Trees[id]})
	}
}

// decodeNamespaces is the inverse of encode; nil if the header names none.
func decodeNamespaces(files map[string][]byte, h *imagespb.Header) (*Namespaces, error) {
	if h.GetNamespaces() == nil {
		return nil, nil
	}
	n := &Namespaces{Trees: map[uint32][]byte{}}
	has := func(name string) bool { _, ok := files[name]; return ok }
	var err error
	if has("utsns-1.img") {
		if n.UTS, err = one[utsns.UtsnsEntry](files, "utsns-1.img", "UTSNS"); err != nil {
			return nil, err
		}
	}
	if has("ipcns-var-1.img") {
		if err := n.decodeIPC(files); err != nil {
			return nil, err
		}
	}
	if has("userns-1.img") {
		if n.User, err = one[userns.UsernsEntry](files, "userns-1.img", "USERNS"); err != nil {
			return nil, err
		}
	}
	if has("mountpoints-1.img") {
		if n.Mounts, err = open[mnt.MntEntry](files, "mountpoints-1.img", "MNTS", maxMounts); err != nil {
			return nil, err
		}
	}
	for _, m := range h.GetNamespaces().GetMounts() {
		if data, ok := files[blobFile(treeBlob(m.GetFs()))]; ok {
			n.Trees[m.GetFs()] = data
		}
	}
	return n, nil
}

func (n *Namespaces) decodeIPC(files map[string][]byte) (err error) {
	if n.IPC, err = one[ipc_var.IpcVarEntry](files, "ipcns-var-1.img", "IPC_VAR"); err != nil {
		return err
	}
	if n.Queues, err = open[ipc_msg.IpcMsgEntry](files, "ipcns-msg-1.img", "IPCNS_MSG", maxIPC); err != nil {
		return err
	}
	n.Sems, err = open[ipc_sem.IpcSemEntry](files, "ipcns-sem-1.img", "IPCNS_SEM", maxIPC)
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
	if l := max(len(n.UTS.GetNodename()), len(n.UTS.GetDomainname())); l > maxHostname {
		return fmt.Errorf("utsns-1.img: a name of %d bytes", l)
	}
	if l := max(len(n.User.GetUidMap()), len(n.User.GetGidMap())); l > maxIDRanges {
		return fmt.Errorf("userns-1.img: a map of %d ranges", l)
	}
	if len(x.GetSemaphores()) != len(n.Sems) || len(x.GetQueues()) != len(n.Queues) {
		return fmt.Errorf("migrate.img: header.namespaces: %d semaphore sets and %d queues for %d and %d", len(x.GetSemaphores()), len(x.GetQueues()), len(n.Sems), len(n.Queues))
	}
	for i, s := range n.Sems {
		if v := x.GetSemaphores()[i]; v.GetId() != s.GetDesc().GetId() || len(v.GetValues()) != int(s.GetNsems()) {
			return fmt.Errorf("ipcns-sem-1.img: entry %d: has no values, or of another set", i)
		}
	}
	for i, q := range n.Queues {
		if v := x.GetQueues()[i]; v.GetId() != q.GetDesc().GetId() {
			return fmt.Errorf("ipcns-msg-1.img: entry %d: its messages are those of queue %d", i, v.GetId())
		}
	}
	if s := len(x.GetNet().GetSysctls()); s > maxSysctls {
		return fmt.Errorf("migrate.img: header.namespaces.net.sysctls: %d", s)
	}
	return n.validateMounts(x)
}

// validateMounts makes sure that the mounts are a tree of which the first is the root.
func (n *Namespaces) validateMounts(x *imagespb.Namespaces) error {
	if len(n.Mounts) != len(x.GetMounts()) {
		return fmt.Errorf("mountpoints-1.img: %d entries, header.namespaces has %d", len(n.Mounts), len(x.GetMounts()))
	}
	seen := map[uint32]string{}
	for i, m := range n.Mounts {
		bad := func(field, why string) error {
			return fmt.Errorf("mountpoints-1.img: entry %d (%.200q): %s: %s", i, m.GetMountpoint(), field, why)
		}
		at := m.GetMountpoint()
		parent, ok := seen[m.GetParentMntId()]
		_, dup := seen[m.GetMntId()]
		switch {
		case x.GetMounts()[i].GetId() != m.GetMntId():
			return bad("mnt_id", "header.namespaces has another at this place")
		case dup:
			return bad("mnt_id", "stands twice")
		case !strings.HasPrefix(at, "/") || !strings.HasPrefix(m.GetRoot(), "/") || strings.ContainsRune(at+m.GetRoot(), 0):
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
