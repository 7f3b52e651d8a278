package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

const (
	// RegionSize is what a stub takes in an address space: a page of code, then scratch memory.
	RegionSize  = 256 << 10
	scratchSize = RegionSize - arch.PageSize

	birthOptions = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK
	// quietMask blocks all signals but SIGTRAP, by which a batch ends: the kernel would reset a blocked one's action.
	quietMask = ^uint64(1 << (unix.SIGTRAP - 1))
)

// A Trap is the Caller of a process that is being built: a thread that only ever runs batches, ptrace-stopped
// between them. Its signals but SIGTRAP are blocked, and SIGTRAP's action must be the default; a batch that changes
// either is run step by step, which is slower. Signals that stop it all the same are not delivered.
//
// The Traps of one process share its stub and take turns.
type Trap struct {
	tracer *ptrace.Tracer
	space  *space
	tid    int
	region *region

	// Guarded by region.mu.
	base     arch.Regs // what all batches start from
	original arch.Regs // what InstallStub found
	mask     uint64    // what InstallStub found
	running  bool      // a batch was given up while it ran
	births   []int     // new tasks of the batch that runs
}

// region is a stub's place in an address space.
type region struct {
	mu    sync.Mutex
	start Addr // of RegionSize; 0 if there is none
}

func (r *region) scratch() Addr { return r.start.Add(arch.PageSize) }

var _ Caller = (*Trap)(nil)

// InstallStub puts a stub into the process of thread tid, at the page-aligned address at or, if that is 0, where the
// kernel likes. The thread is seized with PTRACE_O_EXITKILL and stopped if this tracer does not trace it yet; else it
// must be stopped. Its calls are made with the vDSO's system call instruction, or with that of the seed.
// The thread stays the caller's to detach. EEXIST: something is mapped at the address.
func InstallStub(ctx context.Context, tracer *ptrace.Tracer, tid int, at Addr) (_ *Trap, err error) {
	options, traced, _, err := tracer.Options(ctx, tid)
	if err != nil {
		return nil, err
	}
	if !traced {
		if err := tracer.Seize(ctx, tid, unix.PTRACE_O_EXITKILL|birthOptions); err != nil {
			return nil, err
		}
		if _, err := tracer.Stop(ctx, tid); err != nil {
			return nil, err
		}
	} else if err := tracer.SetOptions(ctx, tid, options|birthOptions); err != nil {
		return nil, err
	}
	t := &Trap{tracer: tracer, tid: tid, region: &region{}}
	pid, err := threadGroup(tid)
	if err != nil {
		return nil, err
	}
	if t.space, err = openSpace(pid); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.space.release())
		}
	}()
	if t.original, err = tracer.GetRegs(ctx, tid); err != nil {
		return nil, err
	}
	if t.mask, err = tracer.GetSigMask(ctx, tid); err != nil {
		return nil, err
	}
	if err := tracer.SetSigMask(ctx, tid, quietMask); err != nil {
		return nil, err
	}
	t.base = t.original
	if t.region.start, err = t.mapRegion(ctx, at); err != nil {
		return nil, errors.Join(err, tracer.SetSigMask(ctx, tid, t.mask), tracer.SetRegs(ctx, tid, t.original))
	}
	return t, nil
}

// mapRegion maps a region and writes its code.
func (t *Trap) mapRegion(ctx context.Context, at Addr) (Addr, error) {
	flags := uint64(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS)
	if at != 0 {
		flags |= unix.MAP_FIXED_NOREPLACE
	}
	const rw = unix.PROT_READ | unix.PROT_WRITE
	got, err := t.call(ctx, "mmap", unix.SYS_MMAP, uint64(at), RegionSize, rw, flags, ^uint64(0), 0)
	if err != nil {
		return 0, fmt.Errorf("a stub at %v: %w", at, err)
	}
	start := Addr(got)
	if at != 0 && start != at { // a kernel before 4.17 takes MAP_FIXED_NOREPLACE for a hint
		_, err := t.call(ctx, "munmap", unix.SYS_MUNMAP, got, RegionSize)
		return 0, errors.Join(fmt.Errorf("a stub at %v: %w", at, unix.EEXIST), err)
	}
	if err := t.space.mem.Write(start, arch.Trap()); err != nil {
		return 0, fmt.Errorf("writing the stub: %w", err)
	}
	_, err = t.call(ctx, "mprotect", unix.SYS_MPROTECT, got, arch.PageSize, unix.PROT_READ|unix.PROT_EXEC)
	return start, err
}

// call makes one system call without the stub.
func (t *Trap) call(ctx context.Context, name string, nr int, args ...uint64) (uint64, error) {
	insn, err := findSyscall(t.space, t.tid, t.original, t.region.start)
	if err != nil {
		return 0, err
	}
	result, _, err := t.tracer.Call(ctx, t.tid, insn, nr, args...)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s in thread %d: %w", name, t.tid, err)
	case result < 0 && result >= -4095:
		return 0, fmt.Errorf("%s in thread %d: %w", name, t.tid, unix.Errno(-result))
	}
	return uint64(result), nil
}

// PID implements Caller.
func (t *Trap) PID() int { return t.space.pid }

// TID implements Caller.
func (t *Trap) TID() int { return t.tid }

// Tracer returns the tracer that holds the thread.
func (t *Trap) Tracer() *ptrace.Tracer { return t.tracer }

// Memory returns the memory of the process. It belongs to the Trap.
func (t *Trap) Memory() *ptrace.Memory { return t.space.mem }

// Region returns where the stub stands and how large it is.
func (t *Trap) Region() (Addr, uint64) {
	t.region.mu.Lock()
	defer t.region.mu.Unlock()
	return t.region.start, RegionSize
}

// Original returns the registers and the signal mask that InstallStub found.
func (t *Trap) Original() (arch.Regs, uint64) { return t.original, t.mask }

// Relocate moves the stub to another place. EEXIST: something is mapped there.
func (t *Trap) Relocate(ctx context.Context, at Addr) error {
	t.region.mu.Lock()
	defer t.region.mu.Unlock()
	start, err := t.mapRegion(ctx, at)
	if err != nil {
		return err
	}
	old := t.region.start
	t.region.start = start
	_, err = t.call(ctx, "munmap", unix.SYS_MUNMAP, uint64(old), RegionSize)
	return err
}

// Remove unmaps the stub, for all Traps of the process, with the vDSO's system call instruction. The thread is left in
// an EventStop, to be given its final registers and signal mask and detached.
func (t *Trap) Remove(ctx context.Context) error {
	t.region.mu.Lock()
	defer t.region.mu.Unlock()
	if t.region.start == 0 {
		return nil
	}
	if _, err := t.call(ctx, "munmap", unix.SYS_MUNMAP, uint64(t.region.start), RegionSize); err != nil {
		return fmt.Errorf("removing the stub: %w", err)
	}
	t.region.start = 0
	_, err := t.tracer.Settle(ctx, t.tid)
	return err
}

// Release removes the stub and gives the thread the registers and the signal mask that InstallStub found. It stays
// stopped, to be detached.
func (t *Trap) Release(ctx context.Context) error {
	if err := t.Remove(ctx); err != nil {
		return err
	}
	return errors.Join(t.tracer.SetSigMask(ctx, t.tid, t.mask), t.tracer.SetRegs(ctx, t.tid, t.original))
}

// Close gives up this process's descriptors for the tracee. It does not touch the tracee.
func (t *Trap) Close() error { return t.space.release() }

// Pull implements Caller.
func (t *Trap) Pull(_ context.Context, fd int) (*os.File, error) { return t.space.pull(fd) }

// Push implements Caller.
func (t *Trap) Push(ctx context.Context, files []PushFile) error { return push(ctx, t, t.space, files) }

// processOf returns the id by which /proc tells of the process of a thread: that of its leader, or its own if the leader has
// ended.
func processOf(tid int) (int, error) {
	pid, err := threadGroup(tid)
	if err != nil || pid == tid {
		return pid, err
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("thread %d: %w", tid, ErrGone)
	}
	if err != nil {
		return 0, err
	}
	if strings.Contains(string(status), "\nState:\tZ") {
		return tid, nil
	}
	return pid, nil
}

// threadGroup returns the process of a thread.
func threadGroup(tid int) (int, error) {
	n, err := statusField(tid, "Tgid")
	return int(n), err
}
