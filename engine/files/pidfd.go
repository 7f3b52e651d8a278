//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// magicPidfs is the file system of pidfds since Linux 6.9 (include/uapi/linux/magic.h).
const magicPidfs = 0x50494446

// pidfdThread is PIDFD_THREAD, which F_GETFL shows as O_EXCL.
const pidfdThread = unix.O_EXCL

var kindPidfd = &Kind{
	Name: "pidfd", Type: fdinfo.FdTypes_PIDFD, Carried: true,
	Note: "of a process or thread of the tree, also of a process that has ended, whose exit status it no longer tells; of another process only by migrate dump and restore " +
		"on one host, while that process lives",
	match: func(d *description) bool {
		return d.anon("[pidfd]") || d.format() == unix.S_IFREG && d.magic() == magicPidfs
	},
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		if _, err := dm.pidfdTarget(d); err != nil {
			return []problem{{reason: err.Error()}}
		}
		return nil
	},
	dump: dumpPidfd, open: openPidfd,
}

// A pidfdTarget is what a pidfd refers to. It is a blob, as two bytes and eight, little-endian; the id is in the record.
type pidfdTarget struct {
	kind  pidfdKind
	id    int    // of a process or thread, as the tree knows it; of a process outside of it, as this program does
	start uint64 // when a process outside of the tree began (proc_pid_stat(5), starttime)
}

type pidfdKind uint8

const (
	ofTree pidfdKind = iota
	ofEnded
	ofOutside
)

func pidfdBlob(id uint32) string { return fmt.Sprintf("pidfd-%d", id) }

func dumpPidfd(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	t, err := r.pidfdTarget(d)
	if err != nil {
		return nil, err
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	r.blob(pidfdBlob(d.id), binary.LittleEndian.AppendUint64([]byte{byte(t.kind)}, t.start))
	return &fdinfo.FileEntry{Pidfd: &pidfd.PidfdEntry{Id: proto.Uint32(d.id), Ino: proto.Uint32(uint32(d.stat.Ino)), Nspid: proto.Int32(int32(t.id)), Flags: proto.Uint32(uint32(d.flags)), Fown: owner}}, nil
}

// pidfdTarget finds out what a pidfd refers to.
func (d *Dumper) pidfdTarget(desc *description) (pidfdTarget, error) {
	i, err := desc.fdinfo()
	if err != nil {
		return pidfdTarget{}, err
	}
	if i.PIDFD == nil {
		return pidfdTarget{}, errors.New("its fdinfo tells no process")
	}
	pid := i.PIDFD.PID
	if pid < 0 {
		return pidfdTarget{kind: ofEnded, id: -1}, nil
	}
	for _, p := range d.procs {
		if p.Group() == pid {
			return pidfdTarget{id: p.VPID}, nil
		}
		if n := slices.IndexFunc(p.Threads, func(t engine.Thread) bool { return t.TID == pid }); n >= 0 && desc.flags&pidfdThread != 0 {
			return pidfdTarget{id: p.Threads[n].VTID}, nil
		}
	}
	st, err := procfs.Host.Stat(pid)
	if !d.opts.SameHost || err != nil {
		return pidfdTarget{}, fmt.Errorf("it refers to process %d, which is not in the tree", pid)
	}
	return pidfdTarget{kind: ofOutside, id: pid, start: st.StartTime}, nil
}

func openPidfd(ctx context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	blob := r.cp.Blobs[pidfdBlob(e.GetId())]
	if len(blob) != 9 {
		return fmt.Errorf("blob %s has %d bytes", pidfdBlob(e.GetId()), len(blob))
	}
	t := pidfdTarget{pidfdKind(blob[0]), int(e.Pidfd.GetNspid()), binary.LittleEndian.Uint64(blob[1:])}
	var pid int
	var err error
	switch t.kind {
	case ofEnded:
		return r.openEnded(ctx, e)
	case ofTree:
		pid, err = r.task(t.id)
	case ofOutside:
		pid, err = t.id, r.isSame(t)
	default:
		err = fmt.Errorf("a pidfd of kind %d", t.kind)
	}
	if err != nil {
		return err
	}
	return r.pidfdOf(e, pid)
}

func (r *Restorer) pidfdOf(e *fdinfo.FileEntry, pid int) error {
	fd, err := unix.PidfdOpen(pid, int(e.Pidfd.GetFlags())&pidfdThread)
	if err != nil {
		return fmt.Errorf("pidfd of process %d (PIDFD_THREAD needs Linux 6.9): %w", pid, err)
	}
	r.put(e.GetId(), fd)
	return nil
}

// task is the process or thread of the skeleton, in the pid namespace of this program.
func (r *Restorer) task(vtid int) (int, error) {
	if r.cp.Process(uint32(vtid)) != nil {
		return r.pid(vtid)
	}
	for _, p := range r.cp.Processes {
		for _, t := range p.Threads {
			if int(t.TID) == vtid && r.env.TID != nil {
				return r.env.TID(int(p.PID), vtid), nil
			}
		}
	}
	return 0, fmt.Errorf("it refers to process or thread %d, which is not in the tree", vtid)
}

// isSame tells whether a process outside of the tree still is the one of the dump.
func (r *Restorer) isSame(t pidfdTarget) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	st, err := procfs.Host.Stat(t.id)
	if err != nil || st.StartTime != t.start || strings.TrimSpace(string(boot)) != r.cp.Header.GetBootId() {
		return fmt.Errorf("it refers to process %d, which is outside of the tree and has ended since", t.id)
	}
	return nil
}

// openEnded makes all descriptions of pidfds of one ended process, by way of a process that ends here: its parent has
// waited for it, so nothing is left of it but the pidfds.
func (r *Restorer) openEnded(ctx context.Context, e *fdinfo.FileEntry) (err error) {
	if r.env.Ended != nil { // it must be one of the tree's pid namespace, in which nobody else can name it
		return r.env.Ended(ctx, 0, func(pid, _ int) error { return r.pidfdsOf(e, pid) })
	}
	seed, err := ns.StartSeed(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, seed.Kill(context.WithoutCancel(ctx)), seed.Close()) }()
	return r.pidfdsOf(e, seed.PID)
}

// pidfdsOf makes all descriptions of pidfds that are of one process, by way of the process pid.
func (r *Restorer) pidfdsOf(e *fdinfo.FileEntry, pid int) error {
	for _, o := range r.entries() {
		if o.Pidfd.GetIno() != e.Pidfd.GetIno() || o.Pidfd == nil || r.files[o.GetId()] != nil {
			continue
		}
		if err := r.pidfdOf(o, pid); err != nil {
			return err
		}
	}
	return nil
}
