//go:build linux

// Package restore brings a process tree into a host: it builds a skeleton of it (processes, threads and mappings, all stopped),
// takes its pages while the source still runs, gives it its state, holds it, and lets it run. It holds only the order of
// things; the things are in the packages of the resources (mem, task, files).
//
//	Prepare -> { Follow, WritePages... }* -> Finish -> Hold -> Release -> Resume -> Close
//	   \-------------------------------------------------> Destroy
//
// Until Hold, all of it dies with this program; afterwards it stands still in a frozen cgroup until somebody thaws or
// ends it.
package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	ipc_var "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-var"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine"
	"migrate/engine/files"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
	"migrate/engine/task"
)

// Env is where a tree is rebuilt.
type Env struct {
	// Parent is the process whose children the roots of the tree become: the pid 1 of a workload, or, with Sibling,
	// a helper whose own parent is to be theirs.
	Parent  int
	Sibling bool
	// SetUp, if not nil, completes the namespaces of the tree, by calls in Parent.
	SetUp func(context.Context, remote.Caller) error
	// Cgroup holds the tree; Hold freezes it.
	Cgroup *ns.Cgroup
	// External are open files that stand for descriptors of the tree that lead to the host, by the name that the dump
	// gave them, such as the workload's output.
	External func(name string, flags int) (*os.File, error)
	// Terminal takes the master of a terminal whose holder is outside of the tree (files.Env), which is closed afterwards; calls can be made
	// in Parent meanwhile. nil if nobody takes any.
	Terminal func(ctx context.Context, parent remote.Caller, name string, master *os.File) error
	// NetNS is the network namespace of the tree; nil for that of this program.
	NetNS *os.File

	heritage *heritage
}

// Skeleton is a process tree that is being rebuilt: its processes exist, stopped, while the source still runs. Every
// process is killed when this program ends, until Hold has put the tree into a frozen cgroup. A Skeleton is used by
// one goroutine at a time, except that WritePages and ZeroPages may be called by several, between two calls of Follow.
type Skeleton struct {
	// pages is held for reading while pages are written, and otherwise by whoever changes what they are written to: a peer that
	// sends both at once is wrong, but does no harm.
	pages sync.RWMutex

	env    Env
	tracer *ptrace.Tracer
	parent *remote.Trap
	procs  map[int]*process // by the id that the tree knows
	order  []int            // parents before children
	state  state
	undo   func() error // removes what was made beside the tree; nil for nothing
	// sharing is what the processes share, by the id that the tree knows.
	sharing map[int]engine.Shared
	files   *files.Restorer

	objects  map[uint32]*mem.Object // memory and files that no name reaches, by their number
	shm      *mem.Shm               // the tree's own /dev/shm, once something is in it
	nameless map[uint32]uint32      // the objects that files of the layout or checkpoint are
	distant  map[uint32]distant     // those that are in another mount namespace than the process which has them

	// Namespaces that the tree has for itself; nil if it has none.
	own       *images.Namespaces
	ownHeader *imagespb.Namespaces
	ownNet    *os.File             // its network namespace, once it is open
	settings  *ipc_var.IpcVarEntry // of the IPC namespace around it, as they were last given to that
	spaces    *ns.Live             // those and others that only some processes are in, as they are made

	sessions  map[int]*imagespb.SessionTerminal // by the id of the leader, of the layout that is followed
	terminals map[uint32]*os.File               // masters of controlling terminals that no Restorer has taken yet
}

// state of a Skeleton:
//
//	building --Finish--> complete --Hold--> held --Resume--> running
//	    |                   |                 |
//	    +-------------------+-----------------+--Destroy--> gone
type state uint8

const (
	building state = iota
	complete
	held
	running
	gone
)

func (s state) String() string {
	return [...]string{"building", "complete", "held", "running", "gone"}[s]
}

// process is one process of the skeleton.
type process struct {
	engine.Process
	trap    *remote.Trap         // of the leader
	threads map[int]*remote.Trap // of the others, by the id that the tree knows
	space   *images.Space        // as it was last built
	writer  *mem.Writer          // of its private memory
	target  []*vma.VmaEntry      // as it is being built

	from   *process // whose memory it has had since its birth, until it got its own; nil if that is of no use
	filled bool     // with the pages of a checkpoint

	session, group int    // that it is in now, as task.PlanTree knows them
	terminal       uint32 // id of the controlling terminal that it has taken as the leader of a session
	stopped        bool   // by a signal, once its image is known
	closed         bool
}

// ErrState means that a method was called in a state in which it makes no sense.
var ErrState = errors.New("not possible in this state of the skeleton")

// Prepare builds the skeleton of a tree: processes, threads and mappings, no pages. On failure nothing is left.
func Prepare(ctx context.Context, env Env, layout *images.Layout) (_ *Skeleton, err error) {
	s := &Skeleton{env: env, tracer: ptrace.New(), procs: map[int]*process{}, terminals: map[uint32]*os.File{}, objects: map[uint32]*mem.Object{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Destroy(context.WithoutCancel(ctx)))
		}
	}()
	if s.parent, err = remote.InstallStub(ctx, s.tracer, env.Parent, 0); err != nil {
		return nil, fmt.Errorf("borrowing the parent of the tree (pid %d): %w", env.Parent, err)
	}
	if env.SetUp != nil {
		if err := env.SetUp(ctx, s.parent); err != nil {
			return nil, err
		}
	}
	if err := s.leaveTerminal(ctx); err != nil {
		return nil, err
	}
	return s, s.Follow(ctx, layout)
}

// Follow makes the skeleton what the source has become: new and ended processes and threads, changed mappings.
func (s *Skeleton) Follow(ctx context.Context, layout *images.Layout) error {
	s.pages.Lock()
	defer s.pages.Unlock()
	if s.state != building {
		return fmt.Errorf("following a layout: %w: %v", ErrState, s.state)
	}
	s.sharing = task.ReadShared(layout.Header)
	if err := s.namespaces(layout); err != nil {
		return err
	}
	if err := s.aroundSettings(layout); err != nil {
		return err
	}
	if err := s.followTree(ctx, layout); err != nil {
		return err
	}
	if err := s.followObjects(ctx, layout.Header); err != nil {
		return err
	}
	s.findNameless(layout.Header, layout.Files)
	mapped := make(map[uint32]*fdinfo.FileEntry, len(layout.Files))
	for _, f := range layout.Files {
		mapped[f.GetId()] = f
	}
	for _, space := range layout.Spaces {
		p := s.procs[int(space.PID)]
		if p == nil {
			return fmt.Errorf("layout: the address space of process %d, which is not in the tree", space.PID)
		}
		if space.MM == nil || p.Second(p.Shared.VM) {
			continue // it has ended and waits for its parent, or has the memory of another
		}
		if err := s.followSpace(ctx, p, space, mapped); err != nil {
			return fmt.Errorf("process %d: %w", space.PID, err)
		}
	}
	for _, entry := range layout.Tree {
		if err := s.followThreads(ctx, s.procs[int(entry.GetPid())], entry.GetThreads()); err != nil {
			return fmt.Errorf("process %d: %w", entry.GetPid(), err)
		}
	}
	return nil
}

// WritePages puts pages into the address space of a process. It implements the sink of a page stream.
func (s *Skeleton) WritePages(space uint32, addr uint64, data []byte) error {
	s.pages.RLock()
	defer s.pages.RUnlock()
	w, err := s.writer(space)
	if err != nil {
		return err
	}
	return w.WritePages(addr, data)
}

// ZeroPages makes n pages from addr on read as zero.
func (s *Skeleton) ZeroPages(space uint32, addr uint64, n uint32) error {
	s.pages.RLock()
	defer s.pages.RUnlock()
	w, err := s.writer(space)
	if err != nil {
		return err
	}
	return w.ZeroPages(addr, n)
}

// pageWriter is what takes the pages of a space.
type pageWriter interface {
	WritePages(addr uint64, data []byte) error
	ZeroPages(addr uint64, n uint32) error
}

func (s *Skeleton) writer(space uint32) (pageWriter, error) {
	if id, ok := mem.IsObject(space); ok {
		if o := s.objects[id]; o != nil && o.Writer() != nil {
			return o.Writer(), nil
		}
		return nil, fmt.Errorf("pages of object %d, which has none or is not in the layout", id)
	}
	if p := s.procs[int(space)]; p != nil && p.writer != nil {
		return p.writer, nil
	}
	return nil, fmt.Errorf("pages for process %d, which is not in the tree", space)
}

// Destroy ends the tree and gives back all that was borrowed. It may be called in any state but running, and again.
func (s *Skeleton) Destroy(ctx context.Context) error {
	s.pages.Lock()
	defer s.pages.Unlock()
	if s.state == running {
		return fmt.Errorf("destroying: %w: %v", ErrState, s.state)
	}
	if s.state == held {
		return s.destroyHeld(ctx)
	}
	errs := []error{s.abandonObjects()} // while there is a process in their namespace
	for _, pid := range slices.Backward(s.order) {
		if p := s.procs[pid]; p != nil {
			errs = append(errs, s.end(ctx, p))
		}
	}
	for _, p := range s.procs {
		errs = append(errs, s.end(ctx, p))
	}
	errs = append(errs, s.closeTerminals(), s.closeNamespaces())
	if s.files != nil {
		errs = append(errs, s.files.Drop())
	}
	if s.parent != nil {
		errs = append(errs, giveBack(ctx, s.parent))
		s.parent = nil
	}
	if s.undo != nil {
		errs = append(errs, s.undo())
		s.undo = nil
	}
	s.state = gone
	return errors.Join(append(errs, s.tracer.Close())...)
}

// destroyHeld ends a tree that is no longer traced but frozen.
func (s *Skeleton) destroyHeld(ctx context.Context) error {
	if err := s.env.Cgroup.Kill(); err != nil {
		return err
	}
	if err := s.env.Cgroup.Empty(ctx); err != nil {
		return err
	}
	s.state = gone
	return errors.Join(s.files.Drop(), s.tracer.Close())
}

// Digest is the hash over all memory that was received.
func (s *Skeleton) Digest() mem.Sum {
	var sum mem.Sum
	for _, o := range s.objects {
		if o.Writer() != nil {
			sum = sum.Add(o.Writer().Sum())
		}
	}
	for _, p := range s.procs {
		if p.writer != nil {
			sum = sum.Add(p.writer.Sum())
		}
	}
	return sum
}
