package engine

import "migrate/engine/remote"

// Process is one process of a tree that is being dumped or built. Ids named V are those that the tree itself
// sees; the others are those of this program's pid namespace.
type Process struct {
	PID, VPID int
	VPPID     int // 0 for the root of the tree
	VSID      int // session; 0 when its leader is outside the tree's pid namespace
	VPGID     int // process group; 0 likewise
	Threads   []Thread
	// Caller runs calls in the leader while the process is stopped; nil before that.
	Caller remote.Caller
}

// Thread is one task of a process. The first thread of a Process is its leader.
type Thread struct{ TID, VTID int }
