//go:build linux

package files

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// No system call puts an event into an inotify(7) instance. So the events are made by what they tell of, on a file system of our own
// that nobody sees: a scratch file or directory gets the number of the watch, and each operation on it is watched for just the one event
// that it is to give.
//
// What must not stay is the IN_IGNORED of every scratch watch when it is removed. The kernel drops an event without a word when
// the queue is full and already holds the IN_Q_OVERFLOW that says so. Hence, with room for max events and n to make:
//
//	fill   fill   ...   fill   IN_Q_OVERFLOW                  max+1 in the queue
//	fill   ...   fill   IN_Q_OVERFLOW                         n+1 were read away: max-n
//	fill   ...   fill   IN_Q_OVERFLOW   event 1 ... event n   max: full, and the scratch watches are removed
//	event 1 ... event n                                       the rest was read away
//
// Where an overflow is wanted after the events, there is one fill less than would be needed to have it before them. An event
// that cannot be made so (the unmounting of a file system) makes all of them one overflow.

// A scratch is what stands for a watch.
type scratch struct {
	path     string
	dir      bool
	children map[string]bool // names in a directory: whether it is one
	gone     bool
}

// An eventMaker fills the queue of one instance.
type eventMaker struct {
	fd    int
	root  string // of the file system of our own, below /proc/self/fd
	watch map[int32]*scratch
	fill  int // a descriptor of the file whose events fill the queue
	moves int // names given to what was moved out
}

var errNoEvent = errors.New("an event that cannot be made")

// queueEvents puts events into an instance that has no watches yet.
func queueEvents(fd int, events []inotifyEvent) (err error) {
	if len(events) == 0 {
		return nil
	}
	limit, err := queueLimit()
	if err != nil {
		return err
	}
	events, overflow := plan(events, limit)
	root, err := newScratchRoot()
	if err != nil {
		return fmt.Errorf("a file system to make events on: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(root)) }()
	m := &eventMaker{fd: fd, root: "/proc/self/fd/" + strconv.Itoa(root) + "/", watch: map[int32]*scratch{}, fill: -1}
	defer func() {
		if m.fill >= 0 {
			err = errors.Join(err, unix.Close(m.fill))
		}
	}()
	if err := m.prepare(events); err != nil {
		return fmt.Errorf("make events: %w", err)
	}
	return m.run(events, limit, overflow)
}

// plan says which events to make, and whether an overflow is to follow them.
func plan(events []inotifyEvent, limit int) ([]inotifyEvent, bool) {
	last := len(events) - 1
	overflow := events[last].mask == unix.IN_Q_OVERFLOW
	if overflow {
		events = events[:last]
	}
	for i, e := range events {
		ignored := i+1 < len(events) && events[i+1].mask == unix.IN_IGNORED && events[i+1].wd == e.wd
		if !canMake(e) || e.mask&unix.IN_DELETE_SELF != 0 && !ignored {
			return nil, true
		}
	}
	if len(events) > limit {
		return events[:limit], true
	}
	return events, overflow || len(events) == limit
}

// canMake tells whether an event can be made: it has one bit, and a directory is neither written nor closed after writing.
func canMake(e inotifyEvent) bool {
	what := e.mask &^ unix.IN_ISDIR
	if what&(what-1) != 0 || what == 0 || what&(unix.IN_ALL_EVENTS|unix.IN_IGNORED) == 0 {
		return false
	}
	named := what&(unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO) != 0
	self := what&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED) != 0
	switch {
	case named && e.name == "", self && e.name != "", self && e.mask&unix.IN_ISDIR != 0:
		return false
	}
	return e.mask&unix.IN_ISDIR == 0 || what&(unix.IN_MODIFY|unix.IN_CLOSE_WRITE) == 0
}

func queueLimit() (int, error) {
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && (n < 1 || n > maxInotifyEvents) {
		err = fmt.Errorf("%d events: events that wait are carried with 1 to %d", n, maxInotifyEvents)
	}
	if err != nil {
		return 0, fmt.Errorf("/proc/sys/fs/inotify/max_queued_events: %w", err)
	}
	return n, nil
}

func newScratchRoot() (fd int, err error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fs)) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// prepare makes and watches a scratch for each number, and the file of the fills.
func (m *eventMaker) prepare(events []inotifyEvent) error {
	for _, e := range events {
		s := m.watch[e.wd]
		if s == nil {
			s = &scratch{path: m.root + "w" + strconv.Itoa(int(e.wd))}
			m.watch[e.wd] = s
		}
		s.dir = s.dir || e.name != "" || e.mask&unix.IN_ISDIR != 0
	}
	for wd, s := range m.watch {
		if s.children = map[string]bool{}; s.dir {
			if err := unix.Mkdir(s.path, 0o700); err != nil {
				return err
			}
		} else if err := newFile(s.path); err != nil {
			return err
		}
		if err := unix.IoctlSetInt(m.fd, inotifySetNextWD, int(wd)); err != nil {
			return fmt.Errorf("INOTIFY_IOC_SETNEXTWD (CONFIG_CHECKPOINT_RESTORE): %w", err)
		}
		if err := m.listen(wd, s, unix.IN_UNMOUNT); err != nil {
			return err
		}
	}
	if err := unix.Mkdir(m.root+"out", 0o700); err != nil {
		return err
	}
	if err := newFile(m.root + "fill"); err != nil {
		return err
	}
	var err error
	if m.fill, err = unix.Open(m.root+"fill", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	_, err = unix.InotifyAddWatch(m.fd, m.root+"fill", unix.IN_ACCESS|unix.IN_MODIFY)
	return err
}

// newFile makes a file of one byte: reading none is no event.
func newFile(name string) error { return os.WriteFile(name, []byte{0}, 0o600) }

// listen says for which events a scratch is watched.
func (m *eventMaker) listen(wd int32, s *scratch, mask uint32) error {
	got, err := unix.InotifyAddWatch(m.fd, s.path, mask|unix.IN_DONT_FOLLOW)
	if err == nil && got != int(wd) {
		err = fmt.Errorf("it got number %d", got)
	}
	if err != nil {
		return fmt.Errorf("inotify_add_watch for watch %d (/proc/sys/fs/inotify/max_user_watches): %w", wd, err)
	}
	return nil
}

func (m *eventMaker) run(events []inotifyEvent, limit int, overflow bool) error {
	want := 0
	for _, e := range events {
		want += e.size()
	}
	fills := limit + 1
	if overflow {
		fills = limit - len(events)
		want += inotifyOverflow.size()
	}
	if err := m.fills(fills); err != nil {
		return err
	}
	if !overflow {
		if err := m.take(len(events) + 1); err != nil {
			return err
		}
		fills -= len(events) + 1
	}
	for i := 0; i < len(events); {
		n, err := m.step(events[i:])
		if err != nil {
			return fmt.Errorf("make event %d of %d, 0x%x of watch %d and %q: %w", i+1, len(events), events[i].mask, events[i].wd, events[i].name, err)
		}
		i += n
	}
	if err := m.unwatch(); err != nil {
		return err
	}
	if err := m.take(fills); err != nil {
		return err
	}
	if have, err := unix.IoctlGetInt(m.fd, unix.TIOCINQ); err != nil || have != want {
		return fmt.Errorf("%d bytes of events were made, not %d (%w)", have, want, errors.Join(err, errNoEvent))
	}
	return nil
}

// fills adds events of 16 bytes each, of which no two that follow each other are equal: those would be one.
func (m *eventMaker) fills(n int) error {
	var b [1]byte
	for i := range n {
		var err error
		if i%2 == 0 {
			_, err = unix.Pread(m.fill, b[:], 0)
		} else {
			_, err = unix.Pwrite(m.fill, b[:], 0)
		}
		if err != nil {
			return fmt.Errorf("fill the queue: %w", err)
		}
	}
	return nil
}

// take reads events without a name away.
func (m *eventMaker) take(n int) error {
	buf := make([]byte, inotifyHeader*min(n, 4096))
	for n > 0 {
		got, err := unix.Read(m.fd, buf[:inotifyHeader*min(n, 4096)])
		if err != nil {
			return fmt.Errorf("empty the queue: %w", err)
		}
		if got < inotifyHeader || got%inotifyHeader != 0 {
			return fmt.Errorf("empty the queue: %d bytes were read", got)
		}
		n -= got / inotifyHeader
	}
	return nil
}

// unwatch removes what is still watched; the queue is full.
func (m *eventMaker) unwatch() error {
	var errs []error
	for wd, s := range m.watch {
		if s.gone {
			continue
		}
		if _, err := unix.InotifyRmWatch(m.fd, uint32(wd)); err != nil {
			errs = append(errs, fmt.Errorf("inotify_rm_watch %d: %w", wd, err))
		}
	}
	wd, err := unix.InotifyAddWatch(m.fd, m.root+"fill", unix.IN_ACCESS)
	if err == nil {
		_, err = unix.InotifyRmWatch(m.fd, uint32(wd))
	}
	return errors.Join(append(errs, err)...)
}
