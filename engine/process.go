package engine

import "migrate/engine/remote"

// Process is one process of a tree that is being dumped or built. Ids named V are those that the tree itself
// sees; the others are those of this program's pid namespace.
type Process struct {
	// PID is the leader. Where that has ended while other threads run, it is one of them: by its id /proc, ptrace(2) and
	// kcmp(2) tell of the process what the leader's tells no more. It is Group that others call the process by.
	PID, VPID int
	// EndedLeader is the leader that has ended; 0 if it runs, or if the whole process has ended. It is not among Threads.
	EndedLeader int
	VPPID       int // 0 for the root of the tree
	VSID        int // session; 0 when its leader is outside the tree's pid namespace
	VPGID       int // process group; 0 likewise
	Threads     []Thread
	// Shared says what it shares with other processes of the tree.
	Shared Shared
	// Caller runs calls in the leader while the process is stopped; nil before that.
	Caller remote.Caller
}

// Shared names, for each thing that processes may share (clone(2)), the first process of the tree that has it, by the id
// that the tree knows; 0 where nobody shares it.
type Shared struct{ VM, Files, FS, Sighand int }

// Group is the id of the process on this host, that of its leader.
func (p *Process) Group() int {
	if p.EndedLeader != 0 {
		return p.EndedLeader
	}
	return p.PID
}

// Second reports whether a thing belongs to another process of the tree, which stands before this one.
func (p *Process) Second(first int) bool { return first != 0 && first != p.VPID }

// Thread is one task of a process. The first thread of a Process is its leader, or the one by whose id it goes if that has ended.
type Thread struct{ TID, VTID int }
