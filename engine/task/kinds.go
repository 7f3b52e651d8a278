//go:build linux

package task

import (
	"context"

	"migrate/engine"
	"migrate/engine/procfs"
)

// Kind is one kind of state of a process or thread.
type Kind struct {
	Name    string // as in docs/coverage.md and in obstacles
	About   string // what it is and how far it is carried
	Carried bool
}

type kind struct {
	Kind
	process bool // belongs to the process, handled with its leader
	check   func(c *checker) error
	dump    func(d *dumper) error
	restore func(r *restorer) error
}

// Kinds lists all kinds, in the order in which they are restored, then those that are refused.
func Kinds() []Kind {
	out := make([]Kind, 0, len(kinds)+len(refused))
	for _, k := range kinds {
		out = append(out, k.Kind)
	}
	for _, k := range refused {
		out = append(out, k.Kind)
	}
	return out
}

// kinds is filled in init, because its functions read it.
var kinds, refused []kind

func carried(name, about string) Kind { return Kind{Name: name, About: about, Carried: true} }

func init() {
	kinds = []kind{
		{Kind: carried("registers", "general and extended registers (the whole xsave area); interrupted system calls restart. Those that a stop makes say EINTR (epoll_wait and others of signal(7)) start again with their whole time-out"), dump: dumpRegisters},
		{Kind: carried("restart-block", "the time left of nanosleep, poll and futex waits that were interrupted; exact where the kernel tells (BPF with BTF), else such a wait may last longer, by at most its own length"), dump: dumpRestartBlock},
		{Kind: carried("name", "the thread's name"), dump: dumpName, restore: restoreName},
		{Kind: carried("personality", "execution domain and its flags"), dump: dumpPersonality, restore: restorePersonality},
		{Kind: carried("limits", "resource limits; raising a hard limit needs CAP_SYS_RESOURCE at the destination"), process: true, dump: dumpLimits, restore: restoreLimits},
		{Kind: carried("scheduling", "policy, priority, nice value, processor affinity, I/O priority, timer slack"), dump: dumpSched, restore: restoreSched},
		{Kind: carried("memory-layout", "program break, arguments, environment, auxiliary vector, exe link"), process: true, dump: dumpMM},
		{Kind: carried("memory-locking", "locking of mappings that are yet to come (mlockall with MCL_FUTURE, MCL_ONFAULT)"), process: true, dump: dumpLockFuture},
		{Kind: carried("protection-keys", "memory protection keys that are allocated (pkeys(7)), with the rights of each thread"), process: true, dump: dumpKeys},
		{Kind: carried("fs", "working directory, root, umask; also of a thread that has its own"), dump: dumpFS, restore: restoreFS, check: checkFS},
		{Kind: carried("process-attributes", "child subreaper, transparent huge pages, memory merging, memory-deny-write-execute, core dump filter, oom_score_adj, membarrier registrations; the autogroup's nice value of a session whose leader is in the tree"), process: true, dump: dumpAttributes, restore: restoreAttributes},
		{Kind: carried("signal-handlers", "all signal actions"), process: true, dump: dumpSigactions, restore: restoreSigactions},
		{Kind: carried("signal-stack", "alternate signal stack"), dump: dumpSigstack, restore: restoreSigstack},
		{Kind: carried("robust-list", "robust futex list"), dump: dumpRobustList, restore: restoreRobustList},
		{Kind: carried("clear-child-tid", "address that is cleared when the thread ends"), dump: dumpClearTID, restore: restoreClearTID},
		{Kind: carried("rseq", "restartable sequences: registration, and the sequence in progress is aborted as after any preemption"), dump: dumpRseq, restore: restoreRseq},
		{Kind: carried("itimers", "ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF"), process: true, dump: dumpItimers, restore: restoreItimers},
		{Kind: carried("posix-timers", "timers of timer_create(2) with their ids; the overrun count of a signal that was already delivered is not, and that of one that waits begins anew"), process: true, dump: dumpPosixTimers, restore: restorePosixTimers, check: checkPosixTimers},
		{Kind: carried("thread-attributes", "machine-check policy, I/O flusher state, forbidden time stamp counter and cpuid instruction: of the first thread, for all; the NUMA memory policy of each thread"), dump: dumpThreadAttributes, restore: restoreThreadAttributes},
		{Kind: carried("speculation", "speculation that a thread has switched off for itself"), dump: dumpSpeculation, restore: restoreSpeculation},
		{Kind: carried("ldt", "entries in the local descriptor table"), process: true, dump: dumpLDT, restore: restoreLDT},
		{Kind: carried("login-id", "the audit login id of the first thread, for all"), dump: func(d *dumper) error {
			if !d.leader {
				return nil
			}
			return dumpLoginUID(d)
		}, restore: restoreLoginUID},
		{Kind: carried("seccomp", "strict mode and filters, those that threads share and their own; not filters that hand calls to a listener, which is seen when the process is stopped and ends the move without harm. While a thread under seccomp is asked about itself its seccomp is suspended; if this program is killed at that moment, the filter may kill the thread"), dump: dumpSeccomp, restore: restoreSeccomp, check: checkSeccomp},
		{Kind: carried("semaphore-undo", "what SEM_UNDO would undo at the end of the process (semop(2)), where the kernel can be read (BPF with BTF; else it is lost): in the tree's own IPC namespace or that of its workload, and in the host's by migrate dump and restore on one host; in the host's a move refuses it"), dump: dumpSemUndo, restore: func(r *restorer) error {
			if !r.leader {
				return nil
			}
			return restoreSemUndo(r)
		}},
		{Kind: carried("credentials", "user, group and supplementary ids, the five capability sets, securebits, no_new_privs, dumpable, parent-death signal"), dump: dumpCreds, restore: restoreCreds},
		{Kind: carried("pending-signals", "of the thread and of the process, with their siginfo"), dump: dumpPending, restore: restorePending},
		{Kind: carried("syscall-user-dispatch", "PR_SET_SYSCALL_USER_DISPATCH"), dump: dumpDispatch},
		{Kind: carried("stopped-state", "a process stopped by a signal, and whether its parent has waited for that; a parent that has ended the wait is not told again"), process: true, dump: dumpStopped},
		{Kind: carried("zombies", "a process that has ended and waits for its parent: exit status and name, not its resource usage. One that has dumped core does so again, into the void"), process: true},
		{Kind: carried("ended-leader", "a process whose first thread has ended while others run"), process: true},
		{Kind: carried("cgroups", "on a dump to disk: the cgroups of v1 and v2 that threads are in, and those below. Where they are missing they are made again with their settings. On a move the tree gets the cgroup of its workload"), dump: dumpCgroups},
		{Kind: carried("shared-things", "memory, descriptor tables, signal handlers and directories that a process shares with its parent (clone(2))"), process: true},
		{Kind: carried("sessions", "sessions and process groups, also those whose leader has ended, and orphans of subreapers; a session from outside of the tree gets another number on a restore into the same pid namespace"), process: true},
		{Kind: carried("controlling-terminal", "a session's terminal whose master is in the tree, or a console, with its foreground group; a foreground group of which nobody is left becomes that of the session's leader"), process: true},
	}
	refused = refusals()
}

// Check names what of a process this package does not carry. It reads /proc and calls kcmp(2); the process is not
// touched and may be running. A process that ends meanwhile gives an error that matches procfs.ErrGone.
func Check(ctx context.Context, fs procfs.FS, p *engine.Process) ([]engine.Obstacle, error) {
	c, err := newChecker(fs, p)
	if err != nil {
		return nil, err
	}
	for _, list := range [][]kind{kinds, refused} {
		for i := range list {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			k := &list[i]
			if k.check == nil || c.zombie && k.Name != "zombies" {
				continue
			}
			c.kind = k.Name
			if err := k.check(c); err != nil {
				return nil, err
			}
		}
	}
	return c.found, nil
}
