//go:build linux

package task

import (
	"context"
	"fmt"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
)

// CatchUp takes signals that came after ReadThreadState into the image, and sets timers that have expired since to where
// they are now, so that none is lost and none comes twice: signals do not stop coming because a process stands still.
// Call it last, when no thread is borrowed any more. Every instant before it is covered; later ones are not.
func CatchUp(ctx context.Context, s *Source, img *images.Process) error {
	timers := img.Leader().GetCore().GetTc().GetTimers()
	now, err := quietInstant(ctx, s, timers)
	if err != nil {
		return err
	}
	for i, th := range img.Threads {
		d := &dumper{Source: s, thread: th, leader: i == 0}
		if i >= len(s.Proc.Threads) || s.Proc.Threads[i].VTID != int(th.TID) {
			return fmt.Errorf("pid %d: thread %d of the image is not that of the process", s.Proc.PID, th.TID)
		}
		tid := s.Proc.Threads[i].TID
		err := s.Tracer.OnThread(ctx, func(ctx context.Context) (err error) {
			if d.Pending, err = s.Tracer.PeekSigInfo(ctx, tid, false); err == nil && d.leader {
				d.Shared, err = s.Tracer.PeekSigInfo(ctx, tid, true)
			}
			return err
		})
		if err == nil {
			err = dumpPending(d)
		}
		if err != nil {
			return fmt.Errorf("pid %d, thread %d: signals that came late: %w", s.Proc.PID, tid, err)
		}
	}
	sinceFreeze := time.Duration(now.GetMonotonic() - s.Clocks.GetMonotonic())
	if real := timers.GetReal(); real != nil {
		v := advance(join(real.GetVsec(), real.GetVusec(), time.Microsecond), join(real.GetIsec(), real.GetIusec(), time.Microsecond), sinceFreeze)
		sec, usec := split(v, time.Microsecond)
		real.Vsec, real.Vusec = proto.Uint64(sec), proto.Uint64(usec)
	}
	for _, p := range timers.GetPosix() {
		if cpuClock(int(int32(p.GetClockId()))) {
			continue
		}
		v := advance(join(p.GetVsec(), p.GetVnsec(), time.Nanosecond), join(p.GetIsec(), p.GetInsec(), time.Nanosecond), sinceFreeze)
		sec, nsec := split(v, time.Nanosecond)
		p.Vsec, p.Vnsec = proto.Uint64(sec), proto.Uint64(nsec)
	}
	return nil
}

// advance returns the time left, counted from the freeze, of a timer that runs on for a while: until its next
// expiration after that, or 0 if it has none.
func advance(left, interval, passed time.Duration) time.Duration {
	switch {
	case left == 0 || left > passed:
		return left
	case interval <= 0:
		return 0
	}
	return left + ((passed-left)/interval+1)*interval
}

// blur is how far from the end of a timer an instant must be to tell surely whether the kernel has seen it expire.
const blur = 500 * time.Microsecond

// quietInstant waits until no timer is about to expire or has just expired, and returns the clocks then. Timers with
// an interval near the blur never are quiet; for them a signal may come once too often.
func quietInstant(ctx context.Context, s *Source, t *timer.TaskTimersEntry) (*imagespb.Clocks, error) {
	for try := 0; ; try++ {
		now, err := Clocks(s.FS, s.Proc.PID)
		if err != nil {
			return nil, err
		}
		passed := time.Duration(now.GetMonotonic() - s.Clocks.GetMonotonic())
		near := func(left, interval time.Duration) bool {
			next := advance(left, interval, passed-blur)
			return left != 0 && next != 0 && next < passed+blur
		}
		loud := near(join(t.GetReal().GetVsec(), t.GetReal().GetVusec(), time.Microsecond), join(t.GetReal().GetIsec(), t.GetReal().GetIusec(), time.Microsecond))
		for _, p := range t.GetPosix() {
			loud = loud || !cpuClock(int(int32(p.GetClockId()))) &&
				near(join(p.GetVsec(), p.GetVnsec(), time.Nanosecond), join(p.GetIsec(), p.GetInsec(), time.Nanosecond))
		}
		if !loud || try == 3 {
			return now, nil
		}
		select { // the kernel tells nobody outside when a timer of another process expires
		case <-time.After(2 * blur):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
