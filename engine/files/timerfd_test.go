//go:build linux

package files

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/procfs"
)

// TestTimerIsDue looks at timers in the time after their instant, in which the kernel has not yet come to say that they fired: so many
// end at once that it takes the processor some milliseconds. No look may find one that is neither set nor fired.
func TestTimerIsDue(t *testing.T) {
	kerneltest.Root(t)
	for name, every := range map[string]int64{"once": 0, "periodic": 3600e9} {
		t.Run(name, func(t *testing.T) {
			d := NewDumper(Options{})
			defer func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}()
			if _, err := d.kernelMemory(); err != nil {
				t.Fatal(err)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			cpus := allowed(t)
			defer onCPU(t, cpus...)
			onCPU(t, cpus[0])
			fds, at := manyTimers(t, every)
			onCPU(t, cpus[1])
			var now unix.Timespec
			for now.Nano() < at {
				if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
					t.Fatal(err)
				}
			}
			late, last := 0, fds[len(fds)-1]
			for range 2000 {
				var cur unix.ItimerSpec
				if err := unix.TimerfdGettime(last, &cur); err != nil {
					t.Fatal(err)
				}
				look := &procfs.TimerFDInfo{Clock: unix.CLOCK_MONOTONIC, Value: uint64(cur.Value.Nano()), Interval: uint64(every)}
				if look.Value == 0 {
					if err := (&dump{Dumper: d}).dueTimer(&description{fd: last}, look, false); err != nil {
						t.Fatal(err)
					}
				}
				switch {
				case look.Value == 1:
					late++
				case look.Ticks == 0 && look.Value == 0:
					t.Fatal("the timer is neither set nor has it fired")
				}
			}
			t.Logf("%d looks between the instant and the timer", late)
		})
	}
}

// allowed lists the processors on which this thread may run: two at least.
func allowed(t *testing.T) (cpus []int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	if len(cpus) < 2 {
		kerneltest.Lack(t, "a second processor")
	}
	return cpus
}

// onCPU moves this thread to one of the processors.
func onCPU(t *testing.T, cpus ...int) {
	t.Helper()
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
}

// manyTimers sets timers to one instant of CLOCK_MONOTONIC, in ns, on the processor of this thread. It returns them in the order in
// which they are set, and so in which they will fire.
func manyTimers(t *testing.T, every int64) (fds []int, at int64) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	at = now.Nano() + 200e6
	for range 10_000 {
		fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		fds = append(fds, fd)
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(at), Interval: unix.NsecToTimespec(every)}
		if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
			t.Fatal(err)
		}
	}
	return fds, at
}
