package mem

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// Of include/uapi/linux/shm.h and include/linux/shm.h.
const (
	shmDest    = 0o1000 // in the mode that IPC_STAT tells: IPC_RMID was called
	shmLocked  = 0o2000 // SHM_LOCK
	shmHugetlb = 0o4000
	shmRDONLY  = 0o10000
	shmRemap   = 0o40000
	shmExec    = 0o100000
	shmLock    = 11 // SHM_LOCK, a command of shmctl(2)
)

// describeSegment fills in what shmctl(2) tells of a segment in the IPC namespace of a process.
func describeSegment(pid int, r *imagespb.Object, id uint32) error {
	return ns.Inside(pid, unix.CLONE_NEWIPC, func() error {
		var d unix.SysvShmDesc
		if _, err := unix.SysvShmCtl(int(id), unix.IPC_STAT, &d); err != nil {
			return fmt.Errorf("segment %d: IPC_STAT: %w", id, err)
		}
		r.Size = d.Segsz
		r.Segment = &imagespb.Segment{
			Id: id, Key: d.Perm.Key, Mode: uint32(d.Perm.Mode) & 0o777, Uid: d.Perm.Uid, Gid: d.Perm.Gid,
			CreatorUid: d.Perm.Cuid, CreatorGid: d.Perm.Cgid,
			Removed: d.Perm.Mode&shmDest != 0, Locked: d.Perm.Mode&shmLocked != 0,
		}
		return nil
	})
}

// AddSegments names all segments of the tree's IPC namespace, if it is not this program's: nobody needs to have them attached.
func (o *Objects) AddSegments() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	own, err := os.Readlink("/proc/self/ns/ipc")
	its, err2 := os.Readlink(procfs.Host.Path(o.pid, "ns", "ipc"))
	if err != nil || err2 != nil || own == its {
		return err // a tree that has ended is found out elsewhere
	}
	return ns.Inside(o.pid, unix.CLONE_NEWIPC, func() error {
		text, err := os.ReadFile("/proc/sysvipc/shm") // key, id, permissions ... (proc_sysvipc(5))
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(text), "\n")[1:] {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			id, err := strconv.ParseInt(f[1], 10, 32)
			if err != nil {
				return fmt.Errorf("/proc/sysvipc/shm: %q: %w", line, err)
			}
			if err := o.addSegment(int(id)); err != nil {
				return fmt.Errorf("segment %d: %w", id, err)
			}
		}
		return nil
	})
}

// addSegment finds or opens a segment of the IPC namespace in which the thread is. The lock must be held.
func (o *Objects) addSegment(id int) error {
	for _, x := range o.list {
		if x.record.Kind == imagespb.Object_SYSV && int(x.record.GetSegment().GetId()) == id {
			x.used = true
			return nil
		}
	}
	return attached(id, func(link string) error {
		x, err := o.open(link, false)
		if err == nil {
			x.used = true
		}
		return err
	})
}

// attached attaches a segment of the IPC namespace in which the thread is, and calls fn with a link to its memory.
func attached(id int, fn func(link string) error) (err error) {
	m, err := unix.SysvShmAttach(id, 0, shmRDONLY)
	if err != nil {
		return fmt.Errorf("shmat: %w", err)
	}
	defer func() { err = errors.Join(err, unix.SysvShmDetach(m)) }()
	maps, err := procfs.Host.Maps(os.Getpid())
	if err != nil {
		return err
	}
	at := addressOf(m)
	for _, p := range maps {
		if p.Start == at {
			return fn(procfs.Host.Path(os.Getpid(), "map_files", fmt.Sprintf("%x-%x", p.Start, p.End)))
		}
	}
	return fmt.Errorf("segment %d, attached at 0x%x, is not among the mappings of this program", id, at)
}

// newSegment makes a segment again, with its id, in the IPC namespace of a process; or finds it where it has stayed: a tree that
// comes back to the namespace where it was.
func newSegment(pid int, r *imagespb.Object) (*Object, error) {
	s, o := r.GetSegment(), &Object{record: r, ipc: pid}
	err := ns.Inside(pid, unix.CLONE_NEWIPC, func() error {
		var d unix.SysvShmDesc
		_, err := unix.SysvShmCtl(int(s.GetId()), unix.IPC_STAT, &d)
		switch {
		case err == nil && d.Perm.Key == s.GetKey() && d.Segsz == r.GetSize():
		case err == nil:
			return fmt.Errorf("id %d is that of another segment here (key 0x%x, %d bytes)", s.GetId(), uint32(d.Perm.Key), d.Segsz)
		default:
			if err := createSegment(r); err != nil {
				return err
			}
			o.made = true
		}
		err = attached(int(s.GetId()), func(link string) error {
			fd, err := unix.Open(link, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			o.file = os.NewFile(uintptr(fd), fmt.Sprintf("segment %d", s.GetId()))
			return nil
		})
		if err != nil && o.made {
			_, gone := unix.SysvShmCtl(int(s.GetId()), unix.IPC_RMID, nil)
			err = errors.Join(err, gone)
		}
		if o.foreign = d.Nattch > 0; err == nil && !o.made && !o.foreign { // what it holds is what the tree has left behind
			const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
			err = unix.Fallocate(int(o.file.Fd()), mode, 0, int64(pageUp(r.GetSize())))
		}
		return err
	})
	if err != nil {
		if o.file != nil {
			err = errors.Join(err, o.file.Close())
		}
		return nil, fmt.Errorf("shared memory %d of System V (key 0x%x): %w", s.GetId(), uint32(s.GetKey()), err)
	}
	o.addWriter()
	o.writer.foreign = o.foreign
	return o, nil
}

// createSegment makes a segment in the IPC namespace in which the thread is.
func createSegment(r *imagespb.Object) error {
	s := r.GetSegment()
	if err := os.WriteFile("/proc/sys/kernel/shm_next_id", []byte(strconv.Itoa(int(s.GetId()))), 0); err != nil {
		return fmt.Errorf("choosing the id (CONFIG_CHECKPOINT_RESTORE): %w", err)
	}
	flags := int(s.GetMode()&0o777) | unix.IPC_CREAT | unix.IPC_EXCL
	if h := r.GetHugePage(); h != 0 {
		flags |= shmHugetlb | (bits.Len64(h)-1)<<mapHugeShift
	}
	id, err := as(s.GetCreatorUid(), s.GetCreatorGid(), func() (int, error) {
		return unix.SysvShmGet(int(s.GetKey()), int(r.GetSize()), flags)
	})
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("another segment has the key here: %w", err)
	}
	if err != nil {
		return fmt.Errorf("shmget of %d bytes: %w", r.GetSize(), err)
	}
	d := unix.SysvShmDesc{Perm: unix.SysvIpcPerm{Uid: s.GetUid(), Gid: s.GetGid(), Mode: s.GetMode() & 0o777}}
	if _, err = unix.SysvShmCtl(id, unix.IPC_SET, &d); err == nil && id != int(s.GetId()) {
		err = fmt.Errorf("it got the id %d: the id is taken", id)
	}
	if err != nil {
		_, gone := unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		return errors.Join(err, gone)
	}
	return nil
}

// as runs fn with effective ids of the thread alone; the thread must be one that is never used again.
func as(uid, gid uint32, fn func() (int, error)) (int, error) {
	set := func(call, id uintptr) error {
		if _, _, errno := unix.RawSyscall(call, ^uintptr(0), id, ^uintptr(0)); errno != 0 {
			return fmt.Errorf("becoming user %d, group %d: %w", uid, gid, errno)
		}
		return nil
	}
	ownUID, ownGID := os.Geteuid(), os.Getegid()
	if uid == uint32(ownUID) && gid == uint32(ownGID) {
		return fn()
	}
	if err := set(unix.SYS_SETRESGID, uintptr(gid)); err != nil {
		return -1, err
	}
	if err := set(unix.SYS_SETRESUID, uintptr(uid)); err != nil {
		return -1, err
	}
	id, err := fn()
	err = errors.Join(err, set(unix.SYS_SETRESUID, uintptr(ownUID)), set(unix.SYS_SETRESGID, uintptr(ownGID)))
	return id, err
}

// settleSegment gives a segment that was made again what would have been in the way before it was attached everywhere.
func (o *Object) settleSegment() error {
	s := o.record.GetSegment()
	if !s.GetRemoved() && (!s.GetLocked() || !o.made) {
		return nil
	}
	return ns.Inside(o.ipc, unix.CLONE_NEWIPC, func() error {
		if s.GetLocked() && o.made {
			if _, err := unix.SysvShmCtl(int(s.GetId()), shmLock, nil); err != nil {
				return fmt.Errorf("SHM_LOCK: %w", err)
			}
		}
		if s.GetRemoved() {
			if _, err := unix.SysvShmCtl(int(s.GetId()), unix.IPC_RMID, nil); err != nil {
				return fmt.Errorf("IPC_RMID: %w", err)
			}
		}
		return nil
	})
}

// Abandon removes what the object has made in the host: the restore has failed.
func (o *Object) Abandon() error {
	if !o.made || o.record.GetSegment().GetRemoved() && o.settled {
		return o.Close()
	}
	err := ns.Inside(o.ipc, unix.CLONE_NEWIPC, func() error {
		_, err := unix.SysvShmCtl(int(o.record.GetSegment().GetId()), unix.IPC_RMID, nil)
		return err
	})
	return errors.Join(err, o.Close())
}
