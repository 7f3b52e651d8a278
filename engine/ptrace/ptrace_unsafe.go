package ptrace

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ptrace makes a request whose data is a number.
func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// ptraceResult makes a request whose data is a number and returns its result.
func ptraceResult(request, tid int, addr, data uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ptraceBuffer makes a request whose data is a buffer, which must not be empty, and returns its result.
func ptraceBuffer(request, tid int, addr uintptr, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, uintptr(unsafe.Pointer(&b[0])), 0, 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ptraceRegset reads or writes a regset and returns how many bytes it has.
func ptraceRegset(request, tid int, kind uintptr, b []byte) (int, error) {
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), kind, uintptr(unsafe.Pointer(&iov)), 0, 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, errno
	}
	return int(iov.Len), nil
}

// ptracePeekSigInfo reads siginfos into b, from the queue and the place that args name, and returns how many.
func ptracePeekSigInfo(tid int, args *peekArgs, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_PEEKSIGINFO, uintptr(tid), uintptr(unsafe.Pointer(args)),
		uintptr(unsafe.Pointer(&b[0])), 0, 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// peekArgs is struct ptrace_peeksiginfo_args of include/uapi/linux/ptrace.h.
type peekArgs struct {
	off   uint64
	flags uint32
	nr    int32
}

// childInfo is what waitid(2) tells: pid is 0 if there was nothing.
type childInfo struct{ code, pid, status int }

// Codes of SIGCHLD's siginfo_t.
const (
	cldExited = 1
	cldDumped = 3
)

// isEnd reports whether the child ended, by itself or by a signal.
func (c childInfo) isEnd() bool { return c.pid != 0 && c.code >= cldExited && c.code <= cldDumped }

// waitStatus composes the status word of wait4(2) for a child that ended.
func (c childInfo) waitStatus() unix.WaitStatus {
	switch c.code {
	case cldExited:
		return unix.WaitStatus(c.status << 8)
	case cldDumped:
		return unix.WaitStatus(c.status | 0x80)
	}
	return unix.WaitStatus(c.status)
}

// waitid asks for a state change of one child or tracee.
func waitid(tid, options int) (childInfo, error) {
	// siginfo_t of SIGCHLD: signo, errno, code, padding, pid, uid, status (include/uapi/asm-generic/siginfo.h).
	var info [32]int32
	_, _, errno := unix.RawSyscall6(unix.SYS_WAITID, unix.P_PID, uintptr(tid), uintptr(unsafe.Pointer(&info)), uintptr(options), 0, 0)
	if errno != 0 {
		return childInfo{}, errno
	}
	return childInfo{code: int(info[2]), pid: int(info[4]), status: int(info[6])}, nil
}

func schedYield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// processVM moves bytes between b and the memory of pid, up to the first page that cannot be reached.
func processVM(pid int, addr Addr, b []byte, write bool) (int, error) {
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	there := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
	if write {
		return unix.ProcessVMWritev(pid, local, there, 0)
	}
	return unix.ProcessVMReadv(pid, local, there, 0)
}
