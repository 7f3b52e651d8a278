//go:build linux

package ns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	ipc_desc "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-desc"
	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	ipc_sem "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-sem"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
)

// listIPC reads a table of /proc/sysvipc: its lines, as numbers by the names of the columns.
func listIPC(name string) ([]map[string]int64, error) {
	b, err := readWhole("/proc/sysvipc/" + name)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	head := strings.Fields(lines[0])
	var out []map[string]int64
	for _, l := range lines[1:] {
		f := strings.Fields(l)
		if len(f) != len(head) {
			return nil, fmt.Errorf("/proc/sysvipc/%s: the line %q", name, l)
		}
		row := map[string]int64{}
		for i, h := range head {
			base := 10
			if h == "perms" {
				base = 8
			}
			if row[h], err = strconv.ParseInt(f[i], base, 64); err != nil {
				return nil, fmt.Errorf("/proc/sysvipc/%s: %s: %w", name, h, err)
			}
		}
		out = append(out, row)
	}
	return out, nil
}

// desc is what all System V objects have. Ids of users are those outside of the tree's user namespace.
func desc(row map[string]int64, id string) *ipc_desc.IpcDescEntry {
	u := func(name string) *uint32 { return proto.Uint32(uint32(row[name])) }
	return &ipc_desc.IpcDescEntry{Key: u("key"), Uid: u("uid"), Gid: u("gid"), Cuid: u("cuid"), Cgid: u("cgid"),
		Mode: proto.Uint32(uint32(row["perms"]) & 0o777), Id: u(id)}
}

func (d *dumper) ipcObjects() error {
	sets, err := listIPC("sem")
	if err != nil {
		return err
	}
	for _, row := range sets {
		s := &ipc_sem.IpcSemEntry{Desc: desc(row, "semid"), Nsems: proto.Uint32(uint32(row["nsems"]))}
		buf := make([]byte, 2*row["nsems"])
		if err := ipcctl(unix.SYS_SEMCTL, int(row["semid"]), 0, getAll, buf); err != nil {
			return fmt.Errorf("values of semaphore set %d: %w", row["semid"], err)
		}
		v := &imagespb.SemaphoreSet{Id: s.GetDesc().GetId()}
		for i := 0; i < len(buf); i += 2 {
			v.Values = append(v.Values, uint32(binary.NativeEndian.Uint16(buf[i:])))
		}
		d.out.Sems, d.header.Semaphores = append(d.out.Sems, s), append(d.header.Semaphores, v)
	}
	queues, err := listIPC("msg")
	if err != nil {
		return err
	}
	for _, row := range queues {
		if err := d.messageQueue(row); err != nil {
			return fmt.Errorf("message queue %d: %w", row["msqid"], err)
		}
	}
	return nil // shared memory is among the objects of package mem
}

// messageQueue reads a queue and what waits in it.
func (d *dumper) messageQueue(row map[string]int64) error {
	id := int(row["msqid"])
	data := make([]byte, sizeIPCData)
	if err := ipcctl(unix.SYS_MSGCTL, id, 0, ipcStat, data); err != nil {
		return err
	}
	q := &ipc_msg.IpcMsgEntry{Desc: desc(row, "msqid"), Qbytes: proto.Uint32(uint32(binary.NativeEndian.Uint64(data[msgQBytes:]))), Qnum: proto.Uint32(uint32(row["qnum"]))}
	v := &imagespb.MessageQueue{Id: uint32(id)}
	d.out.Queues, d.header.Queues = append(d.out.Queues, q), append(d.header.Queues, v)
	if !d.content {
		return nil
	}
	buf := make([]byte, 8+row["cbytes"])
	for i := range int(row["qnum"]) {
		kind, text, err := msgpeek(id, buf, i)
		if err != nil {
			return fmt.Errorf("reading message %d of %d (MSG_COPY): %w", i, row["qnum"], err)
		}
		v.Messages = append(v.Messages, &imagespb.Message{Type: kind, Data: text})
	}
	return nil
}

// makeIPC makes an object with the id that it had. Its creator is who the calling thread is meanwhile.
func makeIPC(kind string, e *ipc_desc.IpcDescEntry, make func(key int32, flags int) (int, error)) error {
	next := sysctlDir + "kernel/" + kind + "_next_id"
	if err := writeFile(next, strconv.FormatUint(uint64(e.GetId()), 10)); err != nil {
		return err
	}
	const create, exclusive = 0o1000, 0o2000
	var id int
	err := asUser(e.GetCuid(), e.GetCgid(), func() (err error) {
		id, err = make(int32(e.GetKey()), create|exclusive|int(e.GetMode()&0o777))
		return err
	})
	if err != nil {
		return err
	}
	if id != int(e.GetId()) {
		return fmt.Errorf("it got the id %d", id)
	}
	return nil
}

// asUser runs fn with other effective ids of the calling thread alone, which must be one that is thrown away afterwards.
func asUser(uid, gid uint32, fn func() error) error {
	ownUID, ownGID := uint32(unix.Geteuid()), uint32(unix.Getegid())
	if uid == ownUID && gid == ownGID {
		return fn()
	}
	if err := setThreadIDs(uid, gid); err != nil {
		return fmt.Errorf("becoming user %d of group %d: %w", uid, gid, err)
	}
	err := fn()
	if back := errors.Join(setThreadIDs(ownUID, ^uint32(0)), setThreadIDs(ownUID, ownGID)); back != nil { // the group takes a privilege of the user
		err = errors.Join(err, fmt.Errorf("becoming user %d of group %d again: %w", ownUID, ownGID, back))
	}
	return err
}

// permissions is the beginning of what IPC_SET takes.
func permissions(e *ipc_desc.IpcDescEntry) []byte {
	b := make([]byte, sizeIPCData)
	binary.NativeEndian.PutUint32(b[permUID:], e.GetUid())
	binary.NativeEndian.PutUint32(b[permGID:], e.GetGid())
	binary.NativeEndian.PutUint32(b[permMode:], e.GetMode()&0o777)
	return b
}

// restoreIPCObjects runs in the IPC namespace of the tree, after asOwner.
func (r *restorer) restoreIPCObjects() error {
	for i, s := range r.in.Sems {
		if err := restoreSemaphores(s, r.header.GetSemaphores()[i]); err != nil {
			return fmt.Errorf("semaphore set %d: %w", s.GetDesc().GetId(), err)
		}
	}
	for i, q := range r.in.Queues {
		if err := restoreQueue(q, r.header.GetQueues()[i]); err != nil {
			return fmt.Errorf("message queue %d: %w", q.GetDesc().GetId(), err)
		}
	}
	return nil
}

func restoreSemaphores(s *ipc_sem.IpcSemEntry, v *imagespb.SemaphoreSet) error {
	err := makeIPC("sem", s.GetDesc(), func(key int32, flags int) (int, error) { return semget(key, int(s.GetNsems()), flags) })
	if err != nil {
		return err
	}
	var values []byte
	for _, n := range v.GetValues() {
		values = binary.NativeEndian.AppendUint16(values, uint16(n))
	}
	id := int(s.GetDesc().GetId())
	return errors.Join(ipcctl(unix.SYS_SEMCTL, id, 0, setAll, values), ipcctl(unix.SYS_SEMCTL, id, 0, ipcSet, permissions(s.GetDesc())))
}

func restoreQueue(q *ipc_msg.IpcMsgEntry, v *imagespb.MessageQueue) error {
	if err := makeIPC("msg", q.GetDesc(), msgget); err != nil {
		return err
	}
	id := int(q.GetDesc().GetId())
	set := permissions(q.GetDesc())
	binary.NativeEndian.PutUint64(set[msgQBytes:], uint64(q.GetQbytes()))
	err := withRoom(uint64(q.GetQbytes()), func() error { return ipcctl(unix.SYS_MSGCTL, id, 0, ipcSet, set) })
	if err != nil {
		return fmt.Errorf("its size of %d bytes and its owner: %w", q.GetQbytes(), err)
	}
	for i, m := range v.GetMessages() {
		if err := msgsnd(id, m.GetType(), m.GetData()); err != nil {
			return fmt.Errorf("message %d of %d bytes: %w", i, len(m.GetData()), err)
		}
	}
	return nil
}

// withRoom runs fn while queues may be as large as n bytes: beyond the setting it takes CAP_SYS_RESOURCE (msgctl(2)).
func withRoom(n uint64, fn func() error) error {
	const name = sysctlDir + "kernel/msgmnb"
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before := strings.TrimSpace(string(text))
	if most, err := strconv.ParseUint(before, 10, 64); err != nil || most >= n {
		return errors.Join(err, fn())
	}
	if err := writeFile(name, strconv.FormatUint(n, 10)); err != nil {
		return err
	}
	return errors.Join(fn(), writeFile(name, before))
}
