//go:build linux

package ns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

const (
	timeLink      = "time"
	timeLinkLater = "time_for_children"
)

// dumpTime reads the offsets of a nested time namespace, into which the children of the process are born.
func dumpTime(d *dumper) error {
	o, err := d.fs.LaterOffsets(d.root.PID)
	d.header.MonotonicOffset, d.header.BoottimeOffset = int64(o.Monotonic), int64(o.Boottime)
	return err
}

// timeFinder finds the time namespaces that the root of the tree is not in.
type timeFinder struct {
	fs   procfs.FS
	base string
	list []*nested
	in   func(p *engine.Process) *imagespb.ProcessNamespaces
}

// id is the number of a namespace, which is new if it has not been met. The process of a nested namespace is one whose children are born
// there: of that alone the offsets can be read.
func (t *timeFinder) id(link string, p *engine.Process) (uint32, error) {
	if link == t.base {
		return 0, nil
	}
	ino, err := nsNumber(link)
	if err != nil {
		return 0, err
	}
	if i := slices.IndexFunc(t.list, func(n *nested) bool { return n.ino == ino }); i >= 0 {
		return t.list[i].id, nil
	}
	n := &nested{id: uint32(len(t.list)) + 2, kind: kindOf(unix.CLONE_NEWTIME), proc: p, ino: ino}
	t.list = append(t.list, n)
	return n.id, nil
}

// find adds who is in which.
func (t *timeFinder) find(tree []*engine.Process) (err error) {
	if t.base, err = t.fs.Link(tree[0].PID, "ns", timeLink); err != nil {
		if errors.Is(err, procfs.ErrGone) {
			return nil // a kernel without
		}
		return err
	}
	type links struct{ now, later string }
	of := make([]links, len(tree))
	for i, p := range tree { // first those that can tell of their offsets
		now, err := t.fs.Link(p.PID, "ns", timeLink)
		later, err2 := t.fs.Link(p.PID, "ns", timeLinkLater)
		if err := errors.Join(err, err2); errors.Is(err, procfs.ErrGone) {
			continue
		} else if err != nil {
			return err
		}
		of[i] = links{now, later}
		if _, err := t.id(later, p); err != nil {
			return err
		}
	}
	for i, p := range tree {
		if of[i].now == "" {
			continue
		}
		now, err := t.id(of[i].now, p)
		if err != nil {
			return err
		}
		later, err := t.id(of[i].later, p)
		if err != nil {
			return err
		}
		if now != 0 {
			e := t.in(p)
			e.Ids = append(e.Ids, now)
		}
		if later != now {
			t.in(p).TimeForChildren = later
		}
	}
	return nil
}

// check refuses what cannot be made again.
func (d *dumper) checkTime(p *engine.Process, e *imagespb.ProcessNamespaces) error {
	now, err := d.fs.Link(p.PID, "ns", timeLink)
	if err != nil {
		return err
	}
	later, err := d.fs.Link(p.PID, "ns", timeLinkLater)
	if err != nil || now == later {
		return err
	}
	d.kind = "time namespace"
	if e.GetTimeForChildren() == 0 || len(p.Threads) > 1 {
		d.refuse("the process", "its children are to be born into another time namespace, which is that of its parent, or it has threads", "")
	}
	return nil
}

// enterTime puts a process into its time namespace, and makes the one for its children.
func (l *Live) enterTime(ctx context.Context, p remote.Caller, vpid int, k *kind) error {
	id, want := l.wanted[vpid][k.flag], l.base[k.flag]
	if id != 0 {
		if l.made[id] == nil {
			if err := l.makeTime(ctx, p, id); err != nil {
				return err
			}
		}
		want = l.made[id]
	}
	if err := want.enter(ctx, p, k); err != nil {
		return err
	}
	later := l.later[vpid]
	if later == 0 {
		return nil
	}
	if l.made[later] != nil {
		return fmt.Errorf("the time namespace %d for its children is that of another process: %w", later, ErrNotCarried)
	}
	return l.makeTime(ctx, p, later)
}

// makeTime makes a time namespace for the children of a process. Its clocks are to those of the root's as they were.
func (l *Live) makeTime(ctx context.Context, p remote.Caller, id uint32) error {
	var b remote.Batch
	b.Call(unix.SYS_UNSHARE, unix.CLONE_NEWTIME)
	if err := p.Run(ctx, &b); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	x := l.nested[id].GetState()
	o := Offsets{
		Monotonic: l.offsets.Monotonic + time.Duration(x.GetMonotonicOffset()-l.header.GetMonotonicOffset()),
		Boottime:  l.offsets.Boottime + time.Duration(x.GetBoottimeOffset()-l.header.GetBoottimeOffset()),
	}
	if err := writeOffsets(p.PID(), o); err != nil {
		return err
	}
	h, err := openHandle(p.PID(), timeLinkLater)
	if err != nil {
		return err
	}
	l.made[id] = h
	return nil
}
