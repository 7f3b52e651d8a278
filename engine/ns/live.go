//go:build linux

package ns

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// Live is the namespaces of a tree that is being rebuilt. First its root is born into those that it has for itself (Flags), and Fill
// fills them; then each other process is put where it belongs right after its birth, by Enter. Settle comes when all are there,
// Close at the end.
type Live struct {
	in     *images.Namespaces
	header *imagespb.Namespaces
	mounts *mountMaker

	nested map[uint32]*imagespb.NestedNamespace
	wanted map[int]map[int]uint32 // nested ones of each process, by kind (CLONE_NEW*)
	base   map[int]*handle        // of the root, by kind, of which there are nested ones
	made   map[uint32]*handle     // nested ones
	later  map[int]uint32         // time namespaces for the children of processes
	// offsets are those of the root's time namespace.
	offsets procfs.ClockOffset
	early   bool // those that can be made before there are processes for them have been
}

// earlyKinds are made by the first process of the tree: network namespaces lead to each other, and all may be mounted.
const earlyKinds = unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET

// handle is an open link below /proc/PID/ns.
type handle struct {
	file *os.File
	ino  uint64
}

func openHandle(pid int, link string) (*handle, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, link))
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &handle{f, st.Ino}, nil
}

// NewLive prepares the namespaces of a record that has been validated. It makes nothing yet.
func NewLive(in *images.Namespaces, header *imagespb.Namespaces) *Live {
	l := &Live{in: in, header: header, mounts: newMountMaker(), nested: map[uint32]*imagespb.NestedNamespace{}, wanted: map[int]map[int]uint32{},
		later: map[int]uint32{}, base: map[int]*handle{}, made: map[uint32]*handle{}}
	for _, n := range header.GetNested() {
		l.nested[n.GetId()] = n
	}
	for _, p := range header.GetProcesses() {
		of := map[int]uint32{}
		for _, id := range p.GetIds() {
			of[int(l.nested[id].GetState().GetOwn())] = id
		}
		l.wanted[int(p.GetPid())] = of
		if id := p.GetTimeForChildren(); id != 0 {
			l.later[int(p.GetPid())] = id
		}
	}
	return l
}

// Fill fills the namespaces of a skeleton's root, which was born into new ones and is alone in them.
func (l *Live) Fill(ctx context.Context, root remote.Caller) error {
	r := l.restorer(ctx, root, l.in, l.header)
	for _, k := range kinds {
		if k.flag == unix.CLONE_NEWNS { // which may have the others mounted
			if err := l.makeEarly(ctx, root); err != nil {
				return err
			}
		}
		if l.header.GetOwn()&uint64(k.flag) == 0 || k.restore == nil {
			continue
		}
		if err := k.restore(r); err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
	}
	return nil
}

func (l *Live) restorer(ctx context.Context, p remote.Caller, in *images.Namespaces, header *imagespb.Namespaces) *restorer {
	return &restorer{ctx: ctx, caller: p, in: in, header: header, mounts: l.mounts, handle: func(id uint32, kind uint64) (*os.File, error) {
		if h := l.made[id]; h != nil {
			return h.file, nil
		}
		k := kindOf(kind)
		if id != 1 || k == nil {
			return nil, fmt.Errorf("a handle of namespace %d, of kind 0x%x, which is not there: %w", id, kind, ErrNotCarried)
		}
		if l.base[k.flag] == nil {
			h, err := openHandle(p.PID(), k.link)
			if err != nil {
				return nil, err
			}
			l.base[k.flag] = h
		}
		return l.base[k.flag].file, nil
	}}
}

// makeEarly makes nested namespaces of earlyKinds, and fills the network namespaces of the tree, the root's among them. p, which
// is where the root is, is there again afterwards.
func (l *Live) makeEarly(ctx context.Context, p remote.Caller) (err error) {
	if l.early {
		return nil
	}
	l.early = true
	if err := l.Base(p.PID()); err != nil {
		return err
	}
	var nets []*liveNet
	if n := l.header.GetNet(); n != nil && l.header.GetOwn()&unix.CLONE_NEWNET != 0 {
		f, err := NetNS(p.PID())
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // a namespace's handle: nothing is lost
		nets = append(nets, &liveNet{NetNamespace: n, id: 1, file: f})
	}
	for _, n := range l.header.GetNested() {
		k := kindOf(n.GetState().GetOwn())
		if k == nil || k.flag&earlyKinds == 0 {
			continue
		}
		if err = l.make(ctx, p, k, n.GetId()); err == nil {
			err = l.base[k.flag].enter(ctx, p, k)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
		if k.flag == unix.CLONE_NEWNET && n.GetState().GetNet() != nil {
			nets = append(nets, &liveNet{NetNamespace: n.GetState().GetNet(), id: n.GetId(), file: l.made[n.GetId()].file})
		}
	}
	if err := restoreNets(nets); err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	return nil
}

// Handle is an open nested namespace, by its id; nil if there is none. It is open until Close.
func (l *Live) Handle(id uint32) *os.File {
	if h := l.made[id]; h != nil {
		return h.file
	}
	return nil
}

// Base says which process is in the namespaces of the tree's root: that itself or, where it has none for itself, another one.
func (l *Live) Base(pid int) error {
	for _, n := range l.nested {
		k := kindOf(n.GetState().GetOwn())
		if k == nil || l.base[k.flag] != nil {
			continue
		}
		h, err := openHandle(pid, k.link)
		if err != nil {
			return err
		}
		l.base[k.flag] = h
		if k.flag == unix.CLONE_NEWTIME {
			if l.offsets, err = procfs.Host.ClockOffsets(pid); err != nil {
				return err
			}
		}
	}
	return nil
}

func kindOf(flag uint64) *kind {
	for i := range kinds {
		if uint64(kinds[i].flag) == flag && kinds[i].nests {
			return &kinds[i]
		}
	}
	return nil
}

// Enter puts a new process, by the id that the tree knows, into the namespaces where it belongs: those that it has from its birth,
// others that exist, or new ones. It has no descriptors yet.
func (l *Live) Enter(ctx context.Context, p remote.Caller, vpid int) error {
	if err := l.makeEarly(ctx, p); err != nil {
		return err
	}
	for i := range kinds {
		k := &kinds[i]
		base := l.base[k.flag]
		if base == nil {
			continue
		}
		if k.flag == unix.CLONE_NEWTIME {
			if err := l.enterTime(ctx, p, vpid, k); err != nil {
				return fmt.Errorf("%s: %w", k.Name, err)
			}
			continue
		}
		id, want := l.wanted[vpid][k.flag], base
		if id != 0 {
			want = l.made[id]
		}
		var err error
		if want == nil {
			err = l.make(ctx, p, k, id)
		} else {
			err = want.enter(ctx, p, k)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
	}
	for _, id := range l.wanted[vpid] {
		if l.made[id] == nil {
			return fmt.Errorf("a namespace of kind 0x%x that is not the root's: %w", l.nested[id].GetState().GetOwn(), ErrNotCarried)
		}
	}
	return nil
}

// enter moves a process, unless it is there.
func (h *handle) enter(ctx context.Context, p remote.Caller, k *kind) error {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), k.link), &st); err != nil {
		return err
	}
	if st.Ino == h.ino {
		return nil
	}
	const fd = 3
	if err := p.Push(ctx, []remote.PushFile{{File: h.file, FD: fd}}); err != nil {
		return err
	}
	var b remote.Batch
	b.Call(unix.SYS_SETNS, fd, k.flag)
	b.Call(unix.SYS_CLOSE, fd)
	return p.Run(ctx, &b)
}

// make makes a nested namespace, with a process alone in it.
func (l *Live) make(ctx context.Context, p remote.Caller, k *kind, id uint32) error {
	var b remote.Batch
	b.Call(unix.SYS_UNSHARE, k.flag)
	if err := p.Run(ctx, &b); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	h, err := openHandle(p.PID(), k.link)
	if err != nil {
		return err
	}
	l.made[id] = h
	in := *l.in.Nested[id]
	in.User, in.Trees = l.in.User, l.in.Trees
	if k.restore == nil {
		return nil
	}
	r := l.restorer(ctx, p, &in, l.nested[id].GetState())
	r.at = h.file
	return k.restore(r)
}

// Settle does what takes all namespaces of the tree. It may be called again, when there are more.
func (l *Live) Settle() error { return l.mounts.propagate() }

// Close lets go of what this program holds of the namespaces.
func (l *Live) Close() error {
	errs := []error{l.mounts.close()}
	for _, h := range l.base {
		errs = append(errs, h.file.Close())
	}
	for _, h := range l.made {
		errs = append(errs, h.file.Close())
	}
	l.base, l.made = map[int]*handle{}, map[uint32]*handle{}
	return errors.Join(errs...)
}
