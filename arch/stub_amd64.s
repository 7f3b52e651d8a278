#include "textflag.h"
#include "batch_amd64.h"

// Machine code that is copied into tracees and never runs here. None of it may name a symbol: that would not move
// with the copy. Every piece ends with END (batch_amd64.h).

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
