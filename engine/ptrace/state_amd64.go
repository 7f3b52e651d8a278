package ptrace

import (
	"golang.org/x/sys/unix"

	"migrate/arch"
)

func getRegs(tid int) (r arch.Regs, err error) {
	b := make([]byte, arch.AMD64RegsSize)
	n, err := ptraceRegset(unix.PTRACE_GETREGSET, tid, ntPrstatus, b)
	if err != nil {
		return r, err
	}
	return r, r.Unmarshal(b[:n])
}

func setRegs(tid int, r *arch.Regs) error {
	_, err := ptraceRegset(unix.PTRACE_SETREGSET, tid, ntPrstatus, r.Marshal())
	return err
}
