package arch

import (
	"encoding/binary"
	"fmt"
)

// AMD64Regs are the general registers as NT_PRSTATUS gives them: struct user_regs_struct of
// arch/x86/include/asm/user_64.h, in its order.
type AMD64Regs struct {
	R15, R14, R13, R12, Rbp, Rbx, R11, R10, R9, R8 uint64
	Rax, Rcx, Rdx, Rsi, Rdi                        uint64
	OrigRax                                        uint64 // the number of the system call in progress, or -1
	Rip, Cs, Eflags, Rsp, Ss                       uint64
	FsBase, GsBase, Ds, Es, Fs, Gs                 uint64
}

// AMD64RegsSize is the size of the regset in bytes.
const AMD64RegsSize = 27 * 8

const (
	amd64SyscallLen     = 2 // 0f 05
	amd64RestartSyscall = 219
	// amd64Cs64 is the code segment selector of a 64-bit program (__USER_CS); a 32-bit one has 0x23.
	amd64Cs64 = 0x33
)

// amd64Spurious lists the system calls that answer EINTR to a mere stop, and that can be made again because EINTR
// means that they did nothing. connect(2) and close(2) are not among them: their EINTR means work half done.
var amd64Spurious = map[uint64]bool{
	0: true, 19: true, // read, readv: of a socket with SO_RCVTIMEO
	43: true, 288: true, // accept, accept4
	44: true, 46: true, 307: true, // sendto, sendmsg, sendmmsg: with SO_SNDTIMEO
	45: true, 47: true, 299: true, // recvfrom, recvmsg, recvmmsg
	65: true, 220: true, // semop, semtimedop
	128: true,            // rt_sigtimedwait
	208: true, 333: true, // io_getevents, io_pgetevents
	232: true, 281: true, 441: true, // epoll_wait, epoll_pwait, epoll_pwait2
	426: true, // io_uring_enter
}

func (r *AMD64Regs) words() [27]*uint64 {
	return [27]*uint64{&r.R15, &r.R14, &r.R13, &r.R12, &r.Rbp, &r.Rbx, &r.R11, &r.R10, &r.R9, &r.R8, &r.Rax, &r.Rcx,
		&r.Rdx, &r.Rsi, &r.Rdi, &r.OrigRax, &r.Rip, &r.Cs, &r.Eflags, &r.Rsp, &r.Ss, &r.FsBase, &r.GsBase, &r.Ds, &r.Es,
		&r.Fs, &r.Gs}
}

// Marshal returns the regset, AMD64RegsSize bytes, little-endian.
func (r AMD64Regs) Marshal() []byte {
	b := make([]byte, 0, AMD64RegsSize)
	for _, w := range r.words() {
		b = binary.LittleEndian.AppendUint64(b, *w)
	}
	return b
}

// Unmarshal sets r from a regset of exactly AMD64RegsSize bytes. A 32-bit program's regset is shorter.
func (r *AMD64Regs) Unmarshal(b []byte) error {
	if len(b) != AMD64RegsSize {
		return fmt.Errorf("arch: general registers of %d bytes, want %d: %w", len(b), AMD64RegsSize, ErrUnsupported)
	}
	for i, w := range r.words() {
		*w = binary.LittleEndian.Uint64(b[8*i:])
	}
	return nil
}

// IP returns the instruction pointer.
func (r AMD64Regs) IP() uint64 { return r.Rip }

// SetIP sets the instruction pointer.
func (r *AMD64Regs) SetIP(ip uint64) { r.Rip = ip }

// SP returns the stack pointer.
func (r AMD64Regs) SP() uint64 { return r.Rsp }

// SetSP sets the stack pointer.
func (r *AMD64Regs) SetSP(sp uint64) { r.Rsp = sp }

// SyscallNr returns the number of the system call in which the thread was stopped, or -1.
func (r AMD64Regs) SyscallNr() int64 { return int64(r.OrigRax) }

// ClearSyscall makes the kernel take the registers as they are, without its own rules for interrupted calls.
func (r *AMD64Regs) ClearSyscall() { r.OrigRax = ^uint64(0) }

// SyscallArgs returns the arguments of the system call in which the thread was stopped.
func (r AMD64Regs) SyscallArgs() [6]uint64 { return [6]uint64{r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9} }

// Return returns the result of a system call: -4095..-1 are errors.
func (r AMD64Regs) Return() int64 { return int64(r.Rax) }

// SetReturn sets what Return returns.
func (r *AMD64Regs) SetReturn(v int64) { r.Rax = uint64(v) }

// Is64Bit reports whether the thread runs 64-bit code.
func (r AMD64Regs) Is64Bit() bool { return r.Cs == amd64Cs64 }

// WithCall returns registers that make system call nr with the instruction at ip.
func (r AMD64Regs) WithCall(ip uint64, nr int, args [6]uint64) AMD64Regs {
	r.Rip, r.Rax, r.OrigRax = ip, uint64(nr), ^uint64(0)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = args[0], args[1], args[2], args[3], args[4], args[5]
	return r
}

// WithBatch returns registers that run n records at the address records with the code of Trap at ip.
func (r AMD64Regs) WithBatch(ip, records uint64, n int) AMD64Regs {
	r.Rip, r.R12, r.R14, r.OrigRax = ip, records, uint64(n), ^uint64(0)
	r.Eflags &^= 1 << 8 // no single-stepping
	return r
}

// Restart classifies the interrupted system call. RestartSpurious holds only if no signal was there to be handled.
func (r AMD64Regs) Restart() Restart {
	if int64(r.OrigRax) < 0 {
		return RestartNone
	}
	return restartOf(int64(r.Rax), amd64Spurious[r.OrigRax])
}

// Restarted returns the registers with which a program goes on by itself when no handler is to run: the interrupted
// call is made again. They carry no call in progress, so that they can be loaded by user code, or set on a thread
// that never made the call (except for RestartBlock, whose end of wait only this kernel knows; see Again).
func (r AMD64Regs) Restarted() AMD64Regs {
	switch r.Restart() {
	case RestartNone:
	case RestartBlock:
		r.Rip -= amd64SyscallLen
		r.Rax = amd64RestartSyscall
	default:
		r.Rip -= amd64SyscallLen
		r.Rax = r.OrigRax
	}
	r.ClearSyscall()
	return r
}

// Unrestarted undoes Restarted for a call of kind RestartSpurious.
func (r AMD64Regs) Unrestarted() AMD64Regs {
	r.OrigRax = r.Rax
	r.Rip += amd64SyscallLen
	r.SetReturn(eintr)
	return r
}

// Interrupted returns the registers with which the program goes on after a handler ended the interrupted call.
func (r AMD64Regs) Interrupted() AMD64Regs {
	if r.Restart() != RestartNone {
		r.SetReturn(eintr)
	}
	r.ClearSyscall()
	return r
}

// Again returns the registers that make the interrupted call once more from its beginning, with its arguments as
// they are, whatever kind it is. On another kernel this is what RestartBlock has to become; the caller corrects the
// argument that holds the time to wait.
func (r AMD64Regs) Again() AMD64Regs {
	if r.Restart() != RestartNone {
		r.Rip -= amd64SyscallLen
		r.Rax = r.OrigRax
	}
	r.ClearSyscall()
	return r
}
