package ptrace

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"migrate/arch"
)

// ntARMSystemCall is the regset that holds the number of the system call in progress (NT_ARM_SYSTEM_CALL).
const ntARMSystemCall = 0x404

func getRegs(tid int) (r arch.Regs, err error) {
	b := make([]byte, arch.ARM64RegsSize)
	n, err := ptraceRegset(unix.PTRACE_GETREGSET, tid, ntPrstatus, b)
	if err != nil {
		return r, err
	}
	if err := r.Unmarshal(b[:n]); err != nil {
		return r, err
	}
	_, err = ptraceRegset(unix.PTRACE_GETREGSET, tid, ntARMSystemCall, b[:4])
	r.Nr = int64(int32(binary.LittleEndian.Uint32(b)))
	return r, err
}

func setRegs(tid int, r *arch.Regs) error {
	if _, err := ptraceRegset(unix.PTRACE_SETREGSET, tid, ntPrstatus, r.Marshal()); err != nil {
		return err
	}
	_, err := ptraceRegset(unix.PTRACE_SETREGSET, tid, ntARMSystemCall, binary.LittleEndian.AppendUint32(nil, uint32(r.Nr)))
	return err
}
