//go:build linux

package task

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"migrate/engine"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// checker is one run of Check.
type checker struct {
	fs     procfs.FS
	p      *engine.Process
	stat   *procfs.Stat
	status *procfs.Status
	tasks  map[int]*procfs.Status // of all threads
	zombie bool
	kind   string // whose check runs
	found  []engine.Obstacle
}

func newChecker(fs procfs.FS, p *engine.Process) (*checker, error) {
	c := &checker{fs: fs, p: p, tasks: map[int]*procfs.Status{}}
	var err error
	if c.stat, err = fs.Stat(p.PID); err != nil {
		return nil, err
	}
	if c.status, err = fs.Status(p.PID); err != nil {
		return nil, err
	}
	tids, err := fs.Tasks(p.PID)
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		if tid == p.EndedLeader {
			continue
		}
		s, err := fs.ThreadStatus(p.PID, tid)
		if errors.Is(err, procfs.ErrGone) {
			continue // a thread that ended just now
		}
		if err != nil {
			return nil, err
		}
		c.tasks[tid] = s
	}
	c.zombie = c.stat.State == 'Z'
	return c, nil
}

func (c *checker) refuse(where, reason, remedy string) {
	c.found = append(c.found, engine.Obstacle{PID: c.p.PID, Kind: c.kind, Where: where, Reason: reason, Remedy: remedy})
}

// eachThread calls fn for the threads in ascending order.
func (c *checker) eachThread(fn func(where string, tid int, s *procfs.Status)) {
	tids := make([]int, 0, len(c.tasks))
	for tid := range c.tasks {
		tids = append(tids, tid)
	}
	slices.Sort(tids)
	for _, tid := range tids {
		where := "the process"
		if tid != c.p.PID {
			where = fmt.Sprintf("thread %d", tid)
		}
		fn(where, tid, c.tasks[tid])
	}
}

func refusal(name, about string, check func(*checker) error) kind {
	return kind{Kind: Kind{Name: name, About: about}, check: check}
}

func refusals() []kind {
	return []kind{
		refusal("kernel-thread", "kernel threads and the kernel's worker threads", checkKernelThread),
		refusal("traced", "a process under a debugger or another tracer", checkTraced),
		refusal("32-bit", "32-bit programs", check32Bit),
		refusal("namespaces", "namespaces that differ inside the tree, on a move or of kinds that do not say that they may; those of single threads", checkNamespaces),
		refusal("shared-state", "a descriptor table of a single thread; a vfork(2) in progress, whose parent cannot be stopped; what a process shares with one that is not its parent", checkShared),
		refusal("shadow-stack", "user shadow stacks (CET)", checkShadowStack),
		{Kind: Kind{Name: "security-module", About: "a profile or context of a security module (AppArmor, SELinux); Landlock's rules (where the kernel can be read, BPF with BTF), which is seen when the process is stopped and ends the move without harm"}, check: checkLSM, dump: dumpLSM},
		{Kind: Kind{Name: "rare-attributes", About: "core scheduling cookie: seen when the process is stopped, which ends the move without harm"}, process: true, dump: dumpRare},
		refusal("coredump", "a process that is being dumped to a core file or is ending", checkEnding),
		refusal("keyrings", "process and thread keyrings, and session keyrings with other keys than those of every login and service (where the kernel can be read, BPF with BTF): seen when the process is stopped, which ends the move without harm; the session keyring is that of the destination", nil),
		refusal("accounting", "resource usage, start time: the kernel has no way to set them, they start anew", nil),
	}
}

func checkKernelThread(c *checker) error {
	if c.stat.Flags&procfs.FlagKThread != 0 || c.status.KThread {
		c.refuse("the process", "it is a kernel thread", "")
	}
	c.eachThread(func(where string, tid int, _ *procfs.Status) {
		st, err := c.fs.ThreadStat(c.p.PID, tid)
		if err == nil && st.Flags&(procfs.FlagIOWorker|procfs.FlagUserWorker) != 0 && st.Flags&procfs.FlagKThread == 0 {
			c.refuse(where, "it is a worker that the kernel runs for the process (io_uring or vhost)", "")
		}
	})
	return nil
}

func checkTraced(c *checker) error {
	c.eachThread(func(where string, _ int, s *procfs.Status) {
		if s.TracerPID != 0 {
			c.refuse(where, fmt.Sprintf("it is traced by pid %d", s.TracerPID), "let the tracer detach")
		}
	})
	return nil
}

// check32Bit looks at the program file; a 64-bit program that jumps into 32-bit code is found at the stop.
func check32Bit(c *checker) error {
	f, err := c.fs.Open(c.p.PID, "exe")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing is lost
	var ident [elf.EI_NIDENT]byte
	if _, err := io.ReadFull(f, ident[:]); err != nil || string(ident[:4]) != elf.ELFMAG {
		return nil // an interpreter of another binary format shows as itself, so this is no ELF that runs
	}
	if elf.Class(ident[elf.EI_CLASS]) != elf.ELFCLASS64 {
		c.refuse("the process", "it is a 32-bit program", "run a 64-bit build")
	}
	return nil
}

func checkNamespaces(c *checker) error {
	if err := c.threadNamespaces(); err != nil {
		return err
	}
	for _, n := range []string{"pid"} { // the time namespace for children: package ns
		now, err := c.fs.Link(c.p.PID, "ns", n)
		if errors.Is(err, procfs.ErrGone) {
			continue // a kernel without this kind of namespace
		}
		if err != nil {
			return err
		}
		later, err := c.fs.Link(c.p.PID, "ns", n+"_for_children")
		if errors.Is(err, procfs.ErrGone) {
			// A pid namespace into which nobody has been born yet cannot be named; it is another one all the same. Of a process that
			// is ending, none of those can be named that it has through its nsproxy (fs/nsfs.c, ns_get_name).
			if _, ending := c.fs.Link(c.p.PID, "ns", "uts"); ending != nil {
				return ending
			}
		} else if err != nil {
			return err
		}
		if now != later {
			c.refuse("the process", fmt.Sprintf("its children are to be born into another %s namespace (unshare(2))", n), "")
		}
	}
	return nil
}

// threadNamespaces refuses a thread that has left the namespaces of its process.
func (c *checker) threadNamespaces() error {
	for _, n := range []string{"cgroup", "ipc", "mnt", "net", "time", "uts"} {
		want, err := c.fs.Link(c.p.PID, "ns", n)
		if errors.Is(err, procfs.ErrGone) {
			continue // a kernel without this kind of namespace
		}
		if err != nil {
			return err
		}
		for tid := range c.tasks {
			if tid == c.p.PID {
				continue
			}
			got, err := c.fs.Link(c.p.PID, "task", strconv.Itoa(tid), "ns", n)
			if errors.Is(err, procfs.ErrGone) {
				continue
			}
			if err != nil {
				return err
			}
			if got != want {
				c.refuse(fmt.Sprintf("thread %d", tid), "it is in another "+n+" namespace than its process (unshare(2), setns(2))", "")
			}
		}
	}
	return nil
}

// CheckTree names what stands between the processes of a tree: namespaces that differ and things that are shared
// where they cannot be. It touches nothing.
func CheckTree(fs procfs.FS, tree []*engine.Process) ([]engine.Obstacle, error) {
	if len(tree) == 0 {
		return nil, nil
	}
	var found []engine.Obstacle
	for _, n := range []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"} {
		if ns.Nests(n) {
			continue // carried (package ns)
		}
		want, err := fs.Link(tree[0].PID, "ns", n)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, p := range tree[1:] {
			got, err := fs.Link(p.PID, "ns", n)
			if errors.Is(err, procfs.ErrGone) {
				continue // it ended, or is a zombie, which has left its namespaces
			}
			if err != nil {
				return nil, err
			}
			if got != want {
				found = append(found, engine.Obstacle{PID: p.PID, Kind: "namespaces", Where: n + " namespace",
					Reason: fmt.Sprintf("it is not the one of pid %d, the root of the tree", tree[0].PID), Remedy: "move the whole container by its pid 1"})
			}
		}
	}
	shared, err := sharedBetween(fs, tree)
	if err != nil {
		return nil, err
	}
	outside, err := sharedWithParent(fs, tree[0])
	return append(append(found, shared...), outside...), err
}

func checkShadowStack(c *checker) error {
	c.eachThread(func(where string, _ int, s *procfs.Status) {
		if slices.Contains(s.ThreadFeatures, "shstk") {
			c.refuse(where, "it has a user shadow stack", "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off")
		}
	})
	return nil
}

func checkEnding(c *checker) error {
	if c.status.CoreDumping {
		c.refuse("the process", "it is being dumped to a core file", "")
	} else if c.stat.Flags&procfs.FlagExiting != 0 || c.stat.State == 'X' {
		c.refuse("the process", "it is ending", "")
	}
	return nil
}
