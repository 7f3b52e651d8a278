#include "go_asm.h"
#include "textflag.h"
#include "batch_amd64.h"

// The server of a Session, amd64. It is entered by one change of registers, with R15 at its data (server.go draws
// it) and all else as the program had it, and needs no stack. BX is its memory: words 0 and 4 the socket and the
// agent's end of it, 16..39 the doorbell, 64 and 128 buffers.
//
// It never leaves by a way on which a signal could find a stack pointer that is not the program's: the mask is given
// back last, by a call that keeps the flags, and from there on only MOV and JMP are used.
TEXT server<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVL $14, AX // rt_sigprocmask(SIG_SETMASK, all, NULL, 8)
	MOVL $2, DI
	LEAQ const_serverAll(R15), SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	MOVQ const_serverAgain(R15), R12 // how the program will go on
	MOVL $9, AX // mmap(NULL, size, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1, 0)
	XORL DI, DI
	MOVQ const_serverSize(R15), SI
	MOVL $3, DX
	MOVL $0x21, R10
	MOVQ $-1, R8
	XORL R9, R9
	SYSCALL
	CMPQ AX, $-4095
	JCC  leave
	MOVQ AX, BX
	MOVL $53, AX // socketpair(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC, 0, BX)
	MOVL $1, DI
	MOVL $0x80005, SI
	XORL DX, DX
	MOVQ BX, R10
	SYSCALL
	TESTL AX, AX
	JNE  unmap
	MOVL $54, AX // setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &lease, 16)
	MOVL 0(BX), DI
	MOVL $1, SI
	MOVL $20, DX
	LEAQ const_serverLease(R15), R10
	MOVL $16, R8
	SYSCALL
serve:
	MOVL $45, AX // recvfrom(socket, doorbell, 24, 0, NULL, NULL)
	MOVL 0(BX), DI
	LEAQ 16(BX), SI
	MOVL $24, DX
	XORL R10, R10
	XORL R8, R8
	XORL R9, R9
	SYSCALL
	CMPL AX, $-4 // EINTR: stopped or frozen for a while
	JEQ  serve
	CMPL AX, $24 // else the other end is gone, or silent for longer than the lease
	JNE  shut
	MOVL 4(BX), DI // the agent has its end now: close it here, so that its death is seen
	TESTL DI, DI
	JMI  work
	MOVL $3, AX
	SYSCALL
	MOVL $-1, 4(BX)
work:
	MOVQ 16(BX), R12
	MOVQ 24(BX), R14
	TESTQ R14, R14
	JMI  shut // asked to leave
	BATCH(next, b0, b1, b2, b3, b4, b5, over)
	MOVL $44, AX // sendto(socket, doorbell, 24, MSG_NOSIGNAL|MSG_DONTWAIT, NULL, 0)
	MOVL 0(BX), DI
	LEAQ 16(BX), SI
	MOVL $24, DX
	MOVL $0x4040, R10
	XORL R8, R8
	XORL R9, R9
	SYSCALL
	JMP  serve
shut:
	MOVQ const_serverAgain(R15), R12
	MOVL $3, AX // close
	MOVL 0(BX), DI
	SYSCALL
	MOVL 4(BX), DI
	TESTL DI, DI
	JMI  pending
	MOVL $3, AX
	SYSCALL
pending:
	CMPQ const_serverKind(R15), $0 // nothing that a handler would have ended
	JEQ  unmap
	MOVL $127, AX // rt_sigpending(BX+64, 8)
	LEAQ 64(BX), DI
	MOVL $8, SI
	SYSCALL
	MOVQ const_serverMask(R15), R13
	NOTQ R13
	ANDQ 64(BX), R13 // the signals that will be delivered when the mask is given back
handler:
	BSFQ R13, R14
	JEQ  unmap
	BTRQ R14, R13
	MOVL $13, AX // rt_sigaction(signal, NULL, BX+128, 8)
	LEAQ 1(R14), DI
	XORL SI, SI
	LEAQ 128(BX), DX
	MOVL $8, R10
	SYSCALL
	CMPQ 128(BX), $1 // SIG_DFL and SIG_IGN run no handler
	JLS  handler
	CMPQ const_serverKind(R15), $1
	JEQ  ended
	TESTL $0x10000000, 136(BX) // SA_RESTART
	JNE  handler
ended:
	MOVQ const_serverEnded(R15), R12
unmap:
	MOVL $11, AX // munmap(BX, size)
	MOVQ BX, DI
	MOVQ const_serverSize(R15), SI
	SYSCALL
leave:
	LEAQ const_serverFlags(R15), SP
	BYTE $0x9d // POPFQ; the assembler would count its effect on a stack that is not there
	MOVQ const_serverSP(R15), SP
	MOVL $14, AX // rt_sigprocmask(SIG_SETMASK, mask, NULL, 8)
	MOVL $2, DI
	LEAQ const_serverMask(R15), SI
	MOVQ const_serverZero(R15), DX // XOR would change the flags
	MOVL $8, R10
	SYSCALL
	MOVQ R12, AX
	MOVQ const_serverBX(R15), BX
	MOVQ const_serverCX(R15), CX
	MOVQ const_serverDX(R15), DX
	MOVQ const_serverSI(R15), SI
	MOVQ const_serverDI(R15), DI
	MOVQ const_serverR8(R15), R8
	MOVQ const_serverR9(R15), R9
	MOVQ const_serverR10(R15), R10
	MOVQ const_serverR11(R15), R11
	MOVQ const_serverR12(R15), R12
	MOVQ const_serverR13(R15), R13
	MOVQ const_serverR14(R15), R14
	MOVQ const_serverR15(R15), R15
	JMP  AX // to one of two endings behind the data, which load AX and jump to where the program was
	END

DATA ·serverAddr(SB)/8, $server<>(SB)
GLOBL ·serverAddr(SB), RODATA, $8
