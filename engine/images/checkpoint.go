// Package images holds the state of a process tree as records: in memory (Checkpoint, Layout), on the wire
// (Marshal) and on disk (WriteDir, PageWriter). It builds on any system and touches no process.
//
// The records are CRIU's image messages (go-criu, crit/images/...), and a directory has CRIU's layout, so that
// crit and checkpointctl can show it. What CRIU has no message for stands in messages of our own (extra.proto),
// in migrate.img, and raw data in blob-*.raw. Process and thread ids are those that the tree itself sees.
//
//	inventory.img     InventoryEntry            pstree.img       PstreeEntry for each process
//	core-TID.img      CoreEntry                 mm-PID.img       MmEntry with its mappings
//	ids-PID.img       TaskKobjIdsEntry          fs-PID.img       FsEntry
//	fdinfo-N.img      FdinfoEntry, N=files_id   files.img        FileEntry, shared by all
//	pagemap-PID.img   see PageWriter            pages-N.img      raw pages
//	migrate.img       imagespb.File             blob-NAME.raw    Checkpoint.Blobs
//	tty-info.img      TtyInfoEntry for each terminal
//
// What comes from outside is checked by Validate, which Unmarshal and ReadDir call: every count and length is
// bounded and every reference resolves, or the error names the file and the field.
package images

import (
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
)

// Version of the extra messages and of the wire format.
const Version = 1

// PageSize is the size of a page in bytes, on every processor that is supported.
const PageSize = 4096

// A Checkpoint is one tree at one instant, without the contents of its memory.
type Checkpoint struct {
	Inventory *inventory.InventoryEntry
	Header    *imagespb.Header
	Tree      []*pstree.PstreeEntry // parents before their children
	Processes []*Process            // in the order of Tree
	Files     []*fdinfo.FileEntry   // open and mapped files; ids are unique in the checkpoint
	TTYs      []*tty.TtyInfoEntry   // terminals behind open files, or that control a session
	Terminals []*imagespb.Terminal  // what else is known of them, in the same order
	Blobs     map[string][]byte     // raw data by name: contents of pipes, socket queues ...
	// Namespaces are those that the tree has for itself; nil if there are none.
	Namespaces *Namespaces
}

// A Process is one process of a checkpoint. A zombie has no MM, FDs, FS and IDs.
type Process struct {
	PID     uint32
	MM      *mm.MmEntry
	FDs     []*fdinfo.FdinfoEntry
	FS      *fs.FsEntry
	IDs     *criu_core.TaskKobjIdsEntry
	Threads []*Thread // the first is the leader; its Core has Tc
	Extra   *imagespb.ProcessExtra
}

// A Thread is one task of a process.
type Thread struct {
	TID   uint32
	Core  *criu_core.CoreEntry
	Extra *imagespb.ThreadExtra
}

// A Layout is what a destination builds before the tree is stopped: its processes and their address spaces.
type Layout struct {
	Header *imagespb.Header
	Tree   []*pstree.PstreeEntry // parents before their children, with their threads
	Spaces []*Space              // in the order of Tree
	Files  []*fdinfo.FileEntry   // mapped files; a mapping names its file by vma.shmid
	// Namespaces are those that the tree has for itself; nil if there are none.
	Namespaces *Namespaces
}

// A Space is the address space of a process.
type Space struct {
	PID uint32
	MM  *mm.MmEntry // nil for a zombie
}

// States of a task (CRIU, compel/include/uapi/task-state.h), in task_core_entry.task_state.
const (
	TaskAlive   = 1
	TaskDead    = 2 // a zombie in CRIU's images
	TaskStopped = 3
	TaskZombie  = 6
)

// Kinds of mappings (CRIU, criu/include/image.h), bits of vma_entry.status. A mapping of a file or of shared
// memory carries in shmid the id of its file in files.img, or of the shared memory.
const (
	VMARegular     = 1 << 0 // its pages are part of the checkpoint
	VMAStack       = 1 << 1
	VMAVsyscall    = 1 << 2
	VMAVDSO        = 1 << 3
	VMAHeap        = 1 << 5
	VMAFilePrivate = 1 << 6
	VMAFileShared  = 1 << 7
	VMAAnonShared  = 1 << 8
	VMAAnonPrivate = 1 << 9
	VMASysvIPC     = 1 << 10
	VMASocket      = 1 << 11
	VMAVvar        = 1 << 12
	VMAAIORing     = 1 << 13
	VMAMemfd       = 1 << 14
	VMAShadowStack = 1 << 15
	VMAUprobes     = 1 << 17
	VMAGuard       = 1 << 18
)

// Leader returns the first thread.
func (p *Process) Leader() *Thread {
	if len(p.Threads) == 0 {
		return nil
	}
	return p.Threads[0]
}

// Zombie reports whether the process has ended and waits for its parent.
func (p *Process) Zombie() bool {
	s := p.Leader().GetCore().GetTc().GetTaskState()
	return s == TaskDead || s == TaskZombie
}

// GetCore returns the thread's core entry, nil for a nil thread.
func (t *Thread) GetCore() *criu_core.CoreEntry {
	if t == nil {
		return nil
	}
	return t.Core
}

// Process finds a process by the id that the tree sees; nil when there is none.
func (c *Checkpoint) Process(pid uint32) *Process {
	for _, p := range c.Processes {
		if p.PID == pid {
			return p
		}
	}
	return nil
}

// NewInventory returns the inventory that CRIU's tools expect of a directory as written here. rootIDs are the
// ids of the first process, uptime is the time since the boot of the source in microseconds.
func NewInventory(rootIDs *criu_core.TaskKobjIdsEntry, uptime uint64) *inventory.InventoryEntry {
	return &inventory.InventoryEntry{
		ImgVersion:  proto.Uint32(2), // CRTOOLS_IMAGES_V1_1
		FdinfoPerId: proto.Bool(true),
		NsPerId:     proto.Bool(true),
		RootIds:     rootIDs,
		DumpUptime:  proto.Uint64(uptime),
	}
}
