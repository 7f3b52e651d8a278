//go:build linux

package task

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// Modes of seccomp (proc_pid_status(5), "Seccomp").
const (
	seccompStrict = 1
	seccompFilter = 2
)

// Of seccomp(2) (include/uapi/linux/seccomp.h).
const (
	seccompSetModeFilter = 1
	seccompTsync         = 1
	seccompSpecAllow     = 4
	seccompUserNotify    = 0x7fc00000 // SECCOMP_RET_USER_NOTIF
	seccompActionFull    = 0xffff0000 // SECCOMP_RET_ACTION_FULL

	bpfReturnConstant = 0x06 // BPF_RET|BPF_K
)

// SeccompTable gathers the filters of a tree, each once: threads share what they or their makers have installed.
type SeccompTable struct {
	Filters []*imagespb.SeccompFilter
	index   map[string]uint32
	chains  map[uint64][]uint32 // by the kernel's newest filter
}

func (t *SeccompTable) add(f ptrace.SeccompFilter) uint32 {
	if t.index == nil {
		t.index = map[string]uint32{}
	}
	key := string(binary.LittleEndian.AppendUint64(f.Program[:len(f.Program):len(f.Program)], f.Flags))
	n, ok := t.index[key]
	if !ok {
		n = uint32(len(t.Filters))
		t.index[key] = n
		t.Filters = append(t.Filters, &imagespb.SeccompFilter{Program: f.Program, Log: f.Flags&ptrace.SeccompLog != 0})
	}
	return n
}

// checkSeccomp names what keeps this program from suspending seccomp in a thread that has it (ptrace(2),
// PTRACE_O_SUSPEND_SECCOMP).
func checkSeccomp(c *checker) error {
	self, err := procfs.Host.Status(unix.Getpid())
	if err != nil {
		return err
	}
	able := self.Seccomp == 0 && self.CapEff>>unix.CAP_SYS_ADMIN&1 != 0
	c.eachThread(func(where string, _ int, s *procfs.Status) {
		if s.Seccomp != 0 && !able {
			c.refuse(where, "it is under seccomp, which only a program with CAP_SYS_ADMIN and no seccomp itself can suspend", "run this program unconfined")
		}
	})
	return nil
}

// notifies reports whether a filter may hand calls to a listener.
func notifies(program []byte) bool {
	for ; len(program) >= 8; program = program[8:] {
		code, k := binary.LittleEndian.Uint16(program), binary.LittleEndian.Uint32(program[4:])
		if code == bpfReturnConstant && k&seccompActionFull == seccompUserNotify {
			return true
		}
	}
	return false
}

func dumpSeccomp(d *dumper) error {
	mode, newest := uint32(0), uint64(0)
	if d.kernel != nil && d.kernel.HasSeccomp {
		mode, newest = d.kernel.Seccomp, d.kernel.SeccompFilter
	} else {
		s, err := d.FS.ThreadStatus(d.Proc.PID, d.tid())
		if err != nil {
			return err
		}
		mode = uint32(s.Seccomp)
	}
	d.thread.Extra.Seccomp = mode
	if mode != seccompFilter {
		return nil
	}
	if d.Seccomp == nil {
		d.Seccomp = &SeccompTable{}
	}
	t := d.Seccomp
	if chain, ok := t.chains[newest]; ok && newest != 0 {
		d.thread.Extra.SeccompChain = chain
		return nil
	}
	filters, err := d.Tracer.SeccompFilters(d.ctx, d.tid())
	if err != nil {
		return err
	}
	for _, f := range filters {
		if notifies(f.Program) {
			return fmt.Errorf("a filter that hands system calls to a listener (SECCOMP_RET_USER_NOTIF): %w", ErrNotCarried)
		}
		d.thread.Extra.SeccompChain = append(d.thread.Extra.SeccompChain, t.add(f))
	}
	if t.chains == nil {
		t.chains = map[uint64][]uint32{}
	}
	t.chains[newest] = d.thread.Extra.SeccompChain
	return nil
}

// restoreSeccomp installs the filters while the thread's credentials still allow it. Seccomp is suspended in the threads
// of the skeleton until they are let go. What all threads have in common is installed once for all, so that they share it
// and can have the next one installed for all of them.
func restoreSeccomp(r *restorer) error {
	common := commonFilters(r.Image)
	if !r.guarded {
		r.guarded = true
		if err := r.suspendSeccomp(); err != nil {
			return err
		}
		flags := uint64(seccompSpecAllow)
		if len(r.Image.Threads) > 1 {
			flags |= seccompTsync
		}
		if err := r.installFilters(r.thread.Extra.GetSeccompChain()[:common], flags); err != nil {
			return err
		}
	}
	if r.thread.Extra.GetSeccomp() == seccompStrict {
		r.require(r.batch.Try(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_STRICT, 0, 0, 0), "strict mode")
	}
	return r.installFilters(r.thread.Extra.GetSeccompChain()[common:], seccompSpecAllow)
}

// suspendSeccomp takes seccomp out of the way in the threads that are to have it.
func (r *restorer) suspendSeccomp() error {
	for i, th := range r.Image.Threads {
		if th.Extra.GetSeccomp() == 0 || i >= len(r.Proc.Threads) {
			continue
		}
		if err := r.Tracer.SuspendSeccomp(r.ctx, r.Proc.Threads[i].TID, true); err != nil {
			return fmt.Errorf("suspending it (CAP_SYS_ADMIN and no seccomp of this program's own are needed): %w", err)
		}
	}
	return nil
}

// commonFilters counts the filters, from the oldest on, that all threads have.
func commonFilters(p *images.Process) int {
	first := p.Leader().Extra.GetSeccompChain()
	n := len(first)
	for _, th := range p.Threads {
		chain := th.Extra.GetSeccompChain()
		n = min(n, len(chain))
		for i := range n {
			if chain[i] != first[i] {
				n = i
				break
			}
		}
	}
	return n
}

func (r *restorer) installFilters(chain []uint32, flags uint64) error {
	for _, n := range chain {
		f := r.Header.GetSeccomp()[n]
		if f.GetLog() {
			flags |= ptrace.SeccompLog
		} else {
			flags &^= ptrace.SeccompLog
		}
		r.require(r.install(f, flags), "filter of %d instructions", len(f.GetProgram())/8)
		if r.batch.Size() > maxBatch {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// install adds the call that installs a filter: struct sock_fprog is a length and a pointer.
func (r *restorer) install(f *imagespb.SeccompFilter, flags uint64) *remote.Result {
	prog := r.batch.Buffer(16)
	binary.LittleEndian.PutUint16(prog.Bytes(), uint16(len(f.GetProgram())/8))
	prog.SetPointer(8, r.batch.Bytes(f.GetProgram()), 0)
	return r.batch.Try(unix.SYS_SECCOMP, seccompSetModeFilter, flags, prog)
}
