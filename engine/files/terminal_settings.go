//go:build linux

package files

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// settleTerminals gives the terminals their contents and settings.
func (r *Restorer) settleTerminals() error {
	for _, e := range r.entries() {
		if e.Tty == nil {
			continue
		}
		t, err := r.tty(e)
		if err != nil {
			return r.blame(e, err)
		}
		if t.settle {
			continue
		}
		t.settle = true
		switch {
		case t.extra.GetHungUp():
		case !t.isPTY():
			err = r.settleConsole(t, e.GetId())
		default:
			err = r.settlePTY(t, r.homes[e.GetId()].vpid)
		}
		if err != nil {
			return r.blame(e, fmt.Errorf("terminal %d: %w", t.info.GetId(), err))
		}
	}
	return r.handOver()
}

// handOver gives the masters that were outside of the tree to those who hold them here.
func (r *Restorer) handOver() error {
	for _, x := range r.cp.Terminals {
		if x.GetHolder() == "" {
			continue
		}
		vpid := int(r.cp.Processes[0].PID)
		t, err := r.terminal(x.GetId(), vpid)
		if err == nil && !t.settle {
			t.settle = true
			err = r.settlePTY(t, vpid)
		}
		if err == nil && r.env.Terminal == nil {
			err = errors.New("nobody here takes the other end")
		}
		if err == nil {
			err = r.env.Terminal(x.GetHolder(), t.master)
		}
		if err != nil {
			return fmt.Errorf("terminal %q, held for the tree: %w", x.GetHolder(), err)
		}
	}
	return nil
}

// settleConsole gives a terminal of the host the settings that it had.
func (r *Restorer) settleConsole(t *madeTTY, id uint32) error {
	if r.files[id] == nil {
		t.settle = false // opened as /dev/tty, later
		return nil
	}
	fd, err := r.descriptor(id)
	if err != nil || t.info.Termios == nil {
		return err
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS2, termiosOf(t.info.Termios)); err != nil {
		return fmt.Errorf("TCSETS2: %w", err)
	}
	return nil
}

func (r *Restorer) settlePTY(t *madeTTY, vpid int) (err error) {
	if t.info.Termios == nil || t.master == nil {
		return errors.New("its record lacks settings, or its master was not made")
	}
	master, err := rawFD(t.master)
	if err != nil {
		return err
	}
	flags, err := unix.FcntlInt(uintptr(master), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(master), unix.F_SETFL, flags|unix.O_NONBLOCK)
	}
	if err != nil {
		return err
	}
	slave := -1
	if t.extra.GetOpened() {
		if slave, err = openPeer(t.master, unix.O_RDWR); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(slave)) }()
	}
	f := &filler{master: master, slave: slave, x: t.extra}
	final := termiosOf(t.info.Termios)
	if slave < 0 { // output is made by input
		if err := f.echoed(t.extra.GetOutput()); err != nil {
			return err
		}
	}
	if err := f.input(isCanonical(final)); err != nil {
		return err
	}
	if err := f.output(); err != nil {
		return err
	}
	if err := f.held(isCanonical(final)); err != nil {
		return err
	}
	if err := f.settings(t, final); err != nil {
		return err
	}
	if err := r.settleNode(t, vpid); err != nil {
		return err
	}
	if t.info.GetLocked() {
		if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 1); err != nil {
			return fmt.Errorf("TIOCSPTLCK: %w", err)
		}
	}
	// O_NONBLOCK, if it was set, comes back with that of all others.
	return terminalFlags(master, uint32(flags))
}

// settings sets everything that ioctl_tty(2) sets, when the contents are in place.
func (f *filler) settings(t *madeTTY, final *unix.Termios) error {
	if w := t.info.Winsize; w != nil {
		size := &unix.Winsize{Row: uint16(w.GetWsRow()), Col: uint16(w.GetWsCol()), Xpixel: uint16(w.GetWsXpixel()), Ypixel: uint16(w.GetWsYpixel())}
		if err := unix.IoctlSetWinsize(f.master, unix.TIOCSWINSZ, size); err != nil {
			return fmt.Errorf("TIOCSWINSZ: %w", err)
		}
	}
	if err := f.packet(t, final); err != nil {
		return err
	}
	if t.extra.GetStoppedByCall() && f.slave >= 0 {
		if err := unix.IoctlSetInt(f.slave, unix.TCXONC, unix.TCOOFF); err != nil {
			return fmt.Errorf("TCXONC: %w", err)
		}
	}
	if err := write(f.master, t.extra.GetPending()); err != nil {
		return fmt.Errorf("input that waits before the terminal: %w", err)
	}
	for _, x := range []struct {
		set bool
		fd  int
	}{{t.extra.GetExclusiveMaster(), f.master}, {t.info.GetExclusive(), f.slave}} {
		if !x.set || x.fd < 0 {
			continue
		}
		if err := unix.IoctlSetInt(x.fd, unix.TIOCEXCL, 0); err != nil {
			return fmt.Errorf("TIOCEXCL: %w", err)
		}
	}
	if l := t.info.TermiosLocked; l != nil {
		if err := unix.IoctlSetTermios(f.master, unix.TIOCSLCKTRMIOS, termiosOf(l)); err != nil {
			return fmt.Errorf("TIOCSLCKTRMIOS: %w", err)
		}
	}
	return nil
}

// packet sets the final settings, packet mode, and the status that the master has not read: each of its bits is brought about
// in the way in which it came (drivers/tty/pty.c).
func (f *filler) packet(t *madeTTY, final *unix.Termios) error {
	status := f.x.GetPacketStatus()
	before := *final
	switch {
	case !t.info.GetPacketMode():
		status = 0
	case status&unix.TIOCPKT_NOSTOP != 0:
		before.Iflag |= unix.IXON
		before.Cc[unix.VSTART], before.Cc[unix.VSTOP] = 0x11, 0x13
	case status&unix.TIOCPKT_DOSTOP != 0:
		before.Iflag &^= unix.IXON
	}
	if status&unix.TIOCPKT_IOCTL != 0 && harmless(f.x, final, unix.TIOCPKT_IOCTL) {
		before.Lflag |= unix.EXTPROC
	}
	if err := f.set(&before); err != nil {
		return err
	}
	if !t.info.GetPacketMode() {
		return nil
	}
	if err := unix.IoctlSetPointerInt(f.master, unix.TIOCPKT, 1); err != nil {
		return fmt.Errorf("TIOCPKT: %w", err)
	}
	for _, x := range []struct {
		bits uint32
		req  uint
		args []int
	}{
		{unix.TIOCPKT_FLUSHREAD, unix.TCFLSH, []int{unix.TCIFLUSH}},
		{unix.TIOCPKT_FLUSHWRITE, unix.TCFLSH, []int{unix.TCOFLUSH}},
		{unix.TIOCPKT_START, unix.TCXONC, []int{unix.TCOOFF, unix.TCOON}},
		{unix.TIOCPKT_STOP, unix.TCXONC, []int{unix.TCOOFF}},
	} {
		if status&x.bits == 0 || f.slave < 0 || !harmless(f.x, final, x.bits) {
			continue
		}
		for _, arg := range x.args {
			if err := unix.IoctlSetInt(f.slave, x.req, arg); err != nil {
				return fmt.Errorf("packet status 0x%x: %w", status, err)
			}
		}
	}
	if before == *final && status&unix.TIOCPKT_IOCTL == 0 {
		return nil // with EXTPROC the kernel tells the master of every call that sets them
	}
	return f.set(final)
}

// harmless tells whether a bit of the packet status can be brought about without taking away what waits, or stopping what
// is not stopped by a call. packetLoss has named the others.
func harmless(x *imagespb.Terminal, final *unix.Termios, bit uint32) bool {
	switch bit {
	case unix.TIOCPKT_IOCTL: // a change of EXTPROC makes one line of all that waits
		return !isCanonical(final) || len(x.GetLines()) == 0 && len(x.GetPartial()) == 0
	case unix.TIOCPKT_FLUSHREAD:
		return len(x.GetLines()) == 0 && len(x.GetPartial()) == 0 && len(x.GetPending()) == 0
	case unix.TIOCPKT_FLUSHWRITE:
		return len(x.GetOutput()) == 0
	case unix.TIOCPKT_STOP:
		return x.GetStopped() && x.GetStoppedByCall()
	case unix.TIOCPKT_START:
		return !x.GetStopped()
	}
	return true
}

// packetLoss are the bits of a status that cannot be brought about again.
func packetLoss(x *imagespb.Terminal, final *unix.Termios) uint32 {
	lost := x.GetPacketStatus() &^ uint32(unix.TIOCPKT_FLUSHREAD|unix.TIOCPKT_FLUSHWRITE|unix.TIOCPKT_START|unix.TIOCPKT_STOP|unix.TIOCPKT_NOSTOP|unix.TIOCPKT_DOSTOP|unix.TIOCPKT_IOCTL)
	for _, bit := range []uint32{unix.TIOCPKT_FLUSHREAD, unix.TIOCPKT_FLUSHWRITE, unix.TIOCPKT_START, unix.TIOCPKT_STOP, unix.TIOCPKT_IOCTL} {
		if x.GetPacketStatus()&bit != 0 && !harmless(x, final, bit) {
			lost |= bit
		}
	}
	return lost
}

// settleNode gives the slave's node its owner and permissions.
func (r *Restorer) settleNode(t *madeTTY, vpid int) (err error) {
	root, err := r.rootOfVPID(vpid)
	if err != nil {
		return err
	}
	index := t.index
	fd, err := openIn(root, nodePath(root, t.extra.GetPath(), index), unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("the node of pts/%d: %w", index, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Rdev != unix.Mkdev(majorPTS, index) {
		return fmt.Errorf("the node of pts/%d: it is another device (%w)", index, err)
	}
	if st.Uid != t.info.GetUid() || st.Gid != t.info.GetGid() {
		if err := unix.Fchownat(fd, "", int(t.info.GetUid()), int(t.info.GetGid()), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("owner of pts/%d: %w", index, err)
		}
	}
	if st.Mode&0o7777 == t.extra.GetMode()&0o7777 {
		return nil
	}
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), os.FileMode(t.extra.GetMode()&0o777))
}
