//go:build linux

package files

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/peek"
)

// Events that wait in an inotify(7) instance are read from the kernel's memory, since read(2) would take them. They are recorded
// as read(2) would give them. A queue that cannot be read becomes the one event IN_Q_OVERFLOW, by which the kernel itself says that
// events are lost.

const (
	// inotifyHeader is the size of struct inotify_event without the name.
	inotifyHeader = 16
	// inotifyNames is to what the space of a name is rounded up: sizeof(struct inotify_event).
	inotifyNames = 16
	// maxInotifyEvents bounds a queue; /proc/sys/fs/inotify/max_queued_events is 16384 by default.
	maxInotifyEvents = 1 << 20
	// inotifySeen are the bits of an event that read(2) shows.
	inotifySeen = unix.IN_ALL_EVENTS | unix.IN_ISDIR | unix.IN_UNMOUNT | unix.IN_IGNORED | unix.IN_Q_OVERFLOW
)

func inotifyBlob(id uint32) string { return fmt.Sprintf("inotify-%d", id) }

// An inotifyEvent is one that waits to be read.
type inotifyEvent struct {
	wd           int32
	mask, cookie uint32
	name         string // within a watched directory; "" for the watched file itself
}

var inotifyOverflow = inotifyEvent{wd: -1, mask: unix.IN_Q_OVERFLOW}

// size is what an event takes in a buffer of read(2), in bytes.
func (e inotifyEvent) size() int {
	if e.name == "" {
		return inotifyHeader
	}
	return inotifyHeader + (len(e.name)/inotifyNames+1)*inotifyNames
}

func appendEvent(b []byte, e inotifyEvent) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(e.wd))
	b = binary.LittleEndian.AppendUint32(b, e.mask)
	b = binary.LittleEndian.AppendUint32(b, e.cookie)
	b = binary.LittleEndian.AppendUint32(b, uint32(e.size()-inotifyHeader))
	b = append(b, e.name...)
	return append(b, make([]byte, start+e.size()-len(b))...)
}

// parseEvents reads what appendEvent has written.
func parseEvents(b []byte) ([]inotifyEvent, error) {
	var out []inotifyEvent
	for len(b) > 0 {
		if len(b) < inotifyHeader {
			return nil, fmt.Errorf("an event of %d bytes", len(b))
		}
		n := binary.LittleEndian.Uint32(b[12:])
		if uint64(n) > uint64(len(b)-inotifyHeader) || len(out) == maxInotifyEvents {
			return nil, fmt.Errorf("event %d has a name of %d bytes, of %d that are left", len(out), n, len(b)-inotifyHeader)
		}
		name, _, _ := bytes.Cut(b[inotifyHeader:inotifyHeader+n], []byte{0})
		e := inotifyEvent{wd: int32(binary.LittleEndian.Uint32(b)), mask: binary.LittleEndian.Uint32(b[4:]),
			cookie: binary.LittleEndian.Uint32(b[8:]), name: string(name)}
		if len(name) > unix.NAME_MAX || bytes.ContainsRune(name, '/') || e.name == "." || e.name == ".." || e.wd < 1 && e.mask != unix.IN_Q_OVERFLOW {
			return nil, fmt.Errorf("event %d is of watch %d and of %q", len(out), e.wd, name)
		}
		out = append(out, e)
		b = b[inotifyHeader+n:]
	}
	return out, nil
}

// inotifyQueue reads the events that wait, and takes none.
func (r *dump) inotifyQueue(d *description) ([]byte, error) {
	n, err := unix.IoctlGetInt(d.fd, unix.TIOCINQ)
	if err != nil {
		return nil, fmt.Errorf("FIONREAD: %w", err)
	}
	if n == 0 {
		return nil, nil
	}
	k, err := r.kernelMemory()
	if err != nil {
		return appendEvent(nil, inotifyOverflow), nil //nolint:nilerr // nobody can tell: see Note
	}
	return readInotify(k, d.fd)
}

// readInotify walks the list of events (fs/notify/inotify/inotify.h). Nobody reads while the tree stands still, so events are only
// added to its end meanwhile.
func readInotify(k *peek.Kernel, fd int) ([]byte, error) {
	file, err := k.File(fd)
	if err != nil {
		return nil, err
	}
	group, err := k.Follow(file, "private_data", "fsnotify_group")
	if err != nil {
		return nil, err
	}
	head, err := group.Offset("notification_list")
	if err != nil {
		return nil, err
	}
	at, err := group.Uint64("notification_list")
	if err != nil {
		return nil, err
	}
	base, err := k.OffsetIn("inotify_event_info", "fse")
	if err != nil {
		return nil, err
	}
	list, err := k.OffsetIn("fsnotify_event", "list")
	if err != nil {
		return nil, err
	}
	var out []byte
	for n := 0; at != group.Addr+head; n++ {
		if n > maxInotifyEvents {
			return nil, fmt.Errorf("more than %d events wait to be read: %w", maxInotifyEvents, ErrBusy)
		}
		v, err := k.Load("inotify_event_info", at-list-base)
		if err != nil {
			return nil, err
		}
		e, err := readEvent(k, v)
		if err != nil {
			return nil, err
		}
		out = appendEvent(out, e)
		next, err := v.Bytes("fse", int(list)+8)
		if err != nil {
			return nil, err
		}
		at = binary.LittleEndian.Uint64(next[list:])
	}
	return out, nil
}

func readEvent(k *peek.Kernel, v *peek.View) (inotifyEvent, error) {
	var errs []error
	u32 := func(name string) uint32 {
		n, err := v.Uint32(name)
		errs = append(errs, err)
		return n
	}
	e := inotifyEvent{wd: int32(u32("wd")), mask: u32("mask") & inotifySeen, cookie: u32("sync_cookie")}
	length := u32("name_len")
	off, err := v.Offset("name")
	if err := errors.Join(append(errs, err)...); err != nil {
		return e, err
	}
	if length > unix.NAME_MAX {
		return e, fmt.Errorf("an event with a name of %d bytes: %w", length, ErrBusy)
	}
	if length > 0 {
		name := make([]byte, length)
		if err := k.Read(v.Addr+off, name); err != nil {
			return e, err
		}
		e.name = string(name)
	}
	return e, nil
}
