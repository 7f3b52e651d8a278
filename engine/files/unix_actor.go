//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/ns"
	"migrate/engine/remote"
	"migrate/engine/sock"
)

// An actor makes calls whose caller the kernel remembers: it notes who connects, listens or makes a pair (SO_PEERCRED in
// unix(7)). They are made in the process of the skeleton that has the right id, with the right user and groups.
type actor struct {
	caller remote.Caller
	cred   *sock.Cred // user and group; nil for those of the process
	groups []uint32
}

// actor finds who is to be remembered. One that is not in the tree, mostly because it has ended, is stood for by a process that
// lives for as long as Open runs or, if its id is taken here, by the process that is home to the record e. nil: there is
// no skeleton, and this program makes the calls.
func (p *unixPlan) actor(ctx context.Context, e *fdinfo.FileEntry, cred *sock.Cred, groups []uint32) (*actor, error) {
	env := p.r.env
	if env.Caller == nil {
		return nil, nil
	}
	home := env.Caller(p.r.homes[e.GetId()].vpid)
	if home == nil {
		return nil, fmt.Errorf("process %d is not there", p.r.homes[e.GetId()].vpid)
	}
	if cred == nil {
		return &actor{caller: home}, nil
	}
	a := &actor{caller: home}
	var err error
	if a.cred, a.groups, err = p.inside(cred, groups); err != nil {
		return nil, err
	}
	if cred.PID == 0 {
		return a, nil
	}
	c, err := p.process(ctx, cred.PID)
	if c != nil {
		a.caller = c
	}
	return a, err
}

// itself is the process that is home to a record, with the user and groups that it has in the checkpoint: those that the tree's user
// namespace knows. nil: as of actor.
func (p *unixPlan) itself(e *fdinfo.FileEntry) (*actor, error) {
	if p.r.env.Caller == nil {
		return nil, nil
	}
	vpid := p.r.homes[e.GetId()].vpid
	a := &actor{caller: p.r.env.Caller(vpid)}
	if a.caller == nil {
		return nil, fmt.Errorf("process %d is not there", vpid)
	}
	if c := p.r.cp.Process(uint32(vpid)); c != nil && len(c.Threads) > 0 {
		if k := c.Leader().Core.GetThreadCore().GetCreds(); k != nil {
			a.cred, a.groups = &sock.Cred{UID: k.GetEuid(), GID: k.GetEgid()}, k.GetGroups()
		}
	}
	return a, nil
}

// inside translates user and groups to what the tree's user namespace calls them.
func (p *unixPlan) inside(cred *sock.Cred, groups []uint32) (*sock.Cred, []uint32, error) {
	spaces := p.r.cp.Namespaces
	if spaces == nil || spaces.User == nil {
		return cred, groups, nil
	}
	uid, ok := ns.IDInside(spaces.User.GetUidMap(), cred.UID)
	gid, ok2 := ns.IDInside(spaces.User.GetGidMap(), cred.GID)
	if !ok || !ok2 {
		return nil, nil, fmt.Errorf("user %d or group %d, whom the kernel remembers for it, is not mapped in the user namespace", cred.UID, cred.GID)
	}
	out := make([]uint32, 0, len(groups))
	for _, g := range groups {
		id, ok := ns.IDInside(spaces.User.GetGidMap(), g)
		if !ok {
			return nil, nil, fmt.Errorf("group %d, which the kernel remembers for it, is not mapped in the user namespace", g)
		}
		out = append(out, id)
	}
	return &sock.Cred{PID: cred.PID, UID: uid, GID: gid}, out, nil
}

// process is the one that the tree knows under an id, or one that stands for it; nil if the id is taken by another one.
func (p *unixPlan) process(ctx context.Context, vpid uint32) (remote.Caller, error) {
	if c := p.r.env.Caller(int(vpid)); c != nil {
		return c, nil
	}
	if h, ok := p.helpers[vpid]; ok {
		return h.Caller, nil
	}
	if p.r.env.Helper == nil {
		return nil, nil
	}
	h, err := p.r.env.Helper(ctx, int(vpid))
	if errors.Is(err, unix.EEXIST) {
		h, err = Helper{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("a process in the place of process %d: %w", vpid, err)
	}
	p.helpers[vpid] = h
	return h.Caller, nil
}

// closeHelpers ends the processes that stood for others.
func (p *unixPlan) closeHelpers() error {
	var errs []error
	for _, h := range p.helpers {
		if h.End != nil {
			errs = append(errs, h.End())
		}
	}
	p.helpers = map[uint32]Helper{}
	return errors.Join(errs...)
}

// noID leaves an id as it is (setresuid(2)).
const noID = ^uint32(0)

// run makes calls as the actor. Files are looked up with the rights of root all the same (setfsuid(2)). The saved user id
// leads back.
func (a *actor) run(ctx context.Context, fill func(b *remote.Batch)) error {
	b := &remote.Batch{}
	other := a.cred != nil && (a.cred.UID != 0 || a.cred.GID != 0 || len(a.groups) > 0)
	if other {
		var groups []byte
		for _, g := range a.groups {
			groups = binary.LittleEndian.AppendUint32(groups, g)
		}
		b.Call(unix.SYS_SETGROUPS, len(a.groups), b.Bytes(groups))
		b.Call(unix.SYS_SETRESGID, noID, a.cred.GID, noID)
		b.Call(unix.SYS_SETRESUID, noID, a.cred.UID, noID)
		b.Try(unix.SYS_SETFSUID, 0)
	}
	fill(b)
	if other {
		b.Try(unix.SYS_SETRESUID, noID, 0, noID)
		b.Try(unix.SYS_SETRESGID, noID, 0, noID)
		b.Try(unix.SYS_SETGROUPS, 0, 0)
	}
	return a.caller.Run(ctx, b)
}

// take moves a descriptor of the actor here.
func (a *actor) take(ctx context.Context, fds ...int) (out []int, err error) {
	var b remote.Batch
	for _, fd := range fds {
		f, e := a.caller.Pull(ctx, fd)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		own, e := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		err = errors.Join(err, e, f.Close())
		out = append(out, own)
		b.Call(unix.SYS_CLOSE, fd)
	}
	if err != nil {
		return nil, err
	}
	return out, a.caller.Run(ctx, &b)
}

// pair is socketpair(2).
func (a *actor) pair(ctx context.Context, typ int) (x, y int, err error) {
	if a == nil {
		fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
		return fds[0], fds[1], err
	}
	var fds *remote.Data
	err = a.run(ctx, func(b *remote.Batch) {
		fds = b.Buffer(8)
		b.Try(unix.SYS_SOCKETPAIR, unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0, fds)
	})
	if err != nil {
		return -1, -1, err
	}
	le := binary.LittleEndian
	own, err := a.take(ctx, int(le.Uint32(fds.Bytes())), int(le.Uint32(fds.Bytes()[4:])))
	if err != nil {
		return -1, -1, err
	}
	return own[0], own[1], nil
}

// lentFD is the number under which an actor is lent a descriptor; the processes of a skeleton have none of their own yet.
const lentFD = 500

// with makes calls that use a descriptor of this program.
func (a *actor) with(ctx context.Context, fd int, fill func(b *remote.Batch) *remote.Result) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(dup), "lent")
	err = a.caller.Push(ctx, []remote.PushFile{{File: f, FD: lentFD, CloseOnExec: true}})
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	var call *remote.Result
	err = a.run(ctx, func(b *remote.Batch) {
		call = fill(b)
		b.Call(unix.SYS_CLOSE, lentFD)
	})
	if err != nil {
		return err
	}
	return call.Err()
}

// listen is listen(2).
func (a *actor) listen(ctx context.Context, fd, backlog int) error {
	if a == nil {
		return unix.Listen(fd, backlog)
	}
	return a.with(ctx, fd, func(b *remote.Batch) *remote.Result { return b.Try(unix.SYS_LISTEN, lentFD, backlog) })
}

// connect is connect(2) to a name, in a directory of the actor's mount namespace if it is a path.
func (a *actor) connect(ctx context.Context, fd int, dir string, name []byte) error {
	addr := sock.UnixAddr(name)
	return a.with(ctx, fd, func(b *remote.Batch) *remote.Result {
		if dir != "" {
			b.Try(unix.SYS_CHDIR, b.String(dir))
		}
		return b.Try(unix.SYS_CONNECT, lentFD, b.Bytes(addr), len(addr))
	})
}
