//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// A descriptor of a terminal has two records: Tty names the terminal behind it (tty-info.img), Reg the path and the flags by
// which it was opened.
var kindTerminal = &Kind{
	Name: "terminal", Type: fdinfo.FdTypes_TTY, Carried: true,
	Note: "pseudoterminals of which the tree or, for a managed workload, the agent holds the master, with their number, settings, foreground group and what waits in both directions " +
		"(at the destination the number must be free, unless the tree gets namespaces of its own); those whose master is gone; consoles and serial lines by their " +
		"device, with their settings; needs a kernel that can be read (BPF with BTF, Linux 5.19); not a terminal that somebody outside of the tree has open, unless it may be left for a new one (--tty new), nor line disciplines other than the usual one",
	match: isTerminal, check: checkTerminal, dump: dumpTerminal, open: openTerminal, connect: connectTerminal,
}

// isTerminal knows the majors of terminals: 4 tty and serial, 5 tty, console and ptmx, 136-143 Unix98 pty, 2-3 BSD pty.
func isTerminal(d *description) bool {
	return isDevice(d, unix.S_IFCHR, 2, 3, 4, 5, 136, 137, 138, 139, 140, 141, 142, 143)
}

// Device numbers (Documentation/admin-guide/devices.txt).
var (
	devTTY  = unix.Mkdev(5, 0) // the controlling terminal of whoever opens it
	devPtmx = unix.Mkdev(5, 2)
)

const majorPTS = 136

// A terminal is one terminal with the tree's descriptions of it.
type terminal struct {
	id     uint32
	kernel *kernelTTY
	rdev   uint64 // of a pseudoterminal: of its slave
	master *description
	users  []*description // of the slave, or of a terminal that is no pseudoterminal; also as /dev/tty
	hungUp []*description // those of users that lead nowhere any more
	holder string         // who holds the master, if it is not in the tree and comes along (Options); empty otherwise
}

// fresh tells that the tree leaves this terminal.
func (t *terminal) fresh() bool { return t.holder != "" && t.master == nil }

func (t *terminal) isPTY() bool { return unix.Major(t.rdev) == majorPTS }

// any is a description that the terminal can be asked by.
func (t *terminal) any() *description {
	if t.master != nil {
		return t.master
	}
	for _, d := range t.users {
		if !isHungUp(d.fd) {
			return d
		}
	}
	return nil
}

// isHungUp tells whether the terminal of a descriptor has been taken away from it (vhangup(2), or the master was closed).
func isHungUp(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
	return errors.Is(err, unix.EIO)
}

// terminalOf finds the terminal behind a description. The snapshot keeps what it has found.
func (d *Dumper) terminalOf(s *snapshot, desc *description) (*terminal, error) {
	if s.ttys == nil {
		all, err := d.findTerminals(s.list)
		if err != nil {
			return nil, err
		}
		s.ttys = all
	}
	for _, t := range s.ttys {
		if t.master == desc {
			return t, nil
		}
		for _, u := range t.users {
			if u == desc {
				return t, nil
			}
		}
	}
	return nil, errors.New("its terminal is not known")
}

// findTerminals groups descriptions by their terminals, in the order in which these are met.
func (d *Dumper) findTerminals(list []*description) ([]*terminal, error) {
	var out []*terminal
	byAddr := map[uint64]*terminal{}
	for _, desc := range list {
		if !isTerminal(desc) || desc.flags&unix.O_PATH != 0 {
			continue
		}
		tty, err := d.readTTY(desc.fd, desc.stat.Rdev == devPtmx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", desc.where(), err)
		}
		t := byAddr[tty.addr]
		if t == nil {
			t = &terminal{id: d.terminalID(tty.addr), kernel: tty}
			byAddr[tty.addr] = t
			out = append(out, t)
		}
		t.rdev = tty.rdev
		if desc.stat.Rdev == devPtmx {
			t.master = desc
			continue
		}
		t.users = append(t.users, desc)
		if isHungUp(desc.fd) {
			t.hungUp = append(t.hungUp, desc)
		}
	}
	return d.outsideMasters(out, byAddr)
}

// terminalID is the number of a terminal in the records. It stays the same as long as the Dumper.
func (d *Dumper) terminalID(addr uint64) uint32 {
	if d.ttyIDs == nil {
		d.ttyIDs = map[uint64]uint32{}
	}
	if d.ttyIDs[addr] == 0 {
		d.ttyIDs[addr] = uint32(len(d.ttyIDs) + 1)
	}
	return d.ttyIDs[addr]
}

func checkTerminal(_ context.Context, dm *Dumper, d *description) []problem {
	t, err := dm.terminalOf(dm.current, d)
	if err != nil {
		return []problem{{reason: "it is a terminal" + named(d) + ", of which this kernel does not tell enough: " + err.Error(),
			remedy: "start the program without one (setsid, redirected input and output)"}}
	}
	if t.isPTY() && t.master == nil && len(t.hungUp) < len(t.users) && !t.fresh() {
		return []problem{{reason: fmt.Sprintf("it is a terminal%s whose other end is held by a program outside of the tree", named(d)), remedy: remedyTerminal}}
	}
	if t.isPTY() && dm.frozen && !t.fresh() {
		// Each open of the slave counts, and so does the master (drivers/tty/pty.c).
		have := len(t.users)
		if t.master != nil {
			have++
		}
		if n := int(t.kernel.count); n > have {
			return []problem{{reason: fmt.Sprintf("the terminal %s is also open in %d place(s) outside of the tree", t.name(), n-have)}}
		}
	}
	return t.refusals(d)
}

// refusals are what of the terminal's state is not carried.
func (t *terminal) refusals(d *description) []problem {
	any := t.any()
	if any == nil {
		return nil
	}
	var out []problem
	if line, err := unix.IoctlGetInt(any.fd, unix.TIOCGETD); err == nil && line != 0 {
		out = append(out, problem{reason: fmt.Sprintf("the terminal %s has line discipline %d (TIOCSETD)", t.name(), line)})
	}
	if len(t.hungUp) > 0 && t.master != nil && t.kernel.session {
		out = append(out, problem{reason: fmt.Sprintf("the terminal %s was taken away (vhangup) from some of its descriptors while it controls a session", t.name())})
	}
	if d.stat.Rdev == devTTY && !t.kernel.session {
		out = append(out, problem{reason: "it was opened as /dev/tty by a session that no longer has that terminal"})
	}
	return out
}

func (t *terminal) name() string {
	if t.isPTY() {
		return fmt.Sprintf("pts/%d", unix.Minor(t.rdev))
	}
	return fmt.Sprintf("%d:%d", unix.Major(t.rdev), unix.Minor(t.rdev))
}

func dumpTerminal(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	t, err := r.terminalOf(r.snap, d)
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(d.path(), " (deleted)")
	if in, ok := inRoot(name, d.root); ok {
		name = in
	}
	e, err := r.regEntry(d, name)
	if err != nil {
		return nil, err
	}
	e.Tty = &tty.TtyFileEntry{Id: proto.Uint32(d.id), TtyInfoId: proto.Uint32(t.id), Flags: e.Reg.Flags, Fown: e.Reg.Fown}
	r.cp.Header.Files = append(r.cp.Header.Files, &imagespb.FileExtra{Id: d.id, Mode: d.stat.Mode, RdevMajor: unix.Major(d.stat.Rdev), RdevMinor: unix.Minor(d.stat.Rdev)})
	return e, r.addTerminal(t)
}

// addTerminal adds the terminal to the checkpoint, once.
func (r *dump) addTerminal(t *terminal) error {
	for _, i := range r.cp.TTYs {
		if i.GetId() == t.id {
			return nil
		}
	}
	info := &tty.TtyInfoEntry{Id: proto.Uint32(t.id), Type: ttyType(t.rdev).Enum(), Rdev: proto.Uint32(uint32(t.rdev)),
		Locked: proto.Bool(false), Exclusive: proto.Bool(t.kernel.exclusive), PacketMode: proto.Bool(false), Sid: proto.Uint32(0), Pgrp: proto.Uint32(0)}
	extra := &imagespb.Terminal{Id: t.id, Holder: t.holder, Fresh: t.fresh()}
	for _, d := range t.hungUp {
		extra.HungFiles = append(extra.HungFiles, d.id)
	}
	if t.isPTY() {
		info.Pty = &tty.TtyPtyEntry{Index: proto.Uint32(unix.Minor(t.rdev))}
	}
	r.cp.TTYs, r.cp.Terminals = append(r.cp.TTYs, info), append(r.cp.Terminals, extra)
	any := t.any()
	if any == nil {
		extra.HungUp = true
		extra.Path = "/dev/ptmx"
		return nil
	}
	if err := terminalSettings(any.fd, info); err != nil {
		return err
	}
	if t.fresh() {
		return r.freshState(t, info, extra)
	}
	if err := r.group(any.fd, info); err != nil {
		return err
	}
	if !t.isPTY() {
		return nil
	}
	return r.ptyState(t, info, extra)
}

func ttyType(rdev uint64) tty.TtyType {
	switch major, minor := unix.Major(rdev), unix.Minor(rdev); {
	case major == majorPTS:
		return tty.TtyType_PTY
	case major == 5:
		return tty.TtyType_CONSOLE
	case major == 4 && minor < 64:
		return tty.TtyType_VT
	}
	return tty.TtyType_SERIAL
}

// terminalSettings reads what ioctl_tty(2) tells. Asked by the master, the kernel answers for the slave.
func terminalSettings(fd int, info *tty.TtyInfoEntry) error {
	termios, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
	if err != nil {
		return fmt.Errorf("TCGETS2: %w", err)
	}
	info.Termios = termiosEntry(termios)
	locked, err := unix.IoctlGetTermios(fd, unix.TIOCGLCKTRMIOS)
	if err != nil {
		return fmt.Errorf("TIOCGLCKTRMIOS: %w", err)
	}
	info.TermiosLocked = termiosEntry(locked)
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return fmt.Errorf("TIOCGWINSZ: %w", err)
	}
	info.Winsize = &tty.WinsizeEntry{WsRow: proto.Uint32(uint32(size.Row)), WsCol: proto.Uint32(uint32(size.Col)),
		WsXpixel: proto.Uint32(uint32(size.Xpixel)), WsYpixel: proto.Uint32(uint32(size.Ypixel))}
	return nil
}

func termiosEntry(t *unix.Termios) *tty.TermiosEntry {
	e := &tty.TermiosEntry{CIflag: proto.Uint32(t.Iflag), COflag: proto.Uint32(t.Oflag), CCflag: proto.Uint32(t.Cflag), CLflag: proto.Uint32(t.Lflag),
		CLine: proto.Uint32(uint32(t.Line)), CIspeed: proto.Uint32(t.Ispeed), COspeed: proto.Uint32(t.Ospeed)}
	for _, c := range t.Cc {
		e.CCc = append(e.CCc, uint32(c))
	}
	return e
}

func termiosOf(e *tty.TermiosEntry) *unix.Termios {
	t := &unix.Termios{Iflag: e.GetCIflag(), Oflag: e.GetCOflag(), Cflag: e.GetCCflag(), Lflag: e.GetCLflag(),
		Line: uint8(e.GetCLine()), Ispeed: e.GetCIspeed(), Ospeed: e.GetCOspeed()}
	for i, c := range e.GetCCc() {
		if i < len(t.Cc) {
			t.Cc[i] = uint8(c)
		}
	}
	return t
}

// group reads session and foreground group of a terminal, as the tree knows them. The terminal of a session that is not of the
// tree tells of neither.
func (r *dump) group(fd int, info *tty.TtyInfoEntry) error {
	sid, err := unix.IoctlGetInt(fd, unix.TIOCGSID)
	if errors.Is(err, unix.ENOTTY) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("TIOCGSID: %w", err)
	}
	leader := processOf(r.procs, sid)
	if leader == nil {
		return nil
	}
	*info.Sid = uint32(leader.VPID)
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil {
		return fmt.Errorf("TIOCGPGRP: %w", err)
	}
	for _, p := range r.procs {
		st, err := procfs.Host.Stat(p.PID)
		if err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
		if st.PGID == pgrp {
			*info.Pgrp = uint32(p.VPGID)
			return nil
		}
	}
	if leader.Group() == leader.VPID {
		*info.Pgrp = uint32(pgrp) // of which nobody is left
	}
	return nil
}

func processOf(procs []*engine.Process, pid int) *engine.Process {
	for _, p := range procs {
		if p.Group() == pid {
			return p
		}
	}
	return nil
}

// ptyState reads what only a pseudoterminal has.
func (r *dump) ptyState(t *terminal, info *tty.TtyInfoEntry, extra *imagespb.Terminal) error {
	if t.master == nil {
		return fmt.Errorf("the master of %s is not in the tree: %w", t.name(), ErrNotCarried)
	}
	fd := t.master.fd
	extra.Path = ptmxPath(t.master)
	for _, x := range []struct {
		req uint
		to  *bool
	}{{unix.TIOCGPTLCK, info.Locked}, {unix.TIOCGPKT, info.PacketMode}, {unix.TIOCGEXCL, &extra.ExclusiveMaster}} {
		v, err := unix.IoctlGetInt(fd, x.req)
		if err != nil {
			return fmt.Errorf("%s: ioctl 0x%x: %w", t.name(), x.req, err)
		}
		*x.to = v != 0
	}
	// The kernel moves what was written from buffer to buffer by itself; poll waits for it.
	extra.Opened = polled(fd, unix.POLLHUP) || t.kernel.count > 1
	for _, u := range t.users {
		polled(u.fd, unix.POLLIN)
	}
	if err := r.readQueues(t, extra); err != nil {
		return fmt.Errorf("what waits in %s: %w", t.name(), err)
	}
	if lost := packetLoss(extra, termiosOf(info.Termios)); info.GetPacketMode() && lost != 0 {
		return fmt.Errorf("the master of %s has not read its packet status 0x%x: %w", t.name(), lost, ErrBusy)
	}
	return nodeOf(t, r, info, extra)
}

// ptmxPath is the path by which a master was opened.
func ptmxPath(master *description) string {
	if name, ok := inRoot(master.path(), master.root); ok {
		return name
	}
	return "/dev/ptmx"
}

// nodeOf reads owner and permissions of the slave's node.
func nodeOf(t *terminal, r *dump, info *tty.TtyInfoEntry, extra *imagespb.Terminal) error {
	var st unix.Stat_t
	for _, u := range t.users {
		if u.stat.Rdev == t.rdev && u.stat.Nlink > 0 {
			st = u.stat
		}
	}
	if st.Rdev == 0 && t.fresh() { // open as /dev/tty only: as a terminal usually is
		st.Mode, st.Gid = 0o620, groupTTY
	} else if st.Rdev == 0 {
		root, err := openRoot(fmt.Sprintf("/proc/%d/root", t.master.holders[0].proc.PID))
		if err != nil {
			return err
		}
		st, err = statIn(root, nodePath(root, extra.Path, unix.Minor(t.rdev)))
		if err = errors.Join(err, unix.Close(root)); err != nil || st.Rdev != t.rdev {
			return fmt.Errorf("the node of %s: %w", t.name(), errors.Join(err, unix.ENXIO))
		}
	}
	info.Uid, info.Gid, extra.Mode = proto.Uint32(st.Uid), proto.Uint32(st.Gid), st.Mode&0o7777
	return nil
}

// nodePath is where the slave of a number stands: beside a multiplexer that is part of its devpts, else in the directory pts
// beside it (devpts_acquire in fs/devpts/inode.c).
func nodePath(root int, ptmx string, index uint32) string {
	dir := path.Dir(ptmx)
	fd, err := openIn(root, ptmx, unix.O_PATH)
	if err == nil {
		var s unix.Statfs_t
		err = errors.Join(unix.Fstatfs(fd, &s), unix.Close(fd))
		if node := fmt.Sprintf("%s/%d", dir, index); err == nil && s.Type == unix.DEVPTS_SUPER_MAGIC && existsIn(root, node) {
			return node // else the multiplexer is a link
		}
	}
	return fmt.Sprintf("%s/pts/%d", dir, index)
}

func existsIn(root int, name string) bool {
	fd, err := openIn(root, name, unix.O_PATH|unix.O_NOFOLLOW)
	return err == nil && unix.Close(fd) == nil
}
