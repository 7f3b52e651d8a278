#include "textflag.h"

// Machine code that is copied into tracees and never runs here. None of it may name a symbol: that would not move
// with the copy. Every piece ends with END, the sentinel of stub.go.

#define END \
	QUAD $0x9d1f7c3be5a80246 \
	QUAD $0x6a93f427d60b518e

// ARG loads argument k into reg: the value in the record, or the result of an earlier record.
// R12 is the first record, R13 this one, CX its flags.
#define ARG(k, bit, reg, done) \
	MOVQ (8+8*k)(R13), reg \
	TESTL $bit, CX \
	JEQ  done \
	SHLQ $6, reg \
	MOVQ 56(R12)(reg*1), reg \
done:

// BATCH runs the records. In: R12 the first record, R14 their number. Out: R14 how many were not run.
// Uses R13, and what a system call takes and clobbers: AX, CX, DX, SI, DI, R8, R9, R10, R11.
#define BATCH(next, a0, a1, a2, a3, a4, a5, over) \
	MOVQ R12, R13 \
next: \
	TESTQ R14, R14 \
	JEQ  over \
	MOVL 4(R13), CX \
	ARG(0, 1, DI, a0) \
	ARG(1, 2, SI, a1) \
	ARG(2, 4, DX, a2) \
	ARG(3, 8, R10, a3) \
	ARG(4, 16, R8, a4) \
	ARG(5, 32, R9, a5) \
	MOVL 0(R13), AX \
	SYSCALL \
	MOVQ AX, 56(R13) \
	MOVL 4(R13), CX \
	ADDQ $64, R13 \
	DECQ R14 \
	CMPQ AX, $-4095 \ // errors are -4095..-1
	JCS  next \
	TESTL CX, CX \ // bit 31: an error ends the batch
	JPL  next \
over:

// The batch interpreter that ends in a trap. Registers: AMD64Regs.WithBatch.
TEXT trap<>(SB), NOSPLIT|NOFRAME, $0-0
	BATCH(next, a0, a1, a2, a3, a4, a5, over)
	BYTE $0xCC // INT $3 would assemble to CD 03, which is not a breakpoint
	END

DATA ·trapAddr(SB)/8, $trap<>(SB)
GLOBL ·trapAddr(SB), RODATA, $8

// The code of SeedELF: pause(2) for ever.
TEXT seed<>(SB), NOSPLIT|NOFRAME, $0-0
again:
	MOVL $34, AX // pause
	SYSCALL
	JMP  again
	END

DATA ·seedAddr(SB)/8, $seed<>(SB)
GLOBL ·seedAddr(SB), RODATA, $8

// The code of InitELF. SP is as the kernel sets it at exec; R12 points to the buffer below: mask at 0, the record
// {pid, status} at 8.
TEXT init<>(SB), NOSPLIT|NOFRAME, $0-0
	LEAQ -64(SP), R12
	MOVQ $-1, R13
	MOVQ R13, 0(R12)
	MOVL $14, AX // rt_sigprocmask(SIG_SETMASK, all, NULL, 8): SIGCHLD stays pending until it is waited for
	MOVL $2, DI
	MOVQ R12, SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
reap:
	MOVL $61, AX // wait4(-1, &status, WNOHANG|__WALL, NULL)
	MOVQ $-1, DI
	LEAQ 12(R12), SI
	MOVL $0x40000001, DX
	XORL R10, R10
	SYSCALL
	TESTQ AX, AX
	JLE  idle
	MOVL AX, 8(R12)
	MOVL $1, AX // write(3, {pid, status}, 8)
	MOVL $3, DI
	LEAQ 8(R12), SI
	MOVL $8, DX
	SYSCALL
	JMP  reap
idle:
	MOVL $128, AX // rt_sigtimedwait(all, NULL, NULL, 8)
	MOVQ R12, DI
	XORL SI, SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	JMP  reap
	END

DATA ·initAddr(SB)/8, $init<>(SB)
GLOBL ·initAddr(SB), RODATA, $8
