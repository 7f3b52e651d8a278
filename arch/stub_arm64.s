#include "textflag.h"

// Machine code that is copied into tracees and never runs here; see stub_amd64.s. R28 (g) and R18 are left alone.

#define END \
	WORD $0xe5a80246 \
	WORD $0x9d1f7c3b \
	WORD $0xd60b518e \
	WORD $0x6a93f427

// ARG loads argument k into reg. R19 is the first record, R20 this one, R9 its flags. Uses R10.
#define ARG(k, bit, reg, done) \
	MOVD (8+8*k)(R20), reg \
	TBZ  $bit, R9, done \
	LSL  $6, reg, reg \
	ADD  R19, reg, R10 \
	MOVD 56(R10), reg \
done:

// The batch interpreter that ends in a trap. Registers: ARM64Regs.WithBatch.
// R19 the first record, R20 this one, R21 how many are left.
TEXT trap<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVD R19, R20
next:
	CBZ  R21, over
	MOVWU 4(R20), R9
	ARG(0, 0, R0, a0)
	ARG(1, 1, R1, a1)
	ARG(2, 2, R2, a2)
	ARG(3, 3, R3, a3)
	ARG(4, 4, R4, a4)
	ARG(5, 5, R5, a5)
	MOVWU 0(R20), R8
	SVC  $0
	MOVD R0, 56(R20)
	MOVWU 4(R20), R9
	ADD  $64, R20
	SUB  $1, R21
	CMN  $4095, R0 // errors are -4095..-1
	BLO  next
	TBZ  $31, R9, next // bit 31: an error ends the batch
over:
	BRK  $0
	END

DATA ·trapAddr(SB)/8, $trap<>(SB)
GLOBL ·trapAddr(SB), RODATA, $8

// The code of SeedELF: ppoll(NULL, 0, NULL, NULL) for ever.
TEXT seed<>(SB), NOSPLIT|NOFRAME, $0-0
again:
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $73, R8
	SVC  $0
	B    again
	END

DATA ·seedAddr(SB)/8, $seed<>(SB)
GLOBL ·seedAddr(SB), RODATA, $8

// The code of InitELF; R19 points to the buffer: mask at 0, the record {pid, status} at 8.
TEXT init<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVD RSP, R19
	SUB  $64, R19
	MOVD $-1, R20
	MOVD R20, (R19)
	MOVD $2, R0 // rt_sigprocmask(SIG_SETMASK, all, NULL, 8)
	MOVD R19, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $135, R8
	SVC  $0
reap:
	MOVD $-1, R0 // wait4(-1, &status, WNOHANG|__WALL, NULL)
	ADD  $12, R19, R1
	MOVD $0x40000001, R2
	MOVD $0, R3
	MOVD $260, R8
	SVC  $0
	CMP  $0, R0
	BLE  idle
	MOVW R0, 8(R19)
	MOVD $3, R0 // write(3, {pid, status}, 8)
	ADD  $8, R19, R1
	MOVD $8, R2
	MOVD $64, R8
	SVC  $0
	B    reap
idle:
	MOVD R19, R0 // rt_sigtimedwait(all, NULL, NULL, 8)
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $137, R8
	SVC  $0
	B    reap
	END

DATA ·initAddr(SB)/8, $init<>(SB)
GLOBL ·initAddr(SB), RODATA, $8
