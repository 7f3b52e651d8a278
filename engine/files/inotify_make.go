//go:build linux

package files

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// step makes the first of the events, and those that come with it. It returns how many it made.
func (m *eventMaker) step(events []inotifyEvent) (int, error) {
	e := events[0]
	s := m.watch[e.wd]
	if s.gone {
		return 0, fmt.Errorf("its watch has ended: %w", errNoEvent)
	}
	switch {
	case e.mask == unix.IN_IGNORED:
		s.gone = true
		_, err := unix.InotifyRmWatch(m.fd, uint32(e.wd))
		return 1, err
	case e.mask&unix.IN_DELETE_SELF != 0: // and its IN_IGNORED
		s.gone = true
		return 2, m.loud(e.wd, s, unix.IN_DELETE_SELF, func() error { return remove(s.path, s.dir) })
	case e.mask&unix.IN_MOVE_SELF != 0:
		to := m.out()
		from := s.path
		return 1, m.loudly(e.wd, s, unix.IN_MOVE_SELF, func() error { s.path = to; return unix.Rename(from, to) })
	case e.mask&unix.IN_MOVED_FROM != 0:
		if len(events) > 1 && events[1].mask&^unix.IN_ISDIR == unix.IN_MOVED_TO && events[1].cookie == e.cookie {
			return 2, m.move(e, events[1])
		}
		return 1, m.moveOut(e)
	case e.mask&unix.IN_MOVED_TO != 0:
		return 1, m.moveIn(e)
	}
	return 1, m.access(e, s)
}

// loudly makes one event of a scratch.
func (m *eventMaker) loudly(wd int32, s *scratch, mask uint32, fn func() error) error {
	if err := m.loud(wd, s, mask, fn); err != nil {
		return err
	}
	return m.listen(wd, s, unix.IN_UNMOUNT)
}

func (m *eventMaker) loud(wd int32, s *scratch, mask uint32, fn func() error) error {
	if err := m.listen(wd, s, mask&unix.IN_ALL_EVENTS); err != nil {
		return err
	}
	return fn()
}

// out is a name that nobody watches.
func (m *eventMaker) out() string {
	m.moves++
	return m.root + "out/" + strconv.Itoa(m.moves)
}

func makeEntry(name string, dir bool) error {
	if dir {
		return unix.Mkdir(name, 0o700)
	}
	return newFile(name)
}

func remove(name string, dir bool) error {
	if dir {
		return unix.Rmdir(name)
	}
	return unix.Unlink(name)
}

// child brings about that a directory has a name, or has it not, and gives its path.
func (s *scratch) child(e inotifyEvent, there bool) (string, error) {
	name, dir := s.path+"/"+e.name, e.mask&unix.IN_ISDIR != 0
	was, ok := s.children[e.name]
	if ok && (!there || was != dir) {
		if err := remove(name, was); err != nil {
			return "", err
		}
		delete(s.children, e.name)
		ok = false
	}
	if there && !ok {
		if err := makeEntry(name, dir); err != nil {
			return "", err
		}
		s.children[e.name] = dir
	}
	return name, nil
}

// access makes an event that is not of a move, nor the end of a watch.
func (m *eventMaker) access(e inotifyEvent, s *scratch) error {
	name, dir := s.path, s.dir
	if e.name != "" {
		var err error
		if name, err = s.child(e, e.mask&unix.IN_CREATE == 0); err != nil {
			return err
		}
		dir = e.mask&unix.IN_ISDIR != 0
	}
	what := e.mask & unix.IN_ALL_EVENTS
	return m.loudly(e.wd, s, what, func() error {
		switch what {
		case unix.IN_CREATE:
			s.children[e.name] = dir
			return makeEntry(name, dir)
		case unix.IN_DELETE:
			delete(s.children, e.name)
			return remove(name, dir)
		case unix.IN_ATTRIB:
			return unix.Chmod(name, 0o700)
		}
		return use(name, what, dir)
	})
}

// use opens, reads or writes and closes; which of it is an event, the watch says.
func use(name string, what uint32, dir bool) (err error) {
	flags := unix.O_RDONLY
	if what == unix.IN_MODIFY || what == unix.IN_CLOSE_WRITE {
		flags = unix.O_WRONLY
	}
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 1, 512)
	switch {
	case what == unix.IN_MODIFY:
		_, err = unix.Pwrite(fd, buf, 0)
	case what == unix.IN_ACCESS && dir:
		_, err = unix.Getdents(fd, buf[:512])
	case what == unix.IN_ACCESS:
		_, err = unix.Pread(fd, buf, 0)
	}
	return errors.Join(err, unix.Close(fd))
}

// move makes the two events of one rename(2), which share a number that the kernel gives.
func (m *eventMaker) move(from, to inotifyEvent) error {
	a, b := m.watch[from.wd], m.watch[to.wd]
	if b.gone {
		return fmt.Errorf("watch %d has ended: %w", to.wd, errNoEvent)
	}
	newName, err := b.child(to, false)
	if err != nil {
		return err
	}
	oldName, err := a.child(from, true)
	if err != nil {
		return err
	}
	delete(a.children, from.name)
	b.children[to.name] = from.mask&unix.IN_ISDIR != 0
	rename := func() error { return unix.Rename(oldName, newName) }
	if from.wd == to.wd {
		return m.loudly(from.wd, a, unix.IN_MOVED_FROM|unix.IN_MOVED_TO, rename)
	}
	return m.loudly(from.wd, a, unix.IN_MOVED_FROM, func() error { return m.loudly(to.wd, b, unix.IN_MOVED_TO, rename) })
}

func (m *eventMaker) moveOut(e inotifyEvent) error {
	s := m.watch[e.wd]
	name, err := s.child(e, true)
	if err != nil {
		return err
	}
	delete(s.children, e.name)
	return m.loudly(e.wd, s, unix.IN_MOVED_FROM, func() error { return unix.Rename(name, m.out()) })
}

func (m *eventMaker) moveIn(e inotifyEvent) error {
	s, from, dir := m.watch[e.wd], m.out(), e.mask&unix.IN_ISDIR != 0
	name, err := s.child(e, false)
	if err != nil {
		return err
	}
	if err := makeEntry(from, dir); err != nil {
		return err
	}
	s.children[e.name] = dir
	return m.loudly(e.wd, s, unix.IN_MOVED_TO, func() error { return unix.Rename(from, name) })
}
