//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/peek"
	"migrate/engine/procfs"
)

// tfdSetTicks is TFD_IOC_SET_TICKS (include/uapi/linux/timerfd.h); it needs CONFIG_CHECKPOINT_RESTORE.
const tfdSetTicks = 0x40085400

// maxSeconds bounds times from outside; the kernel's own limit is 2^63 ns.
const maxSeconds = 9_000_000_000

// A timer on CLOCK_MONOTONIC or CLOCK_BOOTTIME, or one set to an instant of the wall clock, is set again to the same
// instant of the tree's own clock, which goes on at the destination by its time namespace: so it must be set from inside
// the process. Its record holds the time that was left, as CRIU's does, and a blob holds the instant.
var kindTimerfd = &Kind{
	Name: "timerfd", Type: fdinfo.FdTypes_TIMERFD, Carried: true, Note: "with the time left, its interval and the expirations not yet read",
	match: func(d *description) bool { return d.anon("[timerfd]") },
	dump:  dumpTimerfd, open: openTimerfd, inside: armTimerfd,
}

func timerBlob(id uint32) string { return fmt.Sprintf("timerfd-%d", id) }

func dumpTimerfd(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	var cur unix.ItimerSpec
	// Asking makes the kernel bring the count of a periodic timer up to date, which the text below does not (fs/timerfd.c).
	if err := unix.TimerfdGettime(d.fd, &cur); err != nil {
		return nil, fmt.Errorf("timerfd_gettime: %w", err)
	}
	i, err := d.fdinfo()
	if err != nil {
		return nil, err
	}
	if i.TimerFD == nil {
		return nil, fmt.Errorf("its fdinfo tells no time (CONFIG_PROC_FS): %w", ErrNotCarried)
	}
	t := i.TimerFD
	if t.Value == 0 && (t.Interval != 0 || t.Ticks == 0) {
		if err := r.dueTimer(d, t, cur.Value.Nano() > 0); err != nil {
			return nil, err
		}
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	if t.Value != 0 && (steady(t.Clock) || t.Flags&unix.TFD_TIMER_ABSTIME != 0) {
		now, err := r.clock(t.Clock, d.holders[0].proc.PID)
		if err != nil {
			return nil, err
		}
		r.blob(timerBlob(d.id), binary.LittleEndian.AppendUint64(nil, uint64(now)+t.Value))
	}
	const second = uint64(time.Second)
	return &fdinfo.FileEntry{Tfd: &timerfd.TimerfdEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(uint32(d.flags)), Fown: owner,
		Clockid: proto.Uint32(uint32(t.Clock)), Ticks: proto.Uint64(t.Ticks), SettimeFlags: proto.Uint32(t.Flags),
		Vsec: proto.Uint64(t.Value / second), Vnsec: proto.Uint64(t.Value % second),
		Isec: proto.Uint64(t.Interval / second), Insec: proto.Uint64(t.Interval % second)}}, nil
}

// dueTimer completes what is known of a timer with no time left. The kernel says 0 of a timer that has come to its end and of one
// that is not set, but also of one whose time is over while no processor has found the time to say so: that one would be restored as
// a timer that never fires.
func (r *dump) dueTimer(d *description, t *procfs.TimerFDInfo, wasSet bool) error {
	var s timerState
	k, err := r.kernelMemory()
	if err == nil {
		s, err = readTimer(k, d.fd, t.Clock)
	}
	if err != nil { // nobody can tell; a timer that was set a moment ago has expired since, which is counted
		if wasSet {
			t.Value = max(t.Interval, 1)
		}
		return nil //nolint:nilerr // this kernel has no types for programs, or others
	}
	switch {
	case s.pending:
		t.Value = 1 // ns; 0 is a timer that is not set
		return nil
	case s.expired:
		t.Value = t.Interval // the next time of a periodic one is counted when somebody asks
	}
	t.Ticks = s.ticks
	return nil
}

// timerState is what struct timerfd_ctx (fs/timerfd.c) says of a timer.
type timerState struct {
	pending bool   // it will fire, or is about to count that it did
	expired bool   // it fired since it was read or asked last
	ticks   uint64 // expirations not yet read, unless it is pending
}

func readTimer(k *peek.Kernel, fd, clock int) (s timerState, err error) {
	file, err := k.File(fd)
	if err != nil {
		return s, err
	}
	ctx, err := k.Follow(file, "private_data", "timerfd_ctx")
	if err != nil {
		return s, err
	}
	at, err := ctx.Offset("t.tmr")
	if err == nil && (clock == unix.CLOCK_REALTIME_ALARM || clock == unix.CLOCK_BOOTTIME_ALARM) {
		var inner uint64
		inner, err = k.OffsetIn("alarm", "timer") // by which an alarm is driven while the machine is awake
		at += inner                               // of the same union
	}
	if err != nil {
		return s, err
	}
	if s.pending, err = timerPending(k, ctx.Addr+at); err != nil || s.pending {
		return s, err
	}
	// If it fired, then it was counted before now: what was read above may be older.
	if ctx, err = k.Load("timerfd_ctx", ctx.Addr); err != nil {
		return s, err
	}
	expired, err := ctx.Bytes("expired", 2) // a short
	if err != nil {
		return s, err
	}
	s.expired = expired[0] != 0 || expired[1] != 0
	s.ticks, err = ctx.Uint64("ticks")
	return s, err
}

// timerPending tells whether a struct hrtimer is queued or its function runs. A timer is marked as running before it leaves its queue
// (__run_hrtimer, kernel/time/hrtimer.c), so the order of the two questions matters.
func timerPending(k *peek.Kernel, addr uint64) (bool, error) {
	timer, err := k.Load("hrtimer", addr)
	if err != nil {
		return false, err
	}
	if queued, err := timer.Bool("state"); err != nil || queued {
		return queued, err
	}
	base, err := k.Follow(timer, "base", "hrtimer_clock_base")
	if err != nil {
		return false, err
	}
	running, err := base.Uint64("running")
	return running == addr, err
}

// steady tells whether nobody can set the clock, so that an instant of it means the same as a time left.
func steady(clock int) bool {
	return clock == unix.CLOCK_MONOTONIC || clock == unix.CLOCK_BOOTTIME || clock == unix.CLOCK_BOOTTIME_ALARM
}

// clock reads a clock as a process of the tree sees it.
func (r *dump) clock(clock, pid int) (int64, error) {
	off, err := procfs.Host.ClockOffsets(pid)
	if err != nil {
		return 0, fmt.Errorf("time namespace of process %d: %w", pid, err)
	}
	ours, err := procfs.Host.ClockOffsets(unix.Getpid())
	if err != nil {
		return 0, fmt.Errorf("time namespace of this program: %w", err)
	}
	id, delta := int32(unix.CLOCK_REALTIME), time.Duration(0) // the same in all time namespaces
	switch clock {
	case unix.CLOCK_MONOTONIC:
		id, delta = unix.CLOCK_MONOTONIC, off.Monotonic-ours.Monotonic
	case unix.CLOCK_BOOTTIME, unix.CLOCK_BOOTTIME_ALARM:
		id, delta = unix.CLOCK_BOOTTIME, off.Boottime-ours.Boottime
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0, fmt.Errorf("clock_gettime: %w", err)
	}
	return ts.Nano() + int64(delta), nil
}

func openTimerfd(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	if e.Tfd.GetVsec() > maxSeconds || e.Tfd.GetIsec() > maxSeconds || e.Tfd.GetVnsec() >= 1e9 || e.Tfd.GetInsec() >= 1e9 {
		return fmt.Errorf("times out of range: %d.%09d s, every %d.%09d s", e.Tfd.GetVsec(), e.Tfd.GetVnsec(), e.Tfd.GetIsec(), e.Tfd.GetInsec())
	}
	fd, err := unix.TimerfdCreate(int(e.Tfd.GetClockid()), unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("timerfd_create of clock %d: %w", e.Tfd.GetClockid(), err)
	}
	r.put(e.GetId(), fd)
	return nil
}

// armTimerfd arms the timer, and then sets the count, which arming clears.
func armTimerfd(in *inside, e *fdinfo.FileEntry) error {
	fd, ok := in.isHome(e.GetId())
	if !ok {
		return nil
	}
	t := e.Tfd
	if t.GetVsec() != 0 || t.GetVnsec() != 0 || t.GetIsec() != 0 || t.GetInsec() != 0 {
		flags, sec, nsec := t.GetSettimeFlags(), t.GetVsec(), t.GetVnsec()
		if b := in.r.cp.Blobs[timerBlob(e.GetId())]; len(b) == 8 {
			at := binary.LittleEndian.Uint64(b)
			flags, sec, nsec = flags|unix.TFD_TIMER_ABSTIME, at/1e9, at%1e9
		} else {
			flags &^= unix.TFD_TIMER_ABSTIME // only the time that was left is known
		}
		spec := make([]byte, 0, 32)
		for _, v := range []uint64{t.GetIsec(), t.GetInsec(), sec, nsec} {
			spec = binary.LittleEndian.AppendUint64(spec, v)
		}
		in.call(fmt.Sprintf("timer of descriptor %d", fd), unix.SYS_TIMERFD_SETTIME, fd, flags, in.batch.Bytes(spec), 0)
	}
	if t.GetTicks() != 0 {
		n := in.batch.Bytes(binary.LittleEndian.AppendUint64(nil, t.GetTicks()))
		in.call(fmt.Sprintf("expirations of timer %d (CONFIG_CHECKPOINT_RESTORE)", fd), unix.SYS_IOCTL, fd, uint64(tfdSetTicks), n)
	}
	return nil
}
