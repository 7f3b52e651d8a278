//go:build linux

package task

import (
	"context"
	"encoding/binary"
	"testing"
	"time"
)

// TestCatchUp lets timers expire after a process was stopped and recorded.
func TestCatchUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	g := start(t, "refused")
	g.say("timers")
	g.line()
	g.stop(ctx)
	g.borrow(ctx)
	img, clocks := g.dump(ctx)
	for _, s := range g.loans {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	tc := img.Leader().Core.Tc
	real, posix := tc.Timers.Real, tc.Timers.Posix[0]
	if len(tc.SignalsS.Signals) != 0 || join(real.GetVsec(), real.GetVusec(), time.Microsecond) == 0 || join(posix.GetVsec(), posix.GetVnsec(), 1) == 0 {
		t.Fatalf("the timers expired too early for this test: %v", tc.Timers)
	}
	time.Sleep(1700 * time.Millisecond) // they expire now
	if err := CatchUp(ctx, g.source(clocks), img); err != nil {
		t.Fatal(err)
	}
	var got []uint32
	for _, s := range tc.SignalsS.Signals {
		got = append(got, binary.LittleEndian.Uint32(s.GetSiginfo()))
	}
	if len(got) != 2 || got[0]+got[1] != 14+34 {
		t.Errorf("signals %v instead of 14 and 34", got)
	}
	if v := join(tc.Timers.Real.GetVsec(), tc.Timers.Real.GetVusec(), time.Microsecond); v != 0 {
		t.Errorf("the one-shot timer has %v left", v)
	}
	if v := join(tc.Timers.Posix[0].GetVsec(), tc.Timers.Posix[0].GetVnsec(), 1); v < 10*time.Second || v > 11500*time.Millisecond {
		t.Errorf("the periodic timer has %v left", v)
	}
}

func TestAdvance(t *testing.T) {
	for _, c := range []struct{ left, interval, passed, want time.Duration }{
		{0, 5, 100, 0}, {10, 0, 5, 10}, {10, 0, 10, 0}, {10, 5, 10, 15}, {10, 5, 14, 15}, {10, 5, 15, 20}, {10, 7, 9, 10},
	} {
		if got := advance(c.left, c.interval, c.passed); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
