//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// madeTTY is a terminal that is being made.
type madeTTY struct {
	info   *tty.TtyInfoEntry
	extra  *imagespb.Terminal
	master *os.File // of a pseudoterminal; also among the files if a descriptor names it
	taken  bool     // a descriptor names the master
	index  uint32   // number here
	hung   bool     // what is to lead nowhere does
	settle bool     // its settings and contents are in place
}

func (t *madeTTY) isPTY() bool { return t.info.GetType() == tty.TtyType_PTY }

func (t *madeTTY) close() error {
	if t.master == nil || t.taken {
		return nil
	}
	err := t.master.Close()
	t.master = nil
	return err
}

// tty is the terminal of a record.
func (r *Restorer) tty(e *fdinfo.FileEntry) (*madeTTY, error) {
	return r.terminal(e.Tty.GetTtyInfoId(), r.homes[e.GetId()].vpid)
}

// terminal finds a terminal by its id. A pseudoterminal is made when it is first asked for, in the root directory of a process, unless
// the skeleton has brought it, which it has if it controls a session.
func (r *Restorer) terminal(id uint32, vpid int) (*madeTTY, error) {
	if t := r.ttys[id]; t != nil {
		return t, nil
	}
	i := slices.IndexFunc(r.cp.TTYs, func(t *tty.TtyInfoEntry) bool { return t.GetId() == id })
	if i < 0 || i >= len(r.cp.Terminals) {
		return nil, fmt.Errorf("terminal %d is not in tty-info.img", id)
	}
	t := &madeTTY{info: r.cp.TTYs[i], extra: r.cp.Terminals[i], index: r.cp.TTYs[i].GetPty().GetIndex()}
	r.ttys[id] = t
	if !t.isPTY() {
		return t, nil
	}
	if f := r.env.Terminals[id]; f != nil {
		delete(r.env.Terminals, id)
		t.master = f
		return t, t.number()
	}
	root, err := r.rootOfVPID(vpid)
	if err != nil {
		return nil, err
	}
	flags := uint32(unix.O_RDWR)
	for _, o := range r.entries() {
		if o.Tty.GetTtyInfoId() == id && r.rdev(o) == devPtmx {
			flags = o.Reg.GetFlags()
		}
	}
	if t.extra.GetFresh() {
		t.master, err = anyPTY(root, t.extra.GetPath())
	} else {
		t.master, err = openPTY(root, t.extra.GetPath(), flags, t.index)
	}
	if err != nil {
		return t, err
	}
	return t, t.number()
}

// number reads the number that the terminal has here.
func (t *madeTTY) number() error {
	return onFD(t.master, func(fd int) error {
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		t.index = uint32(n)
		return err
	})
}

// rdev is the number of the device that a record's path named.
func (r *Restorer) rdev(e *fdinfo.FileEntry) uint64 {
	for _, x := range r.cp.Header.GetFiles() {
		if x.GetId() == e.GetId() {
			return unix.Mkdev(x.GetRdevMajor(), x.GetRdevMinor())
		}
	}
	return 0
}

// OpenTerminal makes the pseudoterminal of a session, by a path inside the root directory of a process, and opens its slave. The
// master is for Env.Terminals.
func OpenTerminal(root string, st *imagespb.SessionTerminal) (master, slave *os.File, err error) {
	dir, err := openRoot(root)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(dir)) }()
	if unix.Major(uint64(st.GetRdev())) != majorPTS {
		fd, err := openIn(dir, st.GetPath(), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
		if err != nil {
			return nil, nil, fmt.Errorf("open %s: %w", st.GetPath(), err)
		}
		return nil, os.NewFile(uintptr(fd), st.GetPath()), nil
	}
	index := unix.Minor(uint64(st.GetRdev()))
	if st.GetFresh() {
		master, err = anyPTY(dir, st.GetPath())
	} else {
		master, err = openPTY(dir, st.GetPath(), st.GetFlags(), index)
	}
	if err != nil {
		return nil, nil, err
	}
	fd, err := openPeer(master, unix.O_RDWR)
	if err == nil {
		size := &unix.Winsize{Row: uint16(st.GetRows()), Col: uint16(st.GetColumns())}
		slave = os.NewFile(uintptr(fd), fmt.Sprintf("pts/%d", index))
		err = onFD(master, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) })
	}
	if err != nil {
		return nil, nil, fmt.Errorf("pts/%d: %w", index, errors.Join(err, master.Close()))
	}
	return master, slave, nil
}

// onFD runs fn with the number of a file.
func onFD(f *os.File, fn func(fd int) error) error {
	fd, err := rawFD(f)
	if err != nil {
		return err
	}
	return fn(fd)
}

// anyPTY opens a master of whatever number is free.
func anyPTY(root int, ptmx string) (*os.File, error) {
	fd, err := openIn(root, ptmx, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open %s for a new pseudoterminal (kernel.pty.max): %w", ptmx, err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", ptmx, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "ptm"), nil
}

// openPTY opens the master of a number. The kernel gives the lowest number that is free, so those below are held meanwhile;
// the lock, on the directory of the multiplexer, keeps other restores from holding the one that is wanted for the same reason.
func openPTY(root int, ptmx string, flags, index uint32) (_ *os.File, err error) {
	dir, err := openIn(root, ptmx[:max(0, lastSlash(ptmx))], unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("directory of %s: %w", ptmx, err)
	}
	defer func() { err = errors.Join(err, unix.Close(dir)) }()
	if err := flock(dir); err != nil {
		return nil, err
	}
	var spare []int
	defer func() {
		for _, fd := range spare {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	for {
		fd, err := openIn(root, ptmx, uint64(flags&unix.O_ACCMODE)|unix.O_NOCTTY|unix.O_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("open %s for pseudoterminal %d (kernel.pty.max): %w", ptmx, index, err)
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		if err == nil && n == int(index) {
			err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
			if err == nil {
				return os.NewFile(uintptr(fd), fmt.Sprintf("ptm/%d", index)), nil
			}
		}
		spare = append(spare, fd)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ptmx, err)
		}
		if n > int(index) {
			return nil, fmt.Errorf("pseudoterminal %d is in use here: end what has it, or restore into namespaces of its own (--pid-namespace new): %w", index, unix.EBUSY)
		}
	}
}

func lastSlash(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return i
		}
	}
	return -1
}

// flock takes a lock that others hold for the time of some system calls.
func flock(fd int) error {
	for {
		err := unix.Flock(fd, unix.LOCK_EX)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("lock of the multiplexer's directory: %w", err)
		}
		return nil
	}
}

// openPeer opens the slave of a master (TIOCGPTPEER). The kernel keeps these flags as they are, O_CLOEXEC among them.
func openPeer(master *os.File, flags int) (fd int, err error) {
	flags &= unix.O_ACCMODE | unix.O_CLOEXEC
	err = onFD(master, func(m int) error {
		syscall.ForkLock.RLock() // no child may be born with it
		defer syscall.ForkLock.RUnlock()
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(m), unix.TIOCGPTPEER, uintptr(flags|unix.O_NOCTTY|unix.O_NONBLOCK))
		if e != 0 {
			return fmt.Errorf("TIOCGPTPEER: %w", e)
		}
		fd = int(r)
		unix.CloseOnExec(fd)
		return nil
	})
	return fd, err
}

// openTerminal makes the pseudoterminal, and of its descriptions the master and those that are to lead nowhere.
func openTerminal(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	t, err := r.tty(e)
	if err != nil {
		return err
	}
	switch {
	case t.isPTY() && r.rdev(e) == devPtmx:
		if t.taken {
			return fmt.Errorf("terminal %d has two masters", t.info.GetId())
		}
		t.taken = true
		r.files[e.GetId()] = t.master
		return nil
	case slices.Contains(t.extra.GetHungFiles(), e.GetId()):
		return r.openSlave(t, e)
	}
	return nil
}

// connectTerminal opens the other descriptions, once those that lead nowhere do. Those of /dev/tty wait for their session.
func connectTerminal(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	t, err := r.tty(e)
	if err != nil {
		return err
	}
	if err := r.hangUp(t); err != nil {
		return err
	}
	if r.files[e.GetId()] != nil || r.rdev(e) == devTTY {
		return nil
	}
	if !t.isPTY() {
		return r.openConsole(t, e)
	}
	return r.openSlave(t, e)
}

// hangUp takes the terminal away from those of its descriptions that are to lead nowhere.
func (r *Restorer) hangUp(t *madeTTY) error {
	files := t.extra.GetHungFiles()
	if t.hung || len(files) == 0 {
		return nil
	}
	t.hung = true
	if t.extra.GetHungUp() {
		if t.taken {
			return fmt.Errorf("terminal %d is to be without its master, which a descriptor names", t.info.GetId())
		}
		return t.close()
	}
	fd, err := r.descriptor(files[0])
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TIOCVHANGUP, 0); err != nil {
		return fmt.Errorf("TIOCVHANGUP: %w", err)
	}
	return nil
}

// openAdds is the flag that open(2) adds always and TIOCGPTPEER never: O_LARGEFILE, whose number depends on the processor.
var openAdds = sync.OnceValue(func() uint32 {
	f, err := os.Open("/dev/null")
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // opened to ask: nothing is lost
	var flags int
	err = onFD(f, func(fd int) error {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	})
	if err != nil {
		return 0
	}
	return uint32(flags) &^ unix.O_ACCMODE
})

// openSlave opens a slave by its path, or by its master where the path leads elsewhere.
func (r *Restorer) openSlave(t *madeTTY, e *fdinfo.FileEntry) error {
	if t.master == nil {
		return fmt.Errorf("pts/%d has no master any more", t.index)
	}
	root, err := r.rootOf(e.GetId())
	if err != nil {
		return err
	}
	want := unix.Mkdev(majorPTS, t.index)
	flags, name := e.Reg.GetFlags(), e.Reg.GetName()
	if t.extra.GetFresh() {
		name = nodePath(root, t.extra.GetPath(), t.index)
	}
	var fd int
	if flags&openAdds() == 0 { // so this one came from its master
		err = unix.ENOENT
	} else {
		fd, err = openIn(root, name, uint64(flags&unix.O_ACCMODE)|unix.O_NOCTTY|unix.O_NONBLOCK)
	}
	var st unix.Stat_t
	if err == nil {
		if err = unix.Fstat(fd, &st); err != nil || st.Rdev != want {
			err = errors.Join(unix.ENXIO, err, unix.Close(fd))
		}
	}
	if err != nil {
		if fd, err = openPeer(t.master, int(flags)); err != nil {
			return err
		}
	}
	r.put(e.GetId(), fd)
	return terminalFlags(fd, flags)
}

// openConsole opens a terminal that is a device of the host.
func (r *Restorer) openConsole(t *madeTTY, e *fdinfo.FileEntry) error {
	root, err := r.rootOf(e.GetId())
	if err != nil {
		return err
	}
	flags, name := e.Reg.GetFlags(), e.Reg.GetName()
	fd, err := openIn(root, name, uint64(flags&unix.O_ACCMODE)|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	r.put(e.GetId(), fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Rdev != r.rdev(e) {
		return fmt.Errorf("%s is not the device that it was (%w)", name, err)
	}
	return terminalFlags(fd, flags)
}

func terminalFlags(fd int, flags uint32) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(flags&settable&^(unix.O_NONBLOCK|unix.O_ASYNC))); err != nil {
		return fmt.Errorf("flags of the terminal: %w", err)
	}
	return nil
}
