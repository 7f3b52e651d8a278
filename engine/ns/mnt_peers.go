//go:build linux

package ns

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// setGroup is MOVE_MOUNT_SET_GROUP of move_mount(2), Linux 5.15: the mount enters the peer group, and gets the master, of
// another one, whose root must be the same or above its own.
const setGroup = 0x100

// member is a mount that has peers or a master.
type member struct {
	t *mountTree
	e *mnt.MntEntry
	x *imagespb.Mount
}

// propagate gives the mounts of all namespaces that are new their peer groups and masters, when all are in their places, so that
// none of them was mounted anywhere else by it. A group is made by its member with the widest root; a master before its slaves.
func (m *mountMaker) propagate() error {
	var left []member
	for _, t := range m.trees {
		if t.settled {
			continue
		}
		t.settled = true
		for i, e := range t.in.Mounts {
			if e.GetFlags()&unix.MS_UNBINDABLE != 0 {
				if err := t.setPropagation(e, unix.MS_UNBINDABLE); err != nil {
					return err
				}
			} else if e.GetSharedId() != 0 || e.GetMasterId() != 0 {
				left = append(left, member{t, e, t.header.GetMounts()[i]})
			}
		}
	}
	slices.SortStableFunc(left, func(a, b member) int { return cmp.Compare(len(a.e.GetRoot()), len(b.e.GetRoot())) })
	inside := map[uint32]bool{}
	for _, l := range left {
		inside[l.e.GetSharedId()] = true
	}
	for len(left) > 0 {
		i := slices.IndexFunc(left, func(l member) bool {
			master := l.e.GetMasterId()
			_, ready := m.made[master]
			return master == 0 || ready || l.x.GetSlaveOutside() || !inside[master]
		})
		if i < 0 {
			return fmt.Errorf("mount at %s: its master %d is its own slave", left[0].e.GetMountpoint(), left[0].e.GetMasterId())
		}
		l := left[i]
		left = slices.Delete(left, i, i+1)
		if err := l.t.join(l.e, l.x, m.made); err != nil {
			return fmt.Errorf("propagation of the mount at %s: %w", l.e.GetMountpoint(), err)
		}
	}
	return nil
}

// setPropagation runs in the namespace of the mount, where alone it is allowed.
func (t *mountTree) setPropagation(e *mnt.MntEntry, how uint64) error {
	err := Inside(t.pid, unix.CLONE_NEWNS, func() error {
		return unix.MountSetattr(t.fds[e.GetMntId()], "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: how})
	})
	if err != nil {
		return fmt.Errorf("propagation 0x%x of the mount at %s: %w", how, e.GetMountpoint(), err)
	}
	return nil
}

// join makes a private mount a peer and a slave of what its entry names.
func (t *mountTree) join(e *mnt.MntEntry, x *imagespb.Mount, made map[uint32]int) error {
	fd := t.fds[e.GetMntId()]
	enter := func(from int) error {
		if err := unix.MoveMount(from, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|setGroup); err != nil {
			return fmt.Errorf("entering a peer group (MOVE_MOUNT_SET_GROUP, Linux 5.15): %w", err)
		}
		return nil
	}
	shared, master := e.GetSharedId(), e.GetMasterId()
	if from, ok := made[shared]; ok && shared != 0 {
		return enter(from)
	}
	if x.GetSharedOutside() {
		if ok, err := t.enterOutside(x, enter); ok || err != nil {
			made[shared] = fd
			return err
		}
	}
	if master != 0 {
		ok, err := false, error(nil)
		if from, inside := made[master]; inside {
			ok, err = true, enter(from)
		} else if x.GetSlaveOutside() {
			ok, err = t.enterOutside(x, enter)
		}
		if err != nil {
			return err
		}
		if ok {
			if err := t.setPropagation(e, unix.MS_SLAVE); err != nil {
				return err
			}
		}
	}
	if shared == 0 {
		return nil
	}
	made[shared] = fd
	return t.setPropagation(e, unix.MS_SHARED)
}

// enterOutside enters the peer group of the host's mount of the same thing. It reports false if that has none any more, so that
// nothing can arrive from there.
func (t *mountTree) enterOutside(x *imagespb.Mount, enter func(from int) error) (bool, error) {
	if x.GetPath() == "" {
		return false, nil
	}
	var from int
	err := Inside(unix.Getpid(), unix.CLONE_NEWNS, func() (err error) {
		from, err = cloneHost(x.GetPath(), int(x.GetCovered()))
		return err
	})
	if err != nil {
		return false, err
	}
	t.outside = append(t.outside, from)
	err = enter(from)
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return err == nil, err
}
