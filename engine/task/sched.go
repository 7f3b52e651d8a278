//go:build linux

package task

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// maskBytes is the size of the processor masks that are asked for: 8,192 processors.
const maskBytes = 1024

// ioprioWhoProcess is IOPRIO_WHO_PROCESS of ioprio_set(2), which means a thread.
const ioprioWhoProcess = 1

// dumpSched asks from outside, by thread id; it costs the thread nothing.
func dumpSched(d *dumper) error {
	a, err := unix.SchedGetAttr(d.tid(), 0)
	if err != nil {
		return err
	}
	// Since 6.12 an ordinary thread's time slice is told too, and setting it would make the default a choice.
	if fairPolicy(a.Policy) && a.Runtime == d.common.slice {
		a.Runtime = 0
	}
	e := d.thread.Extra
	e.Sched = &imagespb.SchedAttr{
		Policy: a.Policy, Flags: a.Flags, Nice: a.Nice, Priority: a.Priority, Runtime: a.Runtime, Deadline: a.Deadline, Period: a.Period,
	}
	tc := d.thread.Core.ThreadCore
	tc.SchedPolicy, tc.SchedPrio, tc.SchedNice = proto.Uint32(a.Policy), proto.Uint32(a.Priority), proto.Int32(a.Nice)
	prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(d.tid()), 0)
	if errno != 0 {
		return fmt.Errorf("I/O priority: %w", errno)
	}
	e.Ioprio = uint32(prio)
	if e.TimerSlack, err = d.timerSlack(); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	mask, err := affinity(d.tid())
	if err != nil {
		return err
	}
	// A thread that may run everywhere shall do so at the destination, however many processors that has.
	if !bytes.Equal(mask, d.common.online) {
		e.Affinity = mask
	}
	return nil
}

// timerSlack returns by how many nanoseconds the kernel may be late with the thread's timers.
func (d *dumper) timerSlack() (uint64, error) {
	if d.kernel != nil {
		return d.kernel.TimerSlack, nil
	}
	b, err := d.FS.Bytes(d.tid(), "timerslack_ns")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// fairPolicy reports whether a policy is SCHED_OTHER, SCHED_BATCH or SCHED_IDLE.
func fairPolicy(p uint32) bool { return p == 0 || p == 3 || p == 5 }

// affinity reads the mask of processors of a thread, without zero bytes at its end.
func affinity(tid int) ([]byte, error) {
	var b [maskBytes]byte
	n, err := schedGetAffinity(tid, b[:])
	if err != nil {
		return nil, fmt.Errorf("processor affinity: %w", err)
	}
	return bytes.TrimRight(b[:n], "\x00"), nil
}

// online returns the mask of the processors that are online here.
func online() ([]byte, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	list, err := procfs.ParseCPUList(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("processors online: %w", err)
	}
	var mask [maskBytes]byte
	for _, n := range list {
		if n < maskBytes*8 {
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return bytes.TrimRight(mask[:], "\x00"), nil
}

// missing lists the processors of mask that have does not have.
func missing(mask, have []byte) []int {
	var out []int
	for n := range len(mask) * 8 {
		if mask[n/8]>>(n%8)&1 != 0 && (n/8 >= len(have) || have[n/8]>>(n%8)&1 == 0) {
			out = append(out, n)
		}
	}
	return out
}

func restoreSched(r *restorer) error {
	e := r.thread.Extra
	mask := e.GetAffinity()
	here := r.known.online
	if len(mask) == 0 {
		mask = here
	} else if gone := missing(mask, here); len(gone) > 0 {
		return fmt.Errorf("processor affinity: it is bound to processors %v, which this host does not have", gone)
	}
	if err := schedSetAffinity(r.tid(), mask); err != nil {
		return fmt.Errorf("processor affinity: %w", err)
	}
	if s := e.GetSched(); s != nil {
		a := unix.SchedAttr{Policy: s.GetPolicy(), Flags: s.GetFlags(), Nice: s.GetNice(), Priority: s.GetPriority(),
			Runtime: s.GetRuntime(), Deadline: s.GetDeadline(), Period: s.GetPeriod()}
		if err := unix.SchedSetAttr(r.tid(), &a, 0); err != nil {
			return fmt.Errorf("policy %d, priority %d, nice %d: %w", a.Policy, a.Priority, a.Nice, err)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(r.tid()), uintptr(e.GetIoprio())); errno != 0 {
		return fmt.Errorf("I/O priority 0x%x: %w", e.GetIoprio(), errno)
	}
	// A real-time thread has no slack and takes none; 0 would mean its parent's.
	if slack := e.GetTimerSlack(); slack != 0 {
		r.require(r.batch.Try(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, slack, 0, 0, 0), "timer slack of %d ns", slack)
	}
	return nil
}

func dumpRobustList(d *dumper) error {
	head, size, err := getRobustList(d.tid())
	if err != nil {
		return err
	}
	d.thread.Core.ThreadCore.FutexRla, d.thread.Core.ThreadCore.FutexRlaLen = proto.Uint64(head), proto.Uint32(uint32(size))
	return nil
}

func restoreRobustList(r *restorer) error {
	if head := r.core().GetFutexRla(); head != 0 {
		r.require(r.batch.Try(unix.SYS_SET_ROBUST_LIST, head, r.core().GetFutexRlaLen()), "robust list at 0x%x", head)
	}
	return nil
}

func dumpClearTID(d *dumper) error {
	if d.kernel != nil {
		d.thread.Extra.ClearTid = d.kernel.ClearTID
		setClearTID(d.thread.Core, d.kernel.ClearTID)
		return nil
	}
	buf := d.batch.Buffer(8)
	d.batch.Call(unix.SYS_PRCTL, unix.PR_GET_TID_ADDRESS, buf, 0, 0, 0)
	d.then(func() error {
		d.thread.Extra.ClearTid = binary.LittleEndian.Uint64(buf.Bytes())
		setClearTID(d.thread.Core, d.thread.Extra.ClearTid)
		return nil
	})
	return nil
}

func restoreClearTID(r *restorer) error {
	r.batch.Call(unix.SYS_SET_TID_ADDRESS, r.thread.Extra.GetClearTid())
	return nil
}

// rseqCSOffset is where struct rseq holds the address of the critical section's descriptor
// (include/uapi/linux/rseq.h).
const rseqCSOffset = 8

func dumpRseq(d *dumper) error {
	q := d.Rseq
	if d.RseqErr != nil {
		return fmt.Errorf("this kernel does not tell the registration (Linux 5.13 does): %w: %w", d.RseqErr, ErrNotCarried)
	}
	if q.Addr == 0 {
		return nil
	}
	var cs [8]byte
	if err := d.Memory.Read(q.Addr.Add(rseqCSOffset), cs[:]); err != nil {
		return fmt.Errorf("section of %v: %w", q.Addr, err)
	}
	d.thread.Core.ThreadCore.RseqEntry = rseqMessage(uint64(q.Addr), q.Size, q.Signature, binary.LittleEndian.Uint64(cs[:]))
	return nil
}

// restoreRseq registers; the critical section comes with the registers (RestoreRegisters). A glibc that was forked
// into the skeleton is registered already, but a seed never is.
func restoreRseq(r *restorer) error {
	q := r.core().GetRseqEntry()
	if q.GetRseqAbiPointer() == 0 {
		return nil
	}
	r.require(r.batch.Try(unix.SYS_RSEQ, q.GetRseqAbiPointer(), q.GetRseqAbiSize(), 0, q.GetSignature()),
		"registration of %d bytes at 0x%x", q.GetRseqAbiSize(), q.GetRseqAbiPointer())
	return nil
}
