// Package arch holds what differs between processors: the general registers and the rules by which an interrupted
// system call goes on, and all the machine code of this program.
//
// The machine code is small, position-independent and written in Go assembly (stub_amd64.s, stub_arm64.s). It is
// never run in this process: it is read from this program's own text as bytes (Trap, Server, SeedELF, InitELF) and
// copied into a tracee. All of it works without a stack of its own and touches no vector register.
//
// The register types of every processor build everywhere, so that images of one can be read on another; Regs is the
// type of the processor that this program was built for.
package arch

import "errors"

// PageSize is the size of a page in bytes. arm64 kernels with larger pages are refused by the kernel probe.
const PageSize = 4096

// ErrUnsupported means that this program has no machine code for what was asked, on this processor.
var ErrUnsupported = errors.New("not available on this processor")

// A Restart says what the kernel does about a system call that a stop interrupted, when the program goes on. The
// kernel keeps it in the result register until then (include/linux/errno.h) and user space never sees it.
type Restart uint8

const (
	// RestartNone: not in a system call, or the call is complete.
	RestartNone Restart = iota
	// RestartSys (ERESTARTSYS): a handler without SA_RESTART makes it EINTR, all else starts it again.
	RestartSys
	// RestartAlways (ERESTARTNOINTR): it starts again whatever happened.
	RestartAlways
	// RestartNoHandler (ERESTARTNOHAND): any handler makes it EINTR, all else starts it again.
	RestartNoHandler
	// RestartBlock (ERESTART_RESTARTBLOCK): as RestartNoHandler, but it goes on by restart_syscall(2), with the end
	// of its wait kept inside the kernel. This does not travel to another kernel.
	RestartBlock
	// RestartSpurious: the call says EINTR, but it is one that does so for the stop itself (signal(7), "Interruption
	// of system calls and library functions by stop signals"). Without a signal to handle, it is to start again.
	RestartSpurious
)

func (r Restart) String() string {
	switch r {
	case RestartNone:
		return "none"
	case RestartSys:
		return "ERESTARTSYS"
	case RestartAlways:
		return "ERESTARTNOINTR"
	case RestartNoHandler:
		return "ERESTARTNOHAND"
	case RestartBlock:
		return "ERESTART_RESTARTBLOCK"
	case RestartSpurious:
		return "EINTR by the stop"
	}
	return "unknown"
}

// Results by which the kernel marks an interrupted call, and the error that a program sees.
const (
	eintr                = -4
	erestartsys          = -512
	erestartnointr       = -513
	erestartnohand       = -514
	erestartRestartblock = -516
)

// restartOf classifies the result of system call nr; spurious says whether nr gives EINTR for a stop.
func restartOf(result int64, spurious bool) Restart {
	switch result {
	case erestartsys:
		return RestartSys
	case erestartnointr:
		return RestartAlways
	case erestartnohand:
		return RestartNoHandler
	case erestartRestartblock:
		return RestartBlock
	case eintr:
		if spurious {
			return RestartSpurious
		}
	}
	return RestartNone
}
