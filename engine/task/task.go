//go:build linux

// Package task carries what belongs to processes and threads themselves: registers, signals, timers, credentials,
// limits, scheduling and the like. Each kind of state stands in one file with its check, its dump and its restore
// side by side, and is registered in the table of kinds.go, from which docs/coverage.md is made.
//
// Check reads only /proc (and kcmp(2)) and touches nothing; it names what is not carried. DumpProcess works on a
// process all of whose threads are stopped by ptrace, and runs one batch of system calls in its leader, and in the
// other threads too where the kernel cannot be asked about them (OpenThreadReader).
// RestoreThread works on a thread of a skeleton and runs one batch (two in the leader if SIGTRAP has a handler or
// timer ids have to be counted up); RestoreRegisters comes last, after the stub is gone.
//
// The order of a restore is the order of the table, because one kind takes away what another needs:
//
//  1. names, personality, limits, scheduling, handlers and timers need capabilities and come first;
//  2. credentials drop them, and clear the parent-death signal and the dumpable flag;
//  3. so these two, and no_new_privs, come after the credentials;
//  4. pending signals come after handlers and limits, while all signals are blocked;
//  5. restart block, extended registers, mask and registers come last, by ptrace.
//
// The package takes no locks and starts no goroutines. On failure a dump leaves the process as it was; a restore
// leaves a skeleton that is to be destroyed.
package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/arch"
	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// ErrNotCarried means that a stopped process turned out to have something that is not carried and that could not
// be seen before it was stopped. The error's text names it.
var ErrNotCarried = errors.New("it is not carried")

// Source is what the dump of one process needs. All its threads are stopped by Tracer.
type Source struct {
	FS     procfs.FS
	Tracer *ptrace.Tracer
	Memory *ptrace.Memory
	Proc   *engine.Process
	// Tree are all processes that are dumped together; ids of threads elsewhere in the tree are looked up in it.
	Tree []*engine.Process
	// Clocks are those of the image's header: remaining times are counted from that instant.
	Clocks *imagespb.Clocks
	// AddPath registers an open file or directory, given by a link below FS such as "12/cwd", and returns its id in
	// files.img.
	AddPath func(ctx context.Context, link string) (uint32, error)
	// RestartBlocks reads what the kernel keeps of a thread; nil where the kernel cannot be asked (OpenThreadReader).
	// Without it, every thread needs a Caller.
	RestartBlocks *ThreadReader
	// User holds the maps of the user namespace that the tree has for itself; nil if it has none.
	User *userns.UsernsEntry
	// Seccomp gathers the filters of all processes of the tree, for the image's header.
	Seccomp *SeccompTable
	// Stops are the processes that a signal has stopped; nil if that is not asked for.
	Stops *StopTable
	// Cgroups gathers the cgroups of all tasks; nil if they are not asked for.
	Cgroups *CgroupTable

	// SemUndo reads what SEM_UNDO would undo; nil if that is not asked for.
	SemUndo *SemUndos
	// Also, if it is not nil, adds questions of others to those that the first thread is asked.
	Also func(*remote.Batch)

	common *common
}

// common is what need not be found out for each thread anew.
type common struct {
	online []byte // mask of processors
	slice  uint64 // default time slice of ordinary threads; 0 if the kernel does not tell
	leader *dumper
}

// ThreadState is a stopped thread as the freeze found it, before it was borrowed: a borrowed thread runs, so that
// ptrace(2) has no answers about it.
type ThreadState struct {
	Thread   engine.Thread
	Regs     arch.Regs
	SigMask  uint64 // bit n-1 for signal n
	XState   []byte
	Held     unix.Signal      // the process is in a group stop by this signal; 0 if not
	Pending  []ptrace.SigInfo // signals of the thread, oldest first
	Shared   []ptrace.SigInfo // signals of the process
	Rseq     ptrace.Rseq
	RseqErr  error           // the kernel does not tell
	Dispatch ptrace.Dispatch // zero if the kernel does not have it
	// Caller runs calls in this very thread. Threads other than the leader need none if the kernel can be asked by
	// Source.RestartBlocks, which is far cheaper than borrowing each of them.
	Caller remote.Caller
}

// ReadThreadState takes from a stopped thread what ptrace tells. Call it before the thread is borrowed.
func ReadThreadState(ctx context.Context, t *ptrace.Tracer, th engine.Thread, stop ptrace.Stop) (ThreadState, error) {
	l, err := ReadThreadStates(ctx, t, []engine.Thread{th}, []ptrace.Stop{stop})
	if err != nil {
		return ThreadState{}, err
	}
	return l[0], nil
}

// ReadThreadStates does the same for many threads at a fraction of the cost; stops are those of the threads, in their
// order.
func ReadThreadStates(ctx context.Context, t *ptrace.Tracer, threads []engine.Thread, stops []ptrace.Stop) ([]ThreadState, error) {
	if len(threads) != len(stops) {
		return nil, fmt.Errorf("%d threads with %d stops", len(threads), len(stops))
	}
	out := make([]ThreadState, len(threads))
	err := t.OnThread(ctx, func(ctx context.Context) error {
		for i, th := range threads {
			out[i] = ThreadState{Thread: th, Held: stops[i].Held}
			if err := out[i].read(ctx, t); err != nil {
				return fmt.Errorf("thread %d: %w", th.TID, err)
			}
		}
		return nil
	})
	return out, err
}

func (s *ThreadState) read(ctx context.Context, t *ptrace.Tracer) (err error) {
	tid := s.Thread.TID
	if s.Regs, err = t.GetRegs(ctx, tid); err != nil {
		return fmt.Errorf("registers: %w", err)
	}
	if s.XState, err = t.GetXState(ctx, tid); err != nil {
		return fmt.Errorf("extended registers: %w", err)
	}
	if s.SigMask, err = t.GetSigMask(ctx, tid); err != nil {
		return fmt.Errorf("signal mask: %w", err)
	}
	if s.Pending, err = t.PeekSigInfo(ctx, tid, false); err != nil {
		return fmt.Errorf("pending signals: %w", err)
	}
	if s.Shared, err = t.PeekSigInfo(ctx, tid, true); err != nil {
		return fmt.Errorf("pending signals of the process: %w", err)
	}
	if s.Rseq, err = t.GetRseq(ctx, tid); err != nil {
		s.RseqErr = err
	}
	if s.Dispatch, err = t.GetDispatch(ctx, tid); err != nil {
		s.Dispatch = ptrace.Dispatch{} // before 6.4 the kernel does not tell, before 5.11 it has none
	}
	return ctx.Err()
}

// dumper collects the calls of one thread's batch and what is read beside it.
type dumper struct {
	ctx context.Context
	*Source
	ThreadState
	leader bool
	batch  remote.Batch
	kernel *KernelState // nil where the kernel cannot be asked
	thread *images.Thread
	proc   *images.Process // nil but for the leader
	after  []func() error
	// sinceFreeze is how long ago the instant of Clocks was, when the batch ran.
	sinceFreeze time.Duration
}

// then adds what is to be done with the results of the batch.
func (d *dumper) then(fn func() error) { d.after = append(d.after, fn) }

// tid is the thread in this program's pid namespace.
func (d *dumper) tid() int { return d.Thread.TID }

// DumpProcess records a process and its threads: all that this package carries. It leaves MM.Vmas and FDs to
// others. The states are those of all threads, the leader's first. Errors that match ErrNotCarried name what
// Check could not see.
func DumpProcess(ctx context.Context, s *Source, threads []ThreadState) (*images.Process, error) {
	if len(threads) == 0 {
		return nil, fmt.Errorf("pid %d: no thread to dump", s.Proc.PID)
	}
	p := &images.Process{PID: uint32(s.Proc.VPID), MM: &mm.MmEntry{}, Extra: &imagespb.ProcessExtra{Pid: uint32(s.Proc.VPID)}}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	for i, t := range threads {
		var proc *images.Process
		if i == 0 {
			proc = p
		}
		th, err := dumpThread(ctx, s, t, proc)
		if err != nil {
			return nil, fmt.Errorf("pid %d, thread %d: %w", s.Proc.PID, t.Thread.TID, err)
		}
		p.Threads = append(p.Threads, th)
	}
	return p, nil
}

// prepare fills common.
func (s *Source) prepare() error {
	s.common = &common{}
	var err error
	if s.common.online, err = online(); err != nil {
		return err
	}
	if a, err := unix.SchedGetAttr(0, 0); err == nil && fairPolicy(a.Policy) {
		s.common.slice = a.Runtime
	}
	return nil
}

// dumpThread records one thread and, if proc is not nil, its process.
func dumpThread(ctx context.Context, s *Source, t ThreadState, proc *images.Process) (*images.Thread, error) {
	tid := uint32(t.Thread.VTID)
	d := &dumper{ctx: ctx, Source: s, ThreadState: t, leader: proc != nil, proc: proc}
	d.thread = &images.Thread{
		TID:   tid,
		Core:  &criu_core.CoreEntry{Mtype: machine().Enum(), ThreadCore: &criu_core.ThreadCoreEntry{}},
		Extra: &imagespb.ThreadExtra{Tid: tid, Goarch: goarch},
	}
	if d.leader {
		d.thread.Core.Tc = &criu_core.TaskCoreEntry{
			TaskState: proto.Uint32(images.TaskAlive), ExitCode: proto.Uint32(0), Flags: proto.Uint32(0),
		}
	}
	if s.RestartBlocks != nil {
		state, err := s.RestartBlocks.Read(t.Thread.TID)
		if err != nil {
			return nil, err
		}
		d.kernel = &state
	}
	if d.leader {
		s.common.leader = d
		d.clock()
	}
	for _, list := range [][]kind{kinds, refused} {
		for i := range list {
			k := &list[i]
			if k.dump == nil || (k.process && !d.leader) {
				continue
			}
			if err := k.dump(d); err != nil {
				return nil, fmt.Errorf("%s: %w", k.Name, err)
			}
		}
	}
	if d.leader && s.Also != nil {
		s.Also(&d.batch)
	}
	if d.batch.Len() > 0 {
		if t.Caller == nil {
			return nil, errors.New("asking the thread about itself: it was not borrowed, and the kernel cannot be asked")
		}
		if err := t.Caller.Run(ctx, &d.batch); err != nil {
			return nil, fmt.Errorf("asking the thread about itself: %w", err)
		}
	}
	for _, fn := range d.after {
		if err := fn(); err != nil {
			return nil, err
		}
	}
	return d.thread, nil
}

// clock makes the batch's first call a reading of the clock from which remaining times are counted.
func (d *dumper) clock() {
	now := d.batch.Buffer(16)
	d.batch.Call(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, now)
	d.then(func() error {
		if d.Clocks != nil {
			d.sinceFreeze = timespecAt(now.Bytes(), 0) - time.Duration(d.Clocks.GetMonotonic())
		}
		return nil
	})
}

// Target is what the restore of one process needs.
type Target struct {
	FS     procfs.FS
	Tracer *ptrace.Tracer
	Memory *ptrace.Memory
	Proc   *engine.Process // of the skeleton, its ids as the tree knows them equal to the image's
	Image  *images.Process
	Header *imagespb.Header
	// Path returns where a file of files.img is found inside the target's root.
	Path func(id uint32) (string, error)
	// Nameless opens a file of files.img that no name reaches; it returns nil for one that has a path. It may be nil.
	Nameless func(id uint32, flags int) (*os.File, error)
	// Shared says what the process shares with others of the tree.
	Shared engine.Shared

	guarded bool // seccomp is suspended in all threads, and has the filters that they have in common
	known   *known
}

// known is what all threads of a skeleton have in common before their restore.
type known struct {
	online              []byte // mask of processors
	permitted, bounding uint64 // capabilities
	loginUID            uint32
}

// learn fills known from the first thread that is restored.
func (t *Target) learn(caller remote.Caller) error {
	if t.known != nil {
		return nil
	}
	mask, err := online()
	if err != nil {
		return err
	}
	s, err := t.FS.ThreadStatus(caller.PID(), caller.TID())
	if err != nil {
		return err
	}
	t.known = &known{online: mask, permitted: uint64(s.CapPrm), bounding: uint64(s.CapBnd)}
	t.known.loginUID, err = loginUID(t.FS, caller.PID())
	return err
}

// restorer collects the calls of one thread's batch.
type restorer struct {
	ctx context.Context
	*Target
	caller remote.Caller
	leader bool
	thread *images.Thread
	batch  *remote.Batch
	after  []func() error
	// elapsed is how long ago the tree was stopped, by its own monotonic clock.
	elapsed time.Duration
}

func (r *restorer) then(fn func() error) { r.after = append(r.after, fn) }

// tid is the thread in this program's pid namespace.
func (r *restorer) tid() int { return r.caller.TID() }

func (r *restorer) core() *criu_core.ThreadCoreEntry { return r.thread.Core.GetThreadCore() }

// flush runs what the batch holds so far and begins a new one.
func (r *restorer) flush() error {
	if r.batch.Len() > 0 {
		if err := r.caller.Run(r.ctx, r.batch); err != nil {
			return err
		}
	}
	r.batch = &remote.Batch{}
	after := r.after
	r.after = nil
	for _, fn := range after {
		if err := fn(); err != nil {
			return err
		}
	}
	return nil
}

// require makes the failure of a call an error that says what could not be set.
func (r *restorer) require(res *remote.Result, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	r.then(func() error {
		if err := res.Err(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

// RestoreThread gives a thread of a skeleton all its state but the registers. The leader goes last, because its part
// limits the whole process; all other threads must exist by then, since timers may notify them. Memory and
// descriptors of the process must be in place.
func RestoreThread(ctx context.Context, t *Target, caller remote.Caller, img *images.Thread) error {
	return t.Tracer.OnThread(ctx, func(ctx context.Context) error { return restoreThread(ctx, t, caller, img) })
}

func restoreThread(ctx context.Context, t *Target, caller remote.Caller, img *images.Thread) error {
	r := &restorer{ctx: ctx, Target: t, caller: caller, thread: img, leader: img == t.Image.Leader(), batch: &remote.Batch{}}
	if err := t.learn(caller); err != nil {
		return err
	}
	if r.leader { // it has the timers
		now, err := Clocks(t.FS, caller.PID())
		if err != nil {
			return err
		}
		r.elapsed = max(0, time.Duration(now.GetMonotonic()-t.Header.GetClocks().GetMonotonic()))
	}
	for i := range kinds {
		k := &kinds[i]
		if k.restore == nil || (k.process && !r.leader) {
			continue
		}
		if err := k.restore(r); err != nil {
			return fmt.Errorf("thread %d (%d in the tree): %s: %w", caller.TID(), img.TID, k.Name, err)
		}
	}
	if err := r.flush(); err != nil {
		return fmt.Errorf("thread %d (%d in the tree): %w", caller.TID(), img.TID, err)
	}
	return nil
}

// Clocks reads the clocks as a process sees them. The process must not have called unshare(CLONE_NEWTIME): the
// kernel tells the offsets of its children's namespace.
func Clocks(fs procfs.FS, pid int) (*imagespb.Clocks, error) {
	its, err := fs.ClockOffsets(pid)
	if err != nil && !errors.Is(err, procfs.ErrGone) {
		return nil, err
	}
	own, err := procfs.Host.ClockOffsets(unix.Getpid())
	if err != nil && !errors.Is(err, procfs.ErrGone) {
		return nil, err
	}
	c := &imagespb.Clocks{}
	for _, r := range []struct {
		clock int32
		dst   *int64
		add   time.Duration
	}{
		{unix.CLOCK_MONOTONIC, &c.Monotonic, its.Monotonic - own.Monotonic},
		{unix.CLOCK_BOOTTIME, &c.Boottime, its.Boottime - own.Boottime},
		{unix.CLOCK_REALTIME, &c.Realtime, 0},
	} {
		var ts unix.Timespec
		if err := unix.ClockGettime(r.clock, &ts); err != nil {
			return nil, fmt.Errorf("clock %d: %w", r.clock, err)
		}
		*r.dst = ts.Nano() + int64(r.add)
	}
	return c, nil
}
