// The interpreter of system-call batches, as a macro for the two pieces of machine code that contain it.

// END is the sentinel of stub.go.
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
