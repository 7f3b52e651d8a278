//go:build linux

package files

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// A pseudoterminal whose master is outside of the tree comes along in one of two ways. The agent holds the master for the tree
// (Options.Terminals): then the terminal is moved with all that waits in it, and the agent of the destination gets the new master.
// Or somebody else holds it, such as a terminal emulator, sshd or a shell's: that terminal stays where it is, with what waits in it,
// and the tree gets a new one, under any number, with the settings and the size of the old one.

// FreshTerminal is the name under which Env.Terminal gets the master of a new terminal.
const FreshTerminal = "new"

const remedyTerminal = "move it with --tty new, which gives it a new terminal; or start it without one (setsid, redirected input and output), " +
	"together with what holds the other end (tmux, screen, script), or by migrate run -t"

// groupTTY is the group of terminals, as devpts is mounted everywhere (gid=5).
const groupTTY = 5

// outsideMasters adds the terminals that the agent holds, and marks those that the tree is to leave.
func (d *Dumper) outsideMasters(list []*terminal, byAddr map[uint64]*terminal) ([]*terminal, error) {
	for _, name := range slices.Sorted(maps.Keys(d.opts.Terminals)) {
		m, err := d.masterOf(d.opts.Terminals[name])
		if err != nil {
			return nil, fmt.Errorf("the master of terminal %q, held for the tree: %w", name, err)
		}
		tty, err := d.readTTY(m.fd, true)
		if err != nil {
			return nil, fmt.Errorf("the master of terminal %q, held for the tree: %w", name, err)
		}
		t := byAddr[tty.addr]
		if t == nil {
			t = &terminal{id: d.terminalID(tty.addr), kernel: tty}
			list = append(list, t)
		}
		t.rdev, t.holder, t.master = tty.rdev, name, m
	}
	for _, t := range list { // one: whoever takes its master cannot show two
		if d.opts.NewTerminals && t.isPTY() && t.master == nil && len(t.hungUp) == 0 && (d.fresh == 0 || d.fresh == t.id) {
			t.holder, d.fresh = FreshTerminal, t.id
		}
	}
	return list, nil
}

// masterOf describes a master that is not in the tree.
func (d *Dumper) masterOf(f *os.File) (*description, error) {
	fd, err := rawFD(f)
	if err != nil {
		return nil, err
	}
	m := &description{fd: fd, holders: []holder{{d.procs[0], -1}}, root: "/"}
	if err := unix.Fstat(fd, &m.stat); err != nil {
		return nil, err
	}
	m.flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return m, err
}

// heldTerminals adds the terminals that the agent holds and of which the tree has no descriptor.
func (r *dump) heldTerminals() error {
	if len(r.opts.Terminals) == 0 {
		return nil
	}
	if r.snap.ttys == nil {
		all, err := r.findTerminals(r.snap.list)
		if err != nil {
			return err
		}
		r.snap.ttys = all
	}
	for _, t := range r.snap.ttys {
		if t.holder == "" || t.master == nil {
			continue
		}
		if err := r.addTerminal(t); err != nil {
			return fmt.Errorf("terminal %q, held for the tree: %w", t.holder, err)
		}
	}
	return nil
}

// heldSessions finds the sessions whose controlling terminals the agent holds.
func (d *Dumper) heldSessions(procs []*engine.Process, want map[int]*engine.Process) ([]*imagespb.SessionTerminal, error) {
	var out []*imagespb.SessionTerminal
	for _, name := range slices.Sorted(maps.Keys(d.opts.Terminals)) {
		m, err := d.masterOf(d.opts.Terminals[name])
		if err != nil {
			return nil, err
		}
		sid, err := unix.IoctlGetInt(m.fd, unix.TIOCGSID)
		if err != nil || want[sid] == nil {
			continue // it controls no session of the tree
		}
		leader := want[sid]
		delete(want, sid)
		t, err := d.describeSession(m.fd, true, leader)
		if err != nil {
			return nil, fmt.Errorf("terminal %q, held for the tree: %w", name, err)
		}
		t.Path, t.Flags = ptmxPath(m), uint32(m.flags)
		out = append(out, t)
	}
	return out, nil
}

// describeSession is the controlling terminal of a session, without the path of its multiplexer.
func (d *Dumper) describeSession(fd int, master bool, leader *engine.Process) (*imagespb.SessionTerminal, error) {
	tty, err := d.readTTY(fd, master)
	if err != nil {
		return nil, err
	}
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return nil, fmt.Errorf("TIOCGWINSZ: %w", err)
	}
	return &imagespb.SessionTerminal{Sid: uint32(leader.VPID), Id: d.terminalID(tty.addr), Rdev: uint32(tty.rdev), Rows: uint32(size.Row), Columns: uint32(size.Col)}, nil
}

// freshSessions are the sessions of the tree that leave their controlling terminals and get new ones.
func (d *Dumper) freshSessions(procs []*engine.Process, want map[int]*engine.Process) ([]*imagespb.SessionTerminal, error) {
	if !d.opts.NewTerminals {
		return nil, nil
	}
	var out []*imagespb.SessionTerminal
	for _, p := range procs {
		if want[p.PID] == nil {
			continue
		}
		fd, err := d.controlling(procs, p)
		if err != nil {
			return nil, fmt.Errorf("the controlling terminal of pid %d: %w", p.PID, err)
		}
		if fd < 0 {
			continue // checkSessions says so
		}
		t, err := d.describeSession(fd, false, p)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return nil, fmt.Errorf("the controlling terminal of pid %d: %w", p.PID, err)
		}
		if d.fresh != 0 && d.fresh != t.GetId() {
			continue
		}
		d.fresh = t.GetId()
		delete(want, p.PID)
		t.Path, t.Flags, t.Fresh = "/dev/ptmx", unix.O_RDWR, true
		out = append(out, t)
	}
	return out, nil
}

// controlling opens the pseudoterminal that controls the session of a process, by a descriptor that the tree has of it or by its path;
// -1 if it cannot be reached or is no pseudoterminal.
func (d *Dumper) controlling(procs []*engine.Process, leader *engine.Process) (int, error) {
	stat, err := procfs.Host.Stat(leader.PID)
	if err != nil {
		return -1, err
	}
	is := func(st unix.Stat_t) bool {
		return st.Mode&unix.S_IFMT == unix.S_IFCHR && unix.Major(st.Rdev) == majorPTS && encode(st.Rdev) == uint64(uint32(stat.TTY))
	}
	for _, p := range procs {
		fds, err := procfs.Host.FDs(p.PID)
		if err != nil && !errors.Is(err, procfs.ErrGone) {
			return -1, err
		}
		for _, fd := range fds {
			var st unix.Stat_t
			if unix.Stat(procfs.Host.Path(p.PID, "fd", fd), &st) != nil || !is(st) {
				continue
			}
			dup, err := unix.PidfdGetfd(d.pidfds[p.PID], fd, 0)
			if err != nil {
				continue // closed meanwhile
			}
			if flags, err := unix.FcntlInt(uintptr(dup), unix.F_GETFL, 0); err == nil && flags&unix.O_PATH == 0 && !isHungUp(dup) {
				return dup, nil
			}
			_ = unix.Close(dup) // a duplicate: nothing is lost
		}
	}
	minor := int(uint32(stat.TTY)&0xff | uint32(stat.TTY)>>12&0xfff00)
	fd, err := unix.Open(procfs.Host.Path(leader.PID, "root", "dev", "pts", strconv.Itoa(minor)), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || !is(st) {
		return -1, unix.Close(fd)
	}
	return fd, nil
}

// freshState is all that is known of a terminal that the tree gets anew: beside the settings, the session that it controls. What waits in
// the old one is read by whoever has that.
func (r *dump) freshState(t *terminal, info *tty.TtyInfoEntry, extra *imagespb.Terminal) error {
	extra.Path, extra.Opened = "/dev/ptmx", true
	for _, s := range r.cp.Header.GetTerminals() {
		if s.GetId() != t.id {
			continue
		}
		info.Sid, info.Pgrp = proto.Uint32(s.GetSid()), proto.Uint32(s.GetSid())
		pgrp, err := unix.IoctlGetInt(t.any().fd, unix.TIOCGPGRP) // only the tree's own sessions tell; else the tree is in the foreground
		for _, p := range r.procs {
			if st, serr := procfs.Host.Stat(p.PID); err == nil && serr == nil && st.PGID == pgrp {
				*info.Pgrp = uint32(p.VPGID)
			}
		}
	}
	return nodeOf(t, r, info, extra)
}
