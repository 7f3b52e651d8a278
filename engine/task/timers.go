//go:build linux

package task

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// Times left are kept as they were at the instant of the image's clocks. At the destination, the time that the move
// took is taken off timers of running clocks; those of processor time stood still meanwhile.

// timespecAt and timevalAt read a struct of two words at an offset of b.
func timespecAt(b []byte, off int) time.Duration {
	return time.Duration(int64(binary.LittleEndian.Uint64(b[off:])))*time.Second + time.Duration(int64(binary.LittleEndian.Uint64(b[off+8:])))
}

func timevalAt(b []byte, off int) time.Duration {
	return time.Duration(int64(binary.LittleEndian.Uint64(b[off:])))*time.Second +
		time.Duration(int64(binary.LittleEndian.Uint64(b[off+8:])))*time.Microsecond
}

// putTimespec writes a struct timespec.
func putTimespec(b []byte, d time.Duration) {
	binary.LittleEndian.PutUint64(b, uint64(d/time.Second))
	binary.LittleEndian.PutUint64(b[8:], uint64(d%time.Second))
}

// itimers are the three of setitimer(2), in the order of their numbers.
var itimerNames = []string{"ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"}

func dumpItimers(d *dumper) error {
	var bufs []*remote.Data
	for which := range itimerNames {
		buf := d.batch.Buffer(32)
		d.batch.Call(unix.SYS_GETITIMER, which, buf)
		bufs = append(bufs, buf)
	}
	d.then(func() error {
		entry := func(which int) *timer.ItimerEntry {
			b := bufs[which].Bytes()
			interval, value := timevalAt(b, 0), timevalAt(b, 16)
			if which == 0 && value > 0 {
				value += d.sinceFreeze
			}
			sec, usec := split(interval, time.Microsecond)
			vsec, vusec := split(value, time.Microsecond)
			return &timer.ItimerEntry{Isec: proto.Uint64(sec), Iusec: proto.Uint64(usec), Vsec: proto.Uint64(vsec), Vusec: proto.Uint64(vusec)}
		}
		if d.thread.Core.Tc.Timers == nil {
			d.thread.Core.Tc.Timers = &timer.TaskTimersEntry{}
		}
		t := d.thread.Core.Tc.Timers
		t.Real, t.Virt, t.Prof = entry(0), entry(1), entry(2)
		return nil
	})
	return nil
}

// split takes a duration apart into seconds and units.
func split(d, unit time.Duration) (sec, rest uint64) {
	d = max(d, 0)
	return uint64(d / time.Second), uint64(d % time.Second / unit)
}

// join is the inverse of split; what does not fit is as long as a duration can be.
func join(sec, rest uint64, unit time.Duration) time.Duration {
	const most = time.Duration(1<<63 - 1)
	if sec >= uint64(most/time.Second)-1 || rest >= uint64(time.Second) {
		return most
	}
	return time.Duration(sec)*time.Second + time.Duration(rest)*unit
}

func restoreItimers(r *restorer) error {
	t := r.thread.Core.GetTc().GetTimers()
	for which, e := range []*timer.ItimerEntry{t.GetReal(), t.GetVirt(), t.GetProf()} {
		interval, value := join(e.GetIsec(), e.GetIusec(), time.Microsecond), join(e.GetVsec(), e.GetVusec(), time.Microsecond)
		if value == 0 {
			continue
		}
		if which == 0 {
			value = max(value-r.elapsed, time.Microsecond) // zero would disarm it
		}
		var b [32]byte
		for i, v := range []time.Duration{interval, value} {
			sec, usec := split(v, time.Microsecond)
			binary.LittleEndian.PutUint64(b[16*i:], sec)
			binary.LittleEndian.PutUint64(b[16*i+8:], usec)
		}
		r.require(r.batch.Try(unix.SYS_SETITIMER, which, r.batch.Bytes(b[:]), 0), "%s", itimerNames[which])
	}
	return nil
}

// checkPosixTimers names timers that count the time of another process or of a device.
func checkPosixTimers(c *checker) error {
	list, err := c.fs.Timers(c.p.PID)
	if errors.Is(err, procfs.ErrGone) {
		return nil // a kernel without CONFIG_CHECKPOINT_RESTORE; the kernel probe names that
	}
	if err != nil {
		return err
	}
	for _, t := range list {
		where := fmt.Sprintf("POSIX timer %d", t.ID)
		if t.Clock < 0 && t.Clock&3 == 3 {
			c.refuse(where, "it counts the clock of a device", "")
		}
	}
	return nil
}

func dumpPosixTimers(d *dumper) error {
	list, err := d.FS.Timers(d.Proc.PID)
	if errors.Is(err, procfs.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b procfs.Timer) int { return a.ID - b.ID }) // the kernel lists the newest first
	for _, t := range list {
		buf := d.batch.Buffer(32)
		d.batch.Call(unix.SYS_TIMER_GETTIME, t.ID, buf)
		overrun := d.batch.Try(unix.SYS_TIMER_GETOVERRUN, t.ID)
		target := 0
		if t.Notify&procfs.NotifyThreadID != 0 {
			if target = d.vtid(t.Target); target == 0 {
				return fmt.Errorf("timer %d notifies thread %d, which is not in the tree: %w", t.ID, t.Target, ErrNotCarried)
			}
		}
		d.then(func() error {
			interval, value := timespecAt(buf.Bytes(), 0), timespecAt(buf.Bytes(), 16)
			if value > 0 && t.Clock >= 0 && !cpuClock(t.Clock) {
				value += d.sinceFreeze
			}
			e := &timer.PosixTimerEntry{
				ItId: proto.Uint32(uint32(t.ID)), ClockId: proto.Uint32(uint32(t.Clock)), SiSigno: proto.Uint32(uint32(t.Signal)),
				ItSigevNotify: proto.Uint32(uint32(t.Notify)), SivalPtr: proto.Uint64(t.Value),
			}
			n, _ := overrun.Value() // EINVAL: never fired
			e.Overrun = proto.Uint32(uint32(n))
			sec, nsec := split(interval, time.Nanosecond)
			vsec, vnsec := split(value, time.Nanosecond)
			e.Isec, e.Insec, e.Vsec, e.Vnsec = proto.Uint64(sec), proto.Uint64(nsec), proto.Uint64(vsec), proto.Uint64(vnsec)
			if target != 0 {
				e.NotifyThreadId = proto.Int32(int32(target))
			}
			tc := d.thread.Core.Tc
			if tc.Timers == nil {
				tc.Timers = &timer.TaskTimersEntry{}
			}
			tc.Timers.Posix = append(tc.Timers.Posix, e)
			return nil
		})
	}
	return nil
}

// cpuClock reports whether a clock counts processor time.
func cpuClock(clock int) bool {
	return clock < 0 || clock == unix.CLOCK_PROCESS_CPUTIME_ID || clock == unix.CLOCK_THREAD_CPUTIME_ID
}

// vtid translates a thread of the tree into the tree's own ids; 0 if it is not there.
func (d *dumper) vtid(tid int) int {
	for _, p := range d.Tree {
		for _, t := range p.Threads {
			if t.TID == tid {
				return t.VTID
			}
		}
	}
	return 0
}

// maxCountedTimers bounds how far timer ids are counted up where the kernel does not let them be chosen.
const maxCountedTimers = 1 << 14

// restorePosixTimers makes the timers with their ids. Since 6.16 a process may choose them; before, ids are given
// out in order, counting up over the life of the process, and timers are made and deleted until the right one comes.
func restorePosixTimers(r *restorer) error {
	posix := r.thread.Core.GetTc().GetTimers().GetPosix()
	if len(posix) == 0 {
		return nil
	}
	probe := &remote.Batch{}
	choose := probe.Try(unix.SYS_PRCTL, unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_ON, 0, 0, 0)
	if err := r.caller.Run(r.ctx, probe); err != nil {
		return err
	}
	if choose.Err() == nil {
		for _, e := range posix {
			r.createTimer(e, true)
		}
		r.batch.Call(unix.SYS_PRCTL, unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_OFF, 0, 0, 0)
	} else if err := r.countTimers(posix); err != nil {
		return err
	}
	for _, e := range posix {
		r.armTimer(e)
	}
	return nil
}

// sigevent lays out struct sigevent: value, signal, notify, thread id.
func sigevent(e *timer.PosixTimerEntry) []byte {
	b := make([]byte, 64)
	binary.LittleEndian.PutUint64(b, e.GetSivalPtr())
	binary.LittleEndian.PutUint32(b[8:], e.GetSiSigno())
	binary.LittleEndian.PutUint32(b[12:], e.GetItSigevNotify())
	binary.LittleEndian.PutUint32(b[16:], uint32(e.GetNotifyThreadId()))
	return b
}

// createTimer makes a timer and checks its id.
func (r *restorer) createTimer(e *timer.PosixTimerEntry, choose bool) {
	var want [4]byte
	if choose {
		binary.LittleEndian.PutUint32(want[:], e.GetItId())
	}
	id := r.batch.Bytes(want[:])
	res := r.batch.Try(unix.SYS_TIMER_CREATE, int(int32(e.GetClockId())), r.batch.Bytes(sigevent(e)), id)
	r.require(res, "POSIX timer %d", e.GetItId())
	r.then(func() error {
		if got := binary.LittleEndian.Uint32(id.Bytes()); got != e.GetItId() {
			return fmt.Errorf("POSIX timer %d: the kernel called it %d", e.GetItId(), got)
		}
		return nil
	})
}

// countTimers makes timers in ascending order of their ids, with others between them that are deleted at once.
func (r *restorer) countTimers(posix []*timer.PosixTimerEntry) error {
	byID := map[uint32]*timer.PosixTimerEntry{}
	last := uint32(0)
	for _, e := range posix {
		byID[e.GetItId()] = e
		last = max(last, e.GetItId())
	}
	if last >= maxCountedTimers {
		return fmt.Errorf("POSIX timer %d: this kernel does not let a process choose timer ids (Linux 6.16 does), and counting up to it would take too long", last)
	}
	for n := uint32(0); n <= last; n++ {
		if e := byID[n]; e != nil {
			r.createTimer(e, false)
			continue
		}
		var none [64]byte
		binary.LittleEndian.PutUint32(none[12:], procfs.NotifyNone)
		id := r.batch.Buffer(4)
		r.require(r.batch.Try(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, r.batch.Bytes(none[:]), id), "counting up to timer %d", last)
		r.batch.Call(unix.SYS_TIMER_DELETE, n)
		if r.batch.Size() > maxBatch {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxBatch is where a long batch is cut, in bytes.
const maxBatch = 64 << 10

// armTimer sets a timer going. On the clocks that the tree's time namespace continues, the end is given as a point
// in time, so that the phase of a periodic timer is kept and missed periods are counted as overruns.
func (r *restorer) armTimer(e *timer.PosixTimerEntry) {
	interval, value := join(e.GetIsec(), e.GetInsec(), time.Nanosecond), join(e.GetVsec(), e.GetVnsec(), time.Nanosecond)
	if value == 0 {
		return
	}
	flags := 0
	clock := int(int32(e.GetClockId()))
	base, ok := map[int]int64{
		unix.CLOCK_MONOTONIC: r.Header.GetClocks().GetMonotonic(), unix.CLOCK_BOOTTIME: r.Header.GetClocks().GetBoottime(),
	}[clock]
	switch {
	case ok && base > 0 && value < 1<<62:
		flags, value = unix.TFD_TIMER_ABSTIME, value+time.Duration(base)
	case !cpuClock(clock):
		value = max(value-r.elapsed, time.Nanosecond)
	}
	var b [32]byte
	putTimespec(b[:], interval)
	putTimespec(b[16:], value)
	r.require(r.batch.Try(unix.SYS_TIMER_SETTIME, e.GetItId(), flags, r.batch.Bytes(b[:]), 0), "arming POSIX timer %d", e.GetItId())
}
