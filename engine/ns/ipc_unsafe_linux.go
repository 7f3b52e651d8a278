package ns

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and flags of msgctl(2), msgrcv(2), semctl(2) and shmctl(2), which x/sys lacks.
const (
	ipcSet  = 1
	ipcStat = 2
	getAll  = 13
	setAll  = 17
	msgCopy = 0o40000 // the message at an index, which stays in the queue; Linux 3.8
)

// Offsets into struct msqid64_ds and ipc64_perm (include/uapi/asm-generic/msgbuf.h, ipcbuf.h), the same on all supported processors.
const (
	permUID     = 4
	permGID     = 8
	permMode    = 20
	msgQBytes   = 88
	sizeIPCData = 128 // at least as large as each of the structures
)

func ipcctl(trap uintptr, id int, arg2, cmd uintptr, data []byte) error {
	var p unsafe.Pointer
	if len(data) > 0 {
		p = unsafe.Pointer(&data[0])
	}
	var e unix.Errno
	if trap == unix.SYS_SEMCTL {
		_, _, e = unix.Syscall6(trap, uintptr(id), arg2, cmd, uintptr(p), 0, 0)
	} else {
		_, _, e = unix.Syscall(trap, uintptr(id), cmd, uintptr(p))
	}
	if e != 0 {
		return e
	}
	return nil
}

func msgget(key int32, flags int) (int, error) {
	id, _, e := unix.Syscall(unix.SYS_MSGGET, uintptr(key), uintptr(flags), 0)
	if e != 0 {
		return -1, e
	}
	return int(id), nil
}

func semget(key int32, n, flags int) (int, error) {
	id, _, e := unix.Syscall(unix.SYS_SEMGET, uintptr(key), uintptr(n), uintptr(flags))
	if e != 0 {
		return -1, e
	}
	return int(id), nil
}

// msgpeek copies the message at an index of a queue into buf, after its type.
func msgpeek(id int, buf []byte, index int) (kind int64, data []byte, err error) {
	n, _, e := unix.Syscall6(unix.SYS_MSGRCV, uintptr(id), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)-8), uintptr(index), msgCopy|ipcNoWait, 0)
	if e != 0 {
		return 0, nil, e
	}
	return int64(binary.NativeEndian.Uint64(buf)), append([]byte(nil), buf[8:8+n]...), nil
}

const ipcNoWait = 0o4000

func msgsnd(id int, kind int64, data []byte) error {
	buf := append(binary.NativeEndian.AppendUint64(nil, uint64(kind)), data...)
	_, _, e := unix.Syscall6(unix.SYS_MSGSND, uintptr(id), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(data)), ipcNoWait, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// setThreadIDs sets the effective ids of the calling thread alone.
func setThreadIDs(uid, gid uint32) error {
	const keep = ^uintptr(0)
	if _, _, e := unix.Syscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep); e != 0 {
		return e
	}
	if _, _, e := unix.Syscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); e != 0 {
		return e
	}
	return nil
}
