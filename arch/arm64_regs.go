package arch

import (
	"encoding/binary"
	"fmt"
)

// ARM64Regs are the general registers as NT_PRSTATUS gives them: struct user_pt_regs of
// arch/arm64/include/uapi/asm/ptrace.h, and beside it the number of the system call (NT_ARM_SYSTEM_CALL), which is
// a regset of its own there.
type ARM64Regs struct {
	X      [31]uint64
	Sp     uint64
	Pc     uint64
	Pstate uint64
	Nr     int64  // system call in progress, or -1; not part of the regset
	OrigX0 uint64 // its first argument, which the result has overwritten; taken from X[0] at the entry, else unknown
}

// ARM64RegsSize is the size of the regset in bytes.
const ARM64RegsSize = 34 * 8

const (
	arm64SyscallLen     = 4 // d4000001
	arm64RestartSyscall = 128
)

// arm64Spurious is amd64Spurious in the numbers of include/uapi/asm-generic/unistd.h.
var arm64Spurious = map[int64]bool{
	63: true, 65: true, // read, readv
	202: true, 242: true, // accept, accept4
	206: true, 211: true, 269: true, // sendto, sendmsg, sendmmsg
	207: true, 212: true, 243: true, // recvfrom, recvmsg, recvmmsg
	193: true, 192: true, // semop, semtimedop
	137: true,            // rt_sigtimedwait
	4:   true, 292: true, // io_getevents, io_pgetevents
	22: true, 441: true, // epoll_pwait, epoll_pwait2
	426: true, // io_uring_enter
}

// Marshal returns the regset, ARM64RegsSize bytes, little-endian.
func (r ARM64Regs) Marshal() []byte {
	b := make([]byte, 0, ARM64RegsSize)
	for _, x := range r.X {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	b = binary.LittleEndian.AppendUint64(b, r.Sp)
	b = binary.LittleEndian.AppendUint64(b, r.Pc)
	return binary.LittleEndian.AppendUint64(b, r.Pstate)
}

// Unmarshal sets the regset's part of r from exactly ARM64RegsSize bytes, and no system call in progress.
func (r *ARM64Regs) Unmarshal(b []byte) error {
	if len(b) != ARM64RegsSize {
		return fmt.Errorf("arch: general registers of %d bytes, want %d: %w", len(b), ARM64RegsSize, ErrUnsupported)
	}
	for i := range r.X {
		r.X[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	r.Sp = binary.LittleEndian.Uint64(b[31*8:])
	r.Pc = binary.LittleEndian.Uint64(b[32*8:])
	r.Pstate = binary.LittleEndian.Uint64(b[33*8:])
	r.Nr, r.OrigX0 = -1, r.X[0]
	return nil
}

// IP returns the instruction pointer.
func (r ARM64Regs) IP() uint64 { return r.Pc }

// SetIP sets the instruction pointer.
func (r *ARM64Regs) SetIP(ip uint64) { r.Pc = ip }

// SP returns the stack pointer.
func (r ARM64Regs) SP() uint64 { return r.Sp }

// SetSP sets the stack pointer.
func (r *ARM64Regs) SetSP(sp uint64) { r.Sp = sp }

// SyscallNr returns the number of the system call in which the thread was stopped, or -1.
func (r ARM64Regs) SyscallNr() int64 { return r.Nr }

// ClearSyscall makes the kernel take the registers as they are, without its own rules for interrupted calls.
func (r *ARM64Regs) ClearSyscall() { r.Nr = -1 }

// SyscallArgs returns the arguments of the system call in which the thread was stopped.
func (r ARM64Regs) SyscallArgs() [6]uint64 {
	return [6]uint64{r.OrigX0, r.X[1], r.X[2], r.X[3], r.X[4], r.X[5]}
}

// Return returns the result of a system call: -4095..-1 are errors.
func (r ARM64Regs) Return() int64 { return int64(r.X[0]) }

// SetReturn sets what Return returns.
func (r *ARM64Regs) SetReturn(v int64) { r.X[0] = uint64(v) }

// Is64Bit reports whether the thread runs 64-bit code (PSR_MODE32_BIT of the saved state is clear).
func (r ARM64Regs) Is64Bit() bool { return r.Pstate&0x10 == 0 }

// WithCall returns registers that make system call nr with the instruction at ip.
func (r ARM64Regs) WithCall(ip uint64, nr int, args [6]uint64) ARM64Regs {
	r.Pc, r.Nr, r.X[8] = ip, -1, uint64(nr)
	copy(r.X[:6], args[:])
	return r
}

// WithBatch returns registers that run n records at the address records with the code of Trap at ip.
func (r ARM64Regs) WithBatch(ip, records uint64, n int) ARM64Regs {
	r.Pc, r.Nr, r.X[19], r.X[21] = ip, -1, records, uint64(n)
	return r
}

// Restart classifies the interrupted system call. RestartSpurious holds only if no signal was there to be handled.
func (r ARM64Regs) Restart() Restart {
	if r.Nr < 0 {
		return RestartNone
	}
	return restartOf(int64(r.X[0]), arm64Spurious[r.Nr])
}

// Restarted returns the registers with which a program goes on by itself when no handler is to run.
func (r ARM64Regs) Restarted() ARM64Regs {
	block := r.Restart() == RestartBlock
	r = r.Again()
	if block {
		r.X[8] = arm64RestartSyscall
	}
	return r
}

// Unrestarted undoes Restarted for a call of kind RestartSpurious.
func (r ARM64Regs) Unrestarted() ARM64Regs {
	r.Nr = int64(r.X[8])
	r.Pc += arm64SyscallLen
	r.OrigX0 = r.X[0]
	r.SetReturn(eintr)
	return r
}

// Interrupted returns the registers with which the program goes on after a handler ended the interrupted call.
func (r ARM64Regs) Interrupted() ARM64Regs {
	if r.Restart() != RestartNone {
		r.SetReturn(eintr)
	}
	r.ClearSyscall()
	return r
}

// Again returns the registers that make the interrupted call once more from its beginning.
func (r ARM64Regs) Again() ARM64Regs {
	if r.Restart() != RestartNone {
		r.Pc -= arm64SyscallLen
		r.X[8] = uint64(r.Nr)
		r.X[0] = r.OrigX0
	}
	r.ClearSyscall()
	return r
}
