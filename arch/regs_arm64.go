package arch

// Regs are the general registers of the processor that this program was built for.
type Regs = ARM64Regs

// XStateRegset is the regset that holds the floating-point registers: NT_FPREGSET (include/uapi/linux/elf.h).
const XStateRegset = 2

// syscallInsn is the instruction that enters the kernel, svc #0.
var syscallInsn = []byte{0x01, 0x00, 0x00, 0xd4}

// SyscallSize is the size of the instruction that enters the kernel.
const SyscallSize = arm64SyscallLen

const elfMachine = 183 // EM_AARCH64
