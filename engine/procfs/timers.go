package procfs

import (
	"fmt"
	"io"
	"strings"
)

// Ways in which a POSIX timer notifies (SIGEV_* of sigevent(7)).
const (
	NotifySignal   = 0
	NotifyNone     = 1
	NotifyThread   = 2 // made by the C library from NotifyThreadID; the kernel treats it as NotifySignal
	NotifyThreadID = 4
)

// A Timer is one POSIX timer of /proc/PID/timers (proc_pid_timers(5); CONFIG_CHECKPOINT_RESTORE).
type Timer struct {
	ID     int
	Signal int
	Value  uint64 // sigev_value
	Notify int    // NotifySignal, NotifyNone, NotifyThread, plus NotifyThreadID
	Target int    // the process, or the thread when Notify has NotifyThreadID, in the reader's pid namespace
	Clock  int    // CLOCK_*, or the encoding of a process's or descriptor's clock (negative)
}

// Timers reads /proc/PID/timers.
func (p FS) Timers(pid int) ([]Timer, error) { return parse(p, ParseTimers, pid, "timers") }

// ParseTimers parses /proc/PID/timers: four lines for each timer.
func ParseTimers(r io.Reader) ([]Timer, error) {
	var out []Timer
	err := eachLine(r, func(line string) error {
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			return fmt.Errorf("%.40q is not of the form name: value", line)
		}
		if name == "ID" {
			n, err := id("ID", value)
			out = append(out, Timer{ID: n})
			return err
		}
		if len(out) == 0 {
			return fmt.Errorf("%s: stands before any ID", name)
		}
		return out[len(out)-1].set(name, value)
	})
	return out, err
}

func (t *Timer) set(name, value string) (err error) {
	switch name {
	case "signal":
		sig, val, ok := strings.Cut(value, "/")
		if !ok {
			return fmt.Errorf("signal: %q is not of the form number/value", value)
		}
		if t.Signal, err = id("signal", sig); err == nil {
			t.Value, err = number("signal value", val, 16)
		}
	case "notify":
		how, target, ok := strings.Cut(value, "/")
		kind, num, ok2 := strings.Cut(target, ".")
		modes := map[string]int{"signal": NotifySignal, "none": NotifyNone, "thread": NotifyThread}
		mode, ok3 := modes[how]
		if !ok || !ok2 || !ok3 || (kind != "pid" && kind != "tid") {
			return fmt.Errorf("notify: %q is not of the form signal/pid.1", value)
		}
		t.Notify = mode
		if kind == "tid" {
			t.Notify |= NotifyThreadID
		}
		t.Target, err = id("notify", num)
	case "ClockID":
		t.Clock, err = id("ClockID", value)
	}
	return err
}
