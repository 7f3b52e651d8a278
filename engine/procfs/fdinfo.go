package procfs

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// An FDInfo is /proc/PID/fdinfo/FD (proc_pid_fdinfo(5)). The pointers are set for the kinds that they name.
type FDInfo struct {
	Pos   int64
	Flags uint32 // open flags as in fcntl(F_GETFL), plus O_CLOEXEC for a descriptor that has FD_CLOEXEC
	MntID int
	Ino   uint64 // since 5.14
	Locks []string

	EventFD  *EventFDInfo
	Epoll    []EpollTarget // in the order of the kernel's tree
	IsEpoll  bool          // only known when there are targets
	TimerFD  *TimerFDInfo
	SignalFD *Set
	Inotify  []InotifyWatch
	Fanotify *FanotifyGroup
	PIDFD    *PIDFDInfo
	SCMFDs   int // descriptors in flight in the queue of a unix socket
	// Other holds the lines of kinds that this package does not parse (io_uring, bpf, perf, drm ...).
	Other []string
}

// EventFDInfo is the state of an eventfd.
type EventFDInfo struct {
	Count     uint64
	ID        int  // equal for descriptors of the same eventfd, since 5.2; -1 when not told
	Semaphore bool // EFD_SEMAPHORE; told since 6.5
	// HasSemaphore tells that the kernel has told about Semaphore.
	HasSemaphore bool
}

// EpollTarget is one registration in an epoll set.
type EpollTarget struct {
	FD     int    // the number under which it was registered, which may be closed or reused since
	Events uint32 // EPOLL*
	Data   uint64
	Pos    int64  // of the target, since 4.13 with the next two
	Ino    uint64 // of the target
	Dev    uint32 // of the target, as the kernel encodes it (major<<20 | minor)
}

// TimerFDInfo is the state of a timerfd; times are in nanoseconds.
type TimerFDInfo struct {
	Clock    int
	Ticks    uint64 // expirations not yet read
	Flags    uint32 // TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET, as given to timerfd_settime
	Value    uint64 // time left until the next expiration, 0 when disarmed
	Interval uint64
}

// InotifyWatch is one watch.
type InotifyWatch struct {
	WD         int
	Ino        uint64
	Dev        uint32
	Mask       uint32
	HandleType int
	Handle     string // hexadecimal
}

// PIDFDInfo names the process of a pidfd.
type PIDFDInfo struct {
	PID   int   // in the pid namespace of the proc mount; 0 when not visible there, -1 when it has ended
	NSPID []int // in all namespaces from there inwards
}

// FDInfo reads /proc/PID/fdinfo/FD.
func (p FS) FDInfo(pid, fd int) (*FDInfo, error) { return parse(p, ParseFDInfo, pid, "fdinfo", fd) }

// ParseFDInfo parses /proc/PID/fdinfo/FD.
func ParseFDInfo(r io.Reader) (*FDInfo, error) {
	i := &FDInfo{}
	seen := 0
	err := eachLine(r, func(line string) error {
		name, value, _ := strings.Cut(line, ":")
		switch {
		case strings.HasPrefix(line, "inotify "):
			return i.inotify(line)
		case strings.HasPrefix(line, "fanotify "):
			return i.fanotify(line)
		}
		known, err := i.set(strings.TrimSpace(name), strings.TrimSpace(value))
		if known {
			seen++
		} else if line != "" {
			i.Other = append(i.Other, line)
		}
		return err
	})
	if err == nil && seen == 0 {
		err = errors.New("fdinfo: no known field")
	}
	return i, err
}

// set fills the field called name and tells whether it knows it.
func (i *FDInfo) set(name, value string) (known bool, err error) {
	var n uint64
	switch name {
	case "pos":
		i.Pos, err = integer(name, value, 64)
	case "flags":
		n, err = number(name, value, 8)
		i.Flags = uint32(n)
	case "mnt_id":
		i.MntID, err = id(name, value)
	case "ino":
		i.Ino, err = number(name, value, 10)
	case "lock":
		i.Locks = append(i.Locks, value)
	case "scm_fds":
		i.SCMFDs, err = id(name, value)
	case "sigmask":
		n, err = number(name, value, 16)
		s := Set(n)
		i.SignalFD = &s
	case "tfd":
		i.IsEpoll = true
		err = i.epoll(value)
	case "Pid":
		p := i.pidfd()
		p.PID, err = id(name, value)
	case "NSpid":
		p := i.pidfd()
		p.NSPID, err = ids(name, value)
	default:
		if strings.HasPrefix(name, "eventfd-") {
			return true, i.eventfd(name, value)
		}
		return i.timerfd(name, value)
	}
	return true, err
}

func (i *FDInfo) pidfd() *PIDFDInfo {
	if i.PIDFD == nil {
		i.PIDFD = &PIDFDInfo{}
	}
	return i.PIDFD
}

func (i *FDInfo) eventfd(name, value string) (err error) {
	if i.EventFD == nil {
		i.EventFD = &EventFDInfo{ID: -1}
	}
	switch name {
	case "eventfd-count":
		i.EventFD.Count, err = number(name, value, 16)
	case "eventfd-id":
		i.EventFD.ID, err = id(name, value)
	case "eventfd-semaphore":
		i.EventFD.Semaphore, err = zeroOne(value)
		i.EventFD.HasSemaphore = err == nil
	}
	return err
}

func (i *FDInfo) timerfd(name, value string) (bool, error) {
	switch name {
	case "clockid", "ticks", "settime flags", "it_value", "it_interval":
	default:
		return false, nil
	}
	if i.TimerFD == nil {
		i.TimerFD = &TimerFDInfo{}
	}
	t := i.TimerFD
	var err error
	var n uint64
	switch name {
	case "clockid":
		t.Clock, err = id(name, value)
	case "ticks":
		t.Ticks, err = number(name, value, 10)
	case "settime flags":
		n, err = number(name, value, 8)
		t.Flags = uint32(n)
	case "it_value":
		t.Value, err = pair(name, value)
	case "it_interval":
		t.Interval, err = pair(name, value)
	}
	return true, err
}

// pair parses "(seconds, nanoseconds)" into nanoseconds.
func pair(name, s string) (uint64, error) {
	inner, ok := strings.CutPrefix(s, "(")
	inner, ok2 := strings.CutSuffix(inner, ")")
	sec, nsec, ok3 := strings.Cut(inner, ",")
	if !ok || !ok2 || !ok3 {
		return 0, fmt.Errorf("%s: %q is not of the form (seconds, nanoseconds)", name, s)
	}
	a, err := number(name, sec, 10)
	if err != nil {
		return 0, err
	}
	b, err := number(name, nsec, 10)
	if err != nil {
		return 0, err
	}
	if a > (1<<63)/1_000_000_000 || b >= 1_000_000_000 {
		return 0, fmt.Errorf("%s: %q does not fit into 63 bits of nanoseconds", name, s)
	}
	return a*1_000_000_000 + b, nil
}

// epoll parses "5 events: 19 data: 5  pos:0 ino:61af sdev:7" (fs/eventpoll.c, ep_show_fdinfo).
func (i *FDInfo) epoll(value string) error {
	var t EpollTarget
	fd, rest, _ := strings.Cut(value, " ")
	n, err := id("tfd", fd)
	if err != nil {
		return err
	}
	t.FD = n
	err = colonFields(rest, func(name, v string) (err error) {
		var n uint64
		switch name {
		case "events":
			n, err = number("events", v, 16)
			t.Events = uint32(n)
		case "data":
			t.Data, err = number("data", v, 16)
		case "pos":
			t.Pos, err = integer("pos", v, 64)
		case "ino":
			t.Ino, err = number("ino", v, 16)
		case "sdev":
			n, err = number("sdev", v, 16)
			t.Dev = uint32(n)
		}
		return err
	})
	i.Epoll = append(i.Epoll, t)
	return err
}

// inotify parses "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 ..."
func (i *FDInfo) inotify(line string) error {
	var w InotifyWatch
	err := colonFields(strings.TrimPrefix(line, "inotify "), func(name, v string) (err error) {
		var n uint64
		switch name {
		case "wd": // printed in hexadecimal since 2012, whatever the manual says (fs/notify/fdinfo.c)
			n, err = number("wd", v, 16)
			w.WD = int(int32(n))
		case "ino":
			w.Ino, err = number("ino", v, 16)
		case "sdev":
			n, err = number("sdev", v, 16)
			w.Dev = uint32(n)
		case "mask":
			n, err = number("mask", v, 16)
			w.Mask = uint32(n)
		case "fhandle-type":
			n, err = number("fhandle-type", v, 16)
			w.HandleType = int(uint32(n))
		case "f_handle":
			w.Handle = v
		}
		return err
	})
	i.Inotify = append(i.Inotify, w)
	return err
}

// colonFields calls fn for each "name:value" or "name: value" of a line.
func colonFields(s string, fn func(name, value string) error) error {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		name, rest, ok := strings.Cut(s, ":")
		if !ok {
			return fmt.Errorf("%.40q has no colon", s)
		}
		value, after, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		if err := fn(name, value); err != nil {
			return err
		}
		s = after
	}
	return nil
}
