//go:build linux

// Package dump takes a process tree out of a host: it finds it, names what cannot be carried, copies its memory while it
// runs, stops it, and records its state. It holds only the order of things; the things are in the packages of the
// resources (mem, task, files).
//
//	Open -> Obstacles -> Track -> { Layout, Round }* -> Freeze -> { Layout, Round, State } -> Thaw | Hold | Destroy -> Close
//
// Until Hold, the death of this program leaves the tree running as it was. A Source is used by one goroutine at a time.
package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/files"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/task"
)

// Options of a Source.
type Options struct {
	Target
	// External names files that belong to the host, such as the log of a workload (see files.Options).
	External map[files.FileID]string
	// Cgroup is where the tree is, and what Hold freezes. Without it the tree cannot be held, only thawed or destroyed.
	Cgroup *ns.Cgroup
	// LockConnections: see files.Options.
	LockConnections bool
	// SameHost tells that the tree will come back on this host (see files.Options).
	SameHost bool
	// Terminals are the masters of pseudoterminals that are held for the tree, by name; NewTerminals gives it new ones in the place of
	// those whose masters are held by others (see files.Options).
	Terminals    map[string]*os.File
	NewTerminals bool
	// ExternalUnix: see files.Options.
	ExternalUnix map[string]string
}

// Source is a process tree that is being dumped or moved away.
type Source struct {
	opts   Options
	fs     procfs.FS
	tracer *ptrace.Tracer
	files  *files.Dumper
	memory *memory
	// asker reads what the kernel keeps of a thread; nil where this kernel cannot be asked.
	asker *task.ThreadReader

	seccomp   task.SeccompTable
	cgroups   task.CgroupTable
	stops     task.StopTable
	undos     task.SemUndos
	target    Target
	procs     []*engine.Process // as last listed
	frozen    []*frozen         // after Freeze
	stoppedAt time.Time         // when Freeze began
	spaces    *namespaces       // as last described; nil before
	around    *ns.Around        // the IPC namespace that the destination makes for the tree; nil for this program's
	held      bool
}

// Open finds the tree. It touches nothing.
func Open(ctx context.Context, o Options) (*Source, error) {
	s := &Source{opts: o, fs: procfs.Host, target: o.Target}
	if err := s.list(); err != nil {
		return nil, err
	}
	if o.Init != 0 {
		var err error
		if s.around, err = ns.OpenAround(o.Init); err != nil {
			return nil, err
		}
	}
	s.tracer = ptrace.New()
	s.memory = newMemory(s)
	s.memory.objects.In(s.procs[0].PID)
	if o.Init != 0 {
		if err := s.memory.objects.TakeShm(o.Init); err != nil {
			return nil, errors.Join(err, s.around.Close(), s.tracer.Close())
		}
	}
	s.files = files.NewDumper(files.Options{Init: o.Init, Young: s.young, External: o.External, LockConnections: o.LockConnections, Objects: s.memory.objects, SameHost: o.SameHost,
		Terminals: o.Terminals, NewTerminals: o.NewTerminals, ExternalUnix: o.ExternalUnix})
	s.asker, _ = task.OpenThreadReader() // without it threads are borrowed, and the time left of some waits is not exact (see package task)
	return s, ctx.Err()
}

// list reads the tree anew.
func (s *Source) list() (err error) {
	if s.procs, _, err = s.find(); err != nil {
		return err
	}
	if slices.ContainsFunc(s.procs, func(p *engine.Process) bool { return p.Group() == os.Getpid() }) {
		return fmt.Errorf("pid %d: %w", s.target.PID, ErrSelf)
	}
	return task.FindShared(s.procs)
}

// Processes lists the tree as it was last seen, parents first.
func (s *Source) Processes() []*engine.Process { return s.procs }

// Pending counts connections that the program has not accepted yet or that are being opened; see files.Dumper.
func (s *Source) Pending(ctx context.Context) (int, error) { return s.files.Pending(ctx, s.procs) }

// Timeouts are the retransmission time-outs of connections between the last call of Pending and State.
func (s *Source) Timeouts() []files.Timeouts { return s.files.Timeouts() }

// passingTime is how long something that passes is waited for.
const passingTime = 2 * time.Second

// Obstacles names everything of the tree that is not carried. The tree is not touched.
func (s *Source) Obstacles(ctx context.Context) ([]engine.Obstacle, error) {
	began := time.Now()
	for listings := 0; listings < maxListings; {
		if err := s.list(); err != nil {
			return nil, err
		}
		all, err := s.obstacles(ctx)
		passing := slices.ContainsFunc(all, func(o engine.Obstacle) bool { return o.Passing })
		if err == nil && passing && time.Since(began) < passingTime && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond) // there is no event of it
			continue
		}
		if err == nil || !ended(err) {
			return all, err
		}
		listings++ // one that waited for something to pass is bounded by passingTime
	}
	return nil, fmt.Errorf("the processes of the tree of pid %d end faster than they can be examined", s.target.PID)
}

func (s *Source) obstacles(ctx context.Context) ([]engine.Obstacle, error) {
	all, err := task.CheckTree(s.fs, s.procs)
	if err != nil {
		return nil, err
	}
	for _, p := range s.procs {
		list, err := task.Check(ctx, s.fs, p)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	list, err := s.files.Check(ctx, s.procs)
	if err != nil {
		return nil, err
	}
	all = append(all, list...)
	if list, err = s.checkNamespaces(ctx); err != nil {
		return nil, err
	}
	all = append(all, list...)
	list, err = s.memory.check(ctx)
	return append(all, list...), err
}

// Needed lists the files that a destination has to have, as the last call of Obstacles found them.
func (s *Source) Needed() []files.Needed { return s.files.Needed() }

// Thaw lets a stopped or held tree run on exactly as it was.
func (s *Source) Thaw(ctx context.Context) error {
	if err := errors.Join(s.files.Resume(ctx), s.memory.objects.Unlink()); err != nil {
		return err
	}
	if s.held {
		if err := s.opts.Cgroup.Thaw(); err != nil {
			return err // the tree stands still, and this can be tried again
		}
		s.held, s.frozen = false, nil
		return nil
	}
	err := s.letAllGo(ctx)
	s.frozen = nil
	return err
}

// ErrNoCgroup means that a tree cannot be held, because it is in no cgroup of its own.
var ErrNoCgroup = errors.New("the tree is in no cgroup of its own")

// Hold freezes the stopped tree's cgroup and lets go of it: from here on it stands still whatever becomes of this program.
func (s *Source) Hold(ctx context.Context) error {
	if s.opts.Cgroup == nil {
		return ErrNoCgroup
	}
	if err := s.opts.Cgroup.Freeze(ctx); err != nil {
		return err
	}
	s.held = true // from here on only a thawed cgroup lets the tree run
	return errors.Join(s.letAllGo(ctx), s.files.Unfence())
}

// Destroy ends the stopped or held tree. Its connections vanish without a packet.
func (s *Source) Destroy(ctx context.Context) error {
	var errs []error
	for _, f := range s.frozen {
		errs = append(errs, f.close())
	}
	for len(s.procs) > 0 { // each is killed once: its id may be another's when this is tried again
		if err := kill(ctx, s.procs[0].Group()); err != nil {
			return errors.Join(append(errs, err)...)
		}
		s.procs = s.procs[1:]
	}
	s.memory.objects.KeepLinks()
	s.frozen = nil
	return errors.Join(append(errs, s.files.Drop())...)
}

// kill ends a process and waits until it has ended.
func kill(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pid %d: pidfd_open: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pid %d: %w", pid, err)
	}
	if err := ns.AwaitExit(ctx, fd); err != nil {
		return fmt.Errorf("waiting for the end of pid %d: %w", pid, err)
	}
	return nil
}

// Close gives back all that this program holds of the tree. A tree that is stopped but not held runs on.
func (s *Source) Close(ctx context.Context) error {
	errs := []error{s.memory.close(ctx)}
	if s.frozen != nil && !s.held {
		errs = append(errs, s.Thaw(ctx))
	}
	if s.asker != nil {
		errs = append(errs, s.asker.Close())
	}
	return errors.Join(append(errs, s.undos.Close(), s.around.Close(), s.files.Close(), s.tracer.Close())...)
}

// Stop lets go of the stopped tree in a way that keeps it stopped: by SIGSTOP, as a shell would.
func (s *Source) Stop(ctx context.Context) error {
	var errs []error
	for _, p := range s.procs {
		errs = append(errs, unix.Kill(p.Group(), unix.SIGSTOP))
	}
	return errors.Join(append(errs, s.Thaw(ctx))...)
}
