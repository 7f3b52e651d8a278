//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// SessionTerminals lists the controlling terminals of the sessions of the tree, as far as the tree holds them: the masters of
// pseudoterminals, and the devices of others. The tree may run.
func (d *Dumper) SessionTerminals(procs []*engine.Process) ([]*imagespb.SessionTerminal, error) {
	want := map[int]*engine.Process{} // leaders with a terminal, by pid
	for _, p := range procs {
		if p.VPID != p.VSID {
			continue
		}
		st, err := procfs.Host.Stat(p.PID)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if st.TTY != 0 {
			want[p.Group()] = p
		}
	}
	if len(want) == 0 {
		return nil, nil
	}
	if err := d.prepare(procs); err != nil {
		return nil, err
	}
	var out []*imagespb.SessionTerminal
	for _, p := range procs {
		found, err := d.sessionsOf(p, want)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	held, err := d.heldSessions(procs, want)
	if err != nil {
		return nil, err
	}
	fresh, err := d.freshSessions(procs, want)
	return append(append(out, held...), fresh...), err
}

// sessionsOf finds those controlling terminals that a process holds. Those that it finds are no longer wanted.
func (d *Dumper) sessionsOf(p *engine.Process, want map[int]*engine.Process) ([]*imagespb.SessionTerminal, error) {
	fds, err := procfs.Host.FDs(p.PID)
	if errors.Is(err, procfs.ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*imagespb.SessionTerminal
	for _, fd := range fds {
		var st unix.Stat_t
		link := "/proc/" + strconv.Itoa(p.PID) + "/fd/" + strconv.Itoa(fd)
		if unix.Stat(link, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
			continue
		}
		desc := &description{stat: st, holders: []holder{{p, fd}}}
		if !isTerminal(desc) || unix.Major(st.Rdev) == majorPTS || st.Rdev == devTTY {
			continue
		}
		t, err := d.sessionOf(p, fd, st.Rdev, want)
		if err != nil {
			return nil, fmt.Errorf("pid %d, fd %d: %w", p.PID, fd, err)
		}
		if t != nil {
			out = append(out, t)
		}
	}
	return out, nil
}

// sessionOf asks a terminal which session it controls.
func (d *Dumper) sessionOf(p *engine.Process, fd int, rdev uint64, want map[int]*engine.Process) (_ *imagespb.SessionTerminal, err error) {
	dup, err := unix.PidfdGetfd(d.pidfds[p.PID], fd, 0)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(dup)) }()
	flags, err := unix.FcntlInt(uintptr(dup), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_PATH != 0 {
		return nil, err
	}
	sid, leader := 0, (*engine.Process)(nil)
	if rdev == devPtmx {
		if sid, err = unix.IoctlGetInt(dup, unix.TIOCGSID); err != nil {
			return nil, nil // it controls no session, or none that can be seen from here
		}
		leader = want[sid]
	} else {
		for pid, l := range want {
			if st, err := procfs.Host.Stat(pid); err == nil && uint64(uint32(st.TTY)) == encode(rdev) {
				sid, leader = pid, l
			}
		}
	}
	if leader == nil {
		return nil, nil
	}
	delete(want, sid)
	tty, err := d.readTTY(dup, rdev == devPtmx)
	if err != nil {
		return nil, err
	}
	root, name := "/", ""
	if root, err = procfs.Host.Link(strconv.Itoa(p.PID), "root"); err != nil {
		return nil, err
	}
	if name, err = procfs.Host.Link(strconv.Itoa(p.PID), "fd", strconv.Itoa(fd)); err != nil {
		return nil, err
	}
	if in, ok := inRoot(name, root); ok {
		name = in
	}
	size, err := unix.IoctlGetWinsize(dup, unix.TIOCGWINSZ)
	if err != nil {
		return nil, fmt.Errorf("TIOCGWINSZ: %w", err)
	}
	return &imagespb.SessionTerminal{Sid: uint32(leader.VPID), Id: d.terminalID(tty.addr), Path: name, Flags: uint32(flags),
		Rdev: uint32(tty.rdev), Rows: uint32(size.Row), Columns: uint32(size.Col)}, nil
}

// encode is a device number as /proc/PID/stat has it (new_encode_dev in include/linux/kdev_t.h).
func encode(rdev uint64) uint64 {
	major, minor := uint64(unix.Major(rdev)), uint64(unix.Minor(rdev))
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// checkSessions refuses controlling terminals that the tree does not hold.
func (d *Dumper) checkSessions(procs []*engine.Process) ([]engine.Obstacle, error) {
	found, err := d.SessionTerminals(procs)
	if err != nil {
		return nil, err
	}
	held := map[int]bool{}
	for _, t := range found {
		held[int(t.GetSid())] = true
	}
	var out []engine.Obstacle
	for _, p := range procs {
		st, err := procfs.Host.Stat(p.PID)
		if errors.Is(err, procfs.ErrGone) || err == nil && (st.TTY == 0 || st.State == 'Z' || held[p.VSID]) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, engine.Obstacle{PID: p.PID, Kind: "controlling-terminal", Where: "the process",
			Reason: fmt.Sprintf("its session has a controlling terminal (device %d:%d) whose other end is held by a program outside of the tree", st.TTY>>8&0xfff, st.TTY&0xff|st.TTY>>12&0xfff00),
			Remedy: remedyTerminal})
	}
	return out, nil
}

// noteTerminals marks the processes that have given up the terminal that their session has.
func (r *dump) noteTerminals(procs []*engine.Process) error {
	sessions := map[uint32]bool{}
	for _, t := range r.cp.Header.GetTerminals() {
		sessions[t.GetSid()] = true
	}
	for _, p := range procs {
		img := r.cp.Process(uint32(p.VPID))
		if img == nil || img.Zombie() || img.Extra == nil || !sessions[uint32(p.VSID)] {
			continue
		}
		st, err := procfs.Host.Stat(p.PID)
		if err != nil {
			return err
		}
		img.Extra.NoTerminal = st.TTY == 0
	}
	return nil
}

// Control completes what ties terminals to sessions, by calls in the leaders: the foreground groups, and descriptors of
// /dev/tty, which only a member of the session can open. It runs between Open and Install, on processes that hold no
// descriptor yet.
func (r *Restorer) Control(ctx context.Context, procs []*engine.Process) error {
	byVPID := map[int]*engine.Process{}
	for _, p := range procs {
		byVPID[p.VPID] = p
	}
	for i, info := range r.cp.TTYs {
		if info.GetSid() == 0 {
			continue
		}
		p := byVPID[int(info.GetSid())]
		if p == nil {
			return fmt.Errorf("terminal %d is that of session %d, whose leader is not in the tree", info.GetId(), info.GetSid())
		}
		if err := r.control(ctx, p, r.cp.TTYs[i].GetId(), info.GetPgrp()); err != nil {
			return fmt.Errorf("terminal %d of session %d: %w", info.GetId(), info.GetSid(), err)
		}
	}
	if len(r.cp.Header.GetTerminals()) == 0 {
		return nil
	}
	for _, p := range procs {
		img := r.cp.Process(uint32(p.VPID))
		if img == nil || img.Zombie() {
			continue
		}
		if err := quieten(ctx, p, img.Extra.GetNoTerminal()); err != nil {
			return fmt.Errorf("process %d: %w", p.VPID, err)
		}
	}
	return nil
}

// control opens /dev/tty in the leader: once for the foreground group, and for each descriptor.
func (r *Restorer) control(ctx context.Context, p *engine.Process, id, pgrp uint32) (err error) {
	var files []*fdinfo.FileEntry
	for _, e := range r.entries() {
		if e.Tty.GetTtyInfoId() == id && r.rdev(e) == devTTY && r.files[e.GetId()] == nil {
			files = append(files, e)
		}
	}
	var b remote.Batch
	tty := b.Call(unix.SYS_OPENAT, unix.AT_FDCWD, b.String("/dev/tty"), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	set := (*remote.Result)(nil)
	if pgrp != 0 {
		group := b.Bytes([]byte{byte(pgrp), byte(pgrp >> 8), byte(pgrp >> 16), byte(pgrp >> 24)})
		set = b.Try(unix.SYS_IOCTL, tty, unix.TIOCSPGRP, group)
	}
	opened := make([]*remote.Result, len(files))
	for i, e := range files {
		name := b.String(e.Reg.GetName())
		opened[i] = b.Call(unix.SYS_OPENAT, unix.AT_FDCWD, name, e.Reg.GetFlags()&unix.O_ACCMODE|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err := p.Caller.Run(ctx, &b); err != nil {
		return fmt.Errorf("/dev/tty of process %d: %w", p.VPID, err)
	}
	if set != nil {
		// A group of which nobody is left cannot be made; then it is that of the leader.
		if e := set.Err(); e != nil && !errors.Is(e, unix.ESRCH) && !errors.Is(e, unix.EPERM) {
			return fmt.Errorf("foreground group %d: %w", pgrp, e)
		}
	}
	for i, e := range files {
		if err := r.pullTTY(ctx, p, e, opened[i]); err != nil {
			return r.blame(e, err)
		}
	}
	var end remote.Batch
	end.Call(unix.SYS_CLOSE_RANGE, 0, uint32(1<<32-1), 0)
	return p.Caller.Run(ctx, &end)
}

// pullTTY takes over what a process has opened as /dev/tty.
func (r *Restorer) pullTTY(ctx context.Context, p *engine.Process, e *fdinfo.FileEntry, opened *remote.Result) error {
	n, err := opened.Value()
	if err != nil {
		return err
	}
	f, err := p.Caller.Pull(ctx, int(n))
	if err != nil {
		return err
	}
	r.files[e.GetId()] = f
	return onFD(f, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Rdev != devTTY {
			return fmt.Errorf("%s is not the controlling terminal here (%w)", e.Reg.GetName(), err)
		}
		return terminalFlags(fd, e.Reg.GetFlags())
	})
}

// quieten takes back the signals that building a session with its terminal sends, before the process has its handlers. drop makes it
// give up its terminal.
func quieten(ctx context.Context, p *engine.Process, drop bool) error {
	var b remote.Batch
	if drop {
		tty := b.Call(unix.SYS_OPENAT, unix.AT_FDCWD, b.String("/dev/tty"), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		b.Call(unix.SYS_IOCTL, tty, unix.TIOCNOTTY, 0)
		b.Call(unix.SYS_CLOSE, tty)
	}
	ignore := b.Bytes(append([]byte{1}, make([]byte, 31)...)) // struct sigaction with SIG_IGN
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGCONT, unix.SIGWINCH} {
		b.Call(unix.SYS_RT_SIGACTION, int(sig), ignore, 0, 8)
	}
	return p.Caller.Run(ctx, &b)
}
