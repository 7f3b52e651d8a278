//go:build linux

package task

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// What few programs ever set. Some of it the kernel tells of each thread (thread_bpf.go); the rest only the thread itself
// can tell, so it is asked in the leader's batch. Threads inherit all of it from their makers, so the leader stands for
// those of them that are not asked.

// Speculation that a thread can switch (include/uapi/linux/prctl.h), and the bits of task_struct.atomic_flags that keep it
// (include/linux/sched.h).
const (
	specStoreBypass    = 0
	specIndirectBranch = 1
	specL1DFlush       = 2
	specControllable   = 1 << 0
	specEnable         = 1 << 1
	specDisable        = 1 << 2
	specForceDisable   = 1 << 3
	specNoExec         = 1 << 4

	flagSSBDisable      = 1 << 3
	flagSSBForceDisable = 1 << 4
	flagIBDisable       = 1 << 5
	flagIBForceDisable  = 1 << 6
	flagSSBNoExec       = 1 << 7
)

// speculationOf reads atomic_flags.
func speculationOf(flags uint64) []*imagespb.Speculation {
	var out []*imagespb.Speculation
	for _, x := range []struct {
		which   uint32
		choices [][2]uint64 // flag, control: the first one that is set counts
	}{
		{specStoreBypass, [][2]uint64{{flagSSBForceDisable, specForceDisable}, {flagSSBNoExec, specNoExec}, {flagSSBDisable, specDisable}}},
		{specIndirectBranch, [][2]uint64{{flagIBForceDisable, specForceDisable}, {flagIBDisable, specDisable}}},
	} {
		for _, c := range x.choices {
			if flags&c[0] != 0 {
				out = append(out, &imagespb.Speculation{Which: x.which, Control: uint32(c[1])})
				break
			}
		}
	}
	return out
}

func dumpSpeculation(d *dumper) error {
	asked := []uint32{specStoreBypass, specIndirectBranch, specL1DFlush}
	if d.kernel != nil {
		d.thread.Extra.Speculation = speculationOf(d.kernel.AtomicFlags)
		if asked = asked[2:]; !d.leader {
			return nil
		}
	}
	for _, which := range asked {
		r := d.batch.Try(unix.SYS_PRCTL, unix.PR_GET_SPECULATION_CTRL, which, 0, 0, 0)
		usual := uint64(specEnable)
		if which == specL1DFlush {
			usual = specDisable
		}
		d.then(func() error {
			if v, err := r.Value(); err == nil && v&specControllable != 0 && v&^specControllable != usual {
				d.thread.Extra.Speculation = append(d.thread.Extra.Speculation, &imagespb.Speculation{Which: which, Control: uint32(v &^ specControllable)})
			}
			return nil
		})
	}
	return nil
}

func restoreSpeculation(r *restorer) error {
	for _, s := range r.thread.Extra.GetSpeculation() {
		r.require(r.batch.Try(unix.SYS_PRCTL, unix.PR_SET_SPECULATION_CTRL, s.GetWhich(), s.GetControl(), 0, 0),
			"control %d of speculation %d, which this processor or kernel may not have", s.GetControl(), s.GetWhich())
	}
	return nil
}

// checkLSM names a process that a security module confines by a profile of its own.
func checkLSM(c *checker) error {
	b, err := c.fs.Bytes(c.p.PID, "attr", "current")
	if err != nil {
		return nil //nolint:nilerr // no security module has contexts, or it does not tell
	}
	context := strings.TrimRight(string(b), "\x00\n")
	if context == "" || strings.HasPrefix(context, "unconfined") || strings.Contains(context, ":unconfined_t:") || context == "kernel" {
		return nil
	}
	c.refuse("the process", fmt.Sprintf("a security module confines it as %q", context), "run it unconfined")
	return nil
}

// dumpLSM refuses a thread that Landlock restricts: its rules can be read by nobody.
func dumpLSM(d *dumper) error {
	if d.kernel != nil && d.kernel.Landlock {
		return fmt.Errorf("it is restricted by Landlock: %w", ErrNotCarried)
	}
	return nil
}

// rare is a question to the leader. Ask returns what to do with the answer: it reports whether the answer is not the
// one that a thread has from birth.
type rare struct {
	what string
	ask  func(b *remote.Batch) func() bool
}

// byWord asks by a call that writes a word of size bytes.
func byWord(usual uint64, size int, call func(b *remote.Batch, word *remote.Data) *remote.Result) func(b *remote.Batch) func() bool {
	return func(b *remote.Batch) func() bool {
		word := b.Buffer(8)
		r := call(b, word)
		return func() bool {
			v := binary.LittleEndian.Uint64(word.Bytes()) & (1<<(8*size) - 1)
			return r.Err() == nil && v != usual
		}
	}
}

var rares = []rare{
	{"core scheduling cookie (PR_SCHED_CORE)", byWord(0, 4, func(b *remote.Batch, w *remote.Data) *remote.Result {
		return b.Try(unix.SYS_PRCTL, unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_GET, 0, 0, w)
	})},
}

func dumpRare(d *dumper) error {
	for _, r := range rares {
		changed := r.ask(&d.batch)
		d.then(func() error {
			if changed() {
				return fmt.Errorf("its %s: %w", r.what, ErrNotCarried)
			}
			return nil
		})
	}
	return nil
}

// policyBytes is the size of the mask of memory nodes that is asked for, and policyNodes what the kernel is told, which
// counts one more than there are (set_mempolicy(2), "bugs").
const (
	policyBytes = 128
	policyNodes = policyBytes*8 + 1
)

// dumpThreadAttributes asks the leader, whose makers' the other threads have; the memory policy of a thread is its own.
func dumpThreadAttributes(d *dumper) error {
	if d.leader || d.kernel == nil || d.kernel.HasMempolicy {
		d.dumpMempolicy()
	}
	e := d.thread.Extra
	if !d.leader {
		lead := d.common.leader.thread.Extra
		e.MceKill, e.Tsc, e.IoFlusher, e.CpuidFaults = lead.GetMceKill(), lead.GetTsc(), lead.GetIoFlusher(), lead.GetCpuidFaults()
		return nil
	}
	mce := d.batch.Try(unix.SYS_PRCTL, unix.PR_MCE_KILL_GET, 0, 0, 0, 0)
	flusher := d.batch.Try(unix.SYS_PRCTL, unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	word := d.batch.Buffer(8)
	tsc := d.batch.Try(unix.SYS_PRCTL, unix.PR_GET_TSC, word, 0, 0, 0)
	d.dumpCPUID()
	d.then(func() error {
		if v, err := mce.Value(); err == nil && v != unix.PR_MCE_KILL_DEFAULT {
			e.MceKill = uint32(v) + 1
		}
		if v, err := flusher.Value(); err == nil {
			e.IoFlusher = v != 0
		}
		// Strict seccomp forbids it, and does so again.
		if v := binary.LittleEndian.Uint32(word.Bytes()); tsc.Err() == nil && v != unix.PR_TSC_ENABLE && e.GetSeccomp() != seccompStrict {
			e.Tsc = v
		}
		return nil
	})
	return nil
}

// dumpMempolicy asks a thread for its NUMA memory policy.
func (d *dumper) dumpMempolicy() {
	e := d.thread.Extra
	mode, nodes := d.batch.Buffer(8), d.batch.Buffer(policyBytes)
	policy := d.batch.Try(unix.SYS_GET_MEMPOLICY, mode, nodes, policyNodes-1, 0, 0)
	d.then(func() error {
		if v := binary.LittleEndian.Uint32(mode.Bytes()); policy.Err() == nil && v != 0 {
			e.Mempolicy, e.MempolicyNodes = v, bytes.Clone(nodes.Bytes())
		}
		return nil
	})
}

func restoreThreadAttributes(r *restorer) error {
	e := r.thread.Extra
	if v := e.GetMceKill(); v != 0 {
		r.require(r.batch.Try(unix.SYS_PRCTL, unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, v-1, 0, 0), "machine-check policy %d", v-1)
	}
	if e.GetIoFlusher() {
		r.require(r.batch.Try(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0), "I/O flusher state (CAP_SYS_RESOURCE is needed)")
	}
	if v := e.GetTsc(); v != 0 {
		r.require(r.batch.Try(unix.SYS_PRCTL, unix.PR_SET_TSC, v, 0, 0, 0), "time stamp counter")
	}
	if e.GetCpuidFaults() {
		if err := r.restoreCPUID(); err != nil {
			return err
		}
	}
	if v := e.GetMempolicy(); v != 0 {
		r.require(r.batch.Try(unix.SYS_SET_MEMPOLICY, v, r.batch.Bytes(e.GetMempolicyNodes()), len(e.GetMempolicyNodes())*8+1), "NUMA memory policy 0x%x", v)
	}
	return nil
}

// loginUID reads the audit login id of a task; 0 if the kernel keeps none, else the id plus one.
func loginUID(fs procfs.FS, pid int) (uint32, error) {
	b, err := fs.Bytes(pid, "loginuid")
	if errors.Is(err, procfs.ErrGone) {
		return 0, nil // a kernel without audit
	}
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	return uint32(v) + 1, err // unset is -1
}

func dumpLoginUID(d *dumper) (err error) {
	d.proc.Extra.LoginUid, err = loginUID(d.FS, d.Proc.PID)
	return err
}

// restoreLoginUID lets each thread write its own, since nobody else may, if it was not born with it.
func restoreLoginUID(r *restorer) error {
	want := r.Image.Extra.GetLoginUid()
	if want == r.known.loginUID {
		return nil
	}
	text := []byte(strconv.FormatUint(uint64(want-1), 10))
	fd := r.batch.Try(unix.SYS_OPENAT, unix.AT_FDCWD, r.batch.String("/proc/thread-self/loginuid"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	r.require(r.batch.Try(unix.SYS_WRITE, fd, r.batch.Bytes(text), len(text)), "audit login id %s", text)
	r.batch.Try(unix.SYS_CLOSE, fd)
	return nil
}
