package arch

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"
)

// The data of the server stands behind its code. R15 points to it; server_amd64.s uses the names with const_.
//
//	0   all ones, the mask that blocks every signal    64   kind: which handler ends the call (see kindOf)
//	8   lease, struct timeval                          72   address of the ending that makes the call again
//	24  size of the memory that it maps                80   address of the ending after a handler
//	32  the program's signal mask                      88   BX CX DX SI DI R8..R15 of the program
//	40  its flags                                      192  the two endings, 24 bytes each
//	48  its stack pointer                              240  owner: thread id
//	56  zero
const (
	serverAll   = 0
	serverLease = 8
	serverSize  = 24
	serverMask  = 32
	serverFlags = 40
	serverSP    = 48
	serverZero  = 56
	serverKind  = 64
	serverAgain = 72
	serverEnded = 80
	serverBX    = 88
	serverCX    = 96
	serverDX    = 104
	serverSI    = 112
	serverDI    = 120
	serverR8    = 128
	serverR9    = 136
	serverR10   = 144
	serverR11   = 152
	serverR12   = 160
	serverR13   = 168
	serverR14   = 176
	serverR15   = 184

	serverEndings  = 192
	endingSize     = 24
	serverOwner    = serverEndings + 2*endingSize
	serverDataSize = serverOwner + 8
)

var serverCode = sync.OnceValue(func() []byte {
	c := code(text(serverAddr, maxCode))
	return append(bytes.Clone(c), make([]byte, -len(c)&7)...)
})

// ServerSize returns the size of the machine code and data of a server, which stand together at a multiple of 16.
func ServerSize() int { return len(serverCode()) + serverDataSize }

// NewServer returns the bytes of a server that is to stand at address at, executable, in the tracee, and the
// registers that enter it. p.Regs are the thread's registers as it was stopped.
//
// The server blocks all signals, maps p.Memory bytes, makes a socket pair at their beginning, and runs batches for
// whoever holds its other end: it receives doorbells {address of the records, their number, any third word} of 24
// bytes, and sends each back when the batch is over. At the end of file, when p.Lease passes without a doorbell, or when
// the number is negative, it closes its sockets, unmaps its memory, gives the mask back, and goes on with the program
// exactly where it was. An interrupted call is made again, or fails with EINTR if a signal that came meanwhile has a
// handler that would have ended it.
func NewServer(at uint64, p ServerParams) ([]byte, Regs, error) {
	b := make([]byte, ServerSize())
	data := b[copy(b, serverCode()):]
	base := at + uint64(len(b)-len(data))
	r, again, ended := p.Regs, p.Regs.Restarted(), p.Regs.Interrupted()
	for off, v := range map[int]uint64{
		serverAll: ^uint64(0), serverSize: p.Memory, serverMask: p.Mask, serverFlags: r.Eflags, serverSP: r.Rsp,
		serverLease: uint64(p.Lease / time.Second), serverLease + 8: uint64(p.Lease % time.Second / time.Microsecond),
		serverKind: kindOf(r.Restart()), serverAgain: base + serverEndings, serverEnded: base + serverEndings + endingSize,
		serverBX: r.Rbx, serverCX: r.Rcx, serverDX: r.Rdx, serverSI: r.Rsi, serverDI: r.Rdi,
		serverR8: r.R8, serverR9: r.R9, serverR10: r.R10, serverR11: r.R11,
		serverR12: r.R12, serverR13: r.R13, serverR14: r.R14, serverR15: r.R15, serverOwner: uint64(p.TID),
	} {
		binary.LittleEndian.PutUint64(data[off:], v)
	}
	copy(data[serverEndings:], ending(again))
	copy(data[serverEndings+endingSize:], ending(ended))
	r.ClearSyscall()
	r.Rip, r.R15 = at, base
	return b, r, nil
}

// kindOf says which handlers end an interrupted call with EINTR: 0 none, 1 any, 2 those without SA_RESTART.
func kindOf(r Restart) uint64 {
	switch r {
	case RestartNoHandler, RestartBlock, RestartSpurious:
		return 1
	case RestartSys:
		return 2
	}
	return 0
}

// ending is the last code that the server runs: movabs $rax, %rax; jmp *0(%rip); the address.
func ending(r Regs) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{0x48, 0xb8}, r.Rax)
	b = append(b, 0xff, 0x25, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint64(b, r.Rip)
}

// ServerPhase says how far a thread inside a server has come.
func ServerPhase(at uint64, r Regs) Phase {
	switch off := r.Rip - at; {
	case off >= uint64(ServerSize()):
		return PhaseOutside
	case off < uint64(len(serverCode()))/8: // before the first system calls have been made
		return PhaseEntering
	case off >= uint64(bytes.LastIndexByte(serverCode(), popf)-4):
		return PhaseLeft
	}
	return PhaseServing
}

const popf = 0x9d

// ServerProgram returns the registers and the mask that the server b, which stands at address at, will give to the
// program whose thread is inside it with registers r. b has ServerSize bytes and is not trusted.
func ServerProgram(b []byte, at uint64, r Regs) (Regs, uint64) {
	le := binary.LittleEndian
	data := b[len(serverCode()):]
	word := func(off int) uint64 { return le.Uint64(data[off:]) }
	ending := data[serverEndings:]
	ended := at + uint64(len(serverCode())) + serverEndings + endingSize
	if r.R12 == ended || r.Rax == ended || r.Rip-ended < endingSize {
		ending = ending[endingSize:]
	}
	r.Rax, r.Rip = le.Uint64(ending[2:]), le.Uint64(ending[16:])
	r.Rbx, r.Rcx, r.Rdx, r.Rsi, r.Rdi = word(serverBX), word(serverCX), word(serverDX), word(serverSI), word(serverDI)
	r.R8, r.R9, r.R10, r.R11 = word(serverR8), word(serverR9), word(serverR10), word(serverR11)
	r.R12, r.R13, r.R14, r.R15 = word(serverR12), word(serverR13), word(serverR14), word(serverR15)
	r.Eflags, r.Rsp = word(serverFlags), word(serverSP)
	r.ClearSyscall()
	return r, word(serverMask)
}

// ServerMemory returns the address of the memory that a server in PhaseServing has mapped.
func ServerMemory(r Regs) uint64 { return r.Rbx }

// FindServers returns the servers in memory.
func FindServers(memory []byte) []FoundServer {
	var found []FoundServer
	for off := 0; ; {
		i := bytes.Index(memory[off:], serverCode())
		if i < 0 || off+i+ServerSize() > len(memory) {
			return found
		}
		off += i
		owner := binary.LittleEndian.Uint64(memory[off+len(serverCode())+serverOwner:])
		found = append(found, FoundServer{Offset: off, TID: int(owner)})
		off += ServerSize()
	}
}
