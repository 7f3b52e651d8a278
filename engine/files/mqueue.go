//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/ns"
	"migrate/engine/peek"
)

// magicMqueue is the file system of POSIX message queues (ipc/mqueue.c).
const magicMqueue = 0x19800202

// A queue outlives its processes (mq_overview(7)), so what waits in it stays where it is, and a descriptor is opened again by the
// queue's name. A process that has asked to be told of the next message (mq_notify(3)) asks again; who has, only the kernel's
// memory tells.
var kindMqueue = &Kind{
	Name: "POSIX message queue", Type: fdinfo.FdTypes_REG, Carried: true,
	Note: "of the host's IPC namespace, by its name, only by migrate dump and restore on one host: the queue and its messages stay there meanwhile; with its flags, and with mq_notify where the kernel can be read (BPF with BTF), " +
		"but not by SIGEV_THREAD",
	match: func(d *description) bool { return d.format() == unix.S_IFREG && d.magic() == magicMqueue },
	check: checkMqueue, dump: dumpMqueue,
}

func mqueueName(d *description) string { return strings.TrimPrefix(d.path(), "/") }

func checkMqueue(_ context.Context, dm *Dumper, d *description) []problem {
	if !dm.opts.SameHost {
		return []problem{{reason: "the queue" + named(d) + " stays behind with its messages"}}
	}
	var st unix.Stat_t
	fd, err := openQueueOf(d.holders[0].proc.PID, mqueueName(d), unix.O_RDONLY|unix.O_NONBLOCK)
	if err == nil {
		err = errors.Join(unix.Fstat(fd, &st), unix.Close(fd))
	}
	if err != nil || st.Ino != d.stat.Ino || st.Dev != d.stat.Dev {
		return []problem{{reason: "the queue" + named(d) + " has lost its name (mq_unlink), and would end with the process"}}
	}
	return nil
}

// openQueueOf opens a queue of the IPC namespace of a process.
func openQueueOf(pid int, name string, flags int) (fd int, err error) {
	err = ns.Inside(pid, unix.CLONE_NEWIPC, func() error {
		fd, err = mqOpen(name, flags|unix.O_CLOEXEC)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("POSIX message queue /%s: %w", name, err)
	}
	return fd, nil
}

// A mqueueBlob is what the record of a queue has no field for, little-endian: the sizes of the queue and of a message, then the
// owner of a notification as the tree knows it, how and by which signal he is told, and the value that he is given. No owner: 0.
type mqueueBlob struct {
	MaxMessages, MessageSize   int64
	Owner, Notify, Signal, Pad uint32
	Value                      uint64
}

func mqueueBlobName(id uint32) string { return fmt.Sprintf("mqueue-%d", id) }

func dumpMqueue(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	e, err := r.regEntry(d, mqueueName(d))
	if err != nil {
		return nil, err
	}
	attr, err := mqGetattr(d.fd)
	if err != nil {
		return nil, fmt.Errorf("attributes of the queue: %w", err)
	}
	b := &mqueueBlob{MaxMessages: attr[1], MessageSize: attr[2]}
	if err := r.mqueueNotification(d, b); err != nil {
		return nil, err
	}
	raw, err := binary.Append(nil, binary.LittleEndian, b)
	if err != nil {
		return nil, err
	}
	r.blob(mqueueBlobName(d.id), raw)
	return e, nil
}

// sigevThread is SIGEV_THREAD (sigevent(3type)): the C library is told by a socket of its own.
const sigevThread = 2

// mqueueNotification reads who waits for the next message (struct mqueue_inode_info).
func (r *dump) mqueueNotification(d *description, b *mqueueBlob) error {
	k, err := r.kernelMemory()
	if err != nil {
		return nil //nolint:nilerr // nobody can tell: see Note
	}
	file, err := k.File(d.fd)
	if err != nil {
		return err
	}
	inode, err := file.Uint64("f_inode")
	if err != nil {
		return err
	}
	offset, err := k.OffsetIn("mqueue_inode_info", "vfs_inode")
	if err != nil {
		return err
	}
	q, err := k.Load("mqueue_inode_info", inode-offset)
	if err != nil {
		return err
	}
	owner, err := q.Uint64("notify_owner")
	if err != nil || owner == 0 {
		return err
	}
	event, err := q.Bytes("notify", 16) // struct sigevent: value, signal, how
	if err != nil {
		return err
	}
	b.Value, b.Signal, b.Notify = binary.LittleEndian.Uint64(event), binary.LittleEndian.Uint32(event[8:]), binary.LittleEndian.Uint32(event[12:])
	if b.Notify == sigevThread {
		return fmt.Errorf("it tells of the next message by SIGEV_THREAD (mq_notify): %w", ErrNotCarried)
	}
	id, err := pidNumber(k, owner)
	if err != nil {
		return err
	}
	for _, p := range r.procs { // another one is outside of the tree, and goes on waiting
		if p.VPID == int(id) && r.firstOfQueue(d, p) {
			b.Owner = id
		}
	}
	return nil
}

// firstOfQueue tells whether a description is the first one of its queue that a process has.
func (r *dump) firstOfQueue(d *description, p *engine.Process) bool {
	for _, o := range r.snap.list {
		held := slices.ContainsFunc(o.holders, func(h holder) bool { return h.proc == p })
		if held && o.stat.Ino == d.stat.Ino && o.stat.Dev == d.stat.Dev {
			return o == d
		}
	}
	return false
}

// pidNumber is a struct pid's number in its own namespace.
func pidNumber(k *peek.Kernel, pid uint64) (uint32, error) {
	p, err := k.Load("pid", pid)
	if err != nil {
		return 0, err
	}
	level, err := p.Uint32("level")
	if err != nil || level > 32 {
		return 0, fmt.Errorf("a process at level %d of pid namespaces: %w", level, err)
	}
	off, err := p.Offset("numbers")
	if err != nil {
		return 0, err
	}
	const number = 16 // struct upid: the number, the namespace
	var nr [4]byte
	if err := k.Read(pid+off+uint64(level)*number, nr[:]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(nr[:]), nil
}

func (r *Restorer) mqueueBlob(id uint32) (b mqueueBlob, ok bool, err error) {
	raw, ok := r.cp.Blobs[mqueueBlobName(id)]
	if !ok {
		return b, false, nil
	}
	if len(raw) != binary.Size(b) {
		return b, false, fmt.Errorf("blob %s: %d bytes", mqueueBlobName(id), len(raw))
	}
	_, err = binary.Decode(raw, binary.LittleEndian, &b)
	return b, true, err
}

// openMqueue opens the queue again; it must be as it was.
func (r *Restorer) openMqueue(e *fdinfo.FileEntry, b mqueueBlob) error {
	pid, err := r.pid(r.homes[e.GetId()].vpid)
	if err != nil {
		return err
	}
	fd, err := openQueueOf(pid, e.Reg.GetName(), int(e.Reg.GetFlags())&(unix.O_ACCMODE|unix.O_NONBLOCK))
	if err != nil {
		return err
	}
	r.put(e.GetId(), fd)
	attr, err := mqGetattr(fd)
	if err == nil && (attr[1] != b.MaxMessages || attr[2] != b.MessageSize) {
		err = fmt.Errorf("it holds %d messages of %d bytes, and held %d of %d", attr[1], attr[2], b.MaxMessages, b.MessageSize)
	}
	if err != nil {
		return fmt.Errorf("POSIX message queue /%s: %w", e.Reg.GetName(), err)
	}
	return nil
}

// mqueue asks again to be told of the next message.
func (in *inside) mqueue(e *fdinfo.FileEntry) error {
	b, ok, err := in.r.mqueueBlob(e.GetId())
	if err != nil || !ok || b.Owner == 0 || int(b.Owner) != in.p.VPID {
		return err
	}
	for fd, id := range in.table {
		if id != e.GetId() {
			continue
		}
		event := binary.LittleEndian.AppendUint64(nil, b.Value)
		event = binary.LittleEndian.AppendUint32(event, b.Signal)
		event = binary.LittleEndian.AppendUint32(event, b.Notify)
		in.call(fmt.Sprintf("notification of the queue of descriptor %d (does somebody else wait for it?)", fd), unix.SYS_MQ_NOTIFY, fd, in.batch.Bytes(append(event, make([]byte, 48)...)))
		return nil
	}
	return fmt.Errorf("a notification for process %d, which does not have the queue", b.Owner)
}
