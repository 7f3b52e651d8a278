package arch

// Regs are the general registers of the processor that this program was built for.
type Regs = AMD64Regs

// XStateRegset is the regset that holds all other registers: NT_X86_XSTATE, the xsave area (include/uapi/linux/elf.h).
const XStateRegset = 0x202

// syscallInsn is the instruction that enters the kernel.
var syscallInsn = []byte{0x0f, 0x05}

// SyscallSize is the size of the instruction that enters the kernel.
const SyscallSize = amd64SyscallLen

const elfMachine = 62 // EM_X86_64
