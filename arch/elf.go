package arch

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// InitBase is where InitELF's page is loaded.
const InitBase = 0x400000

const (
	elfHeaderSize = 64
	elfPhdrSize   = 56
	elfTextOffset = elfHeaderSize + 2*elfPhdrSize
)

// SeedELF returns a static executable whose one page is loaded at base, a page-aligned address at or above
// vm.mmap_min_addr, and which waits for ever, without ever touching memory. A process that is to be built is born by
// executing it, so that its address space holds nothing but this page, a stack and the vDSO.
func SeedELF(base uint64) []byte { return elfImage(base, code(text(seedAddr, maxCode))) }

// InitELF returns a static executable for pid 1 of a workload's pid namespace. It blocks all signals, waits for
// every child that ends, and appends {pid int32, status int32} for each to descriptor 3 if that is open, with the
// status of wait4(2). It never ends, has one thread and uses no memory but its stack's first page.
func InitELF() []byte { return initELF() }

var initELF = sync.OnceValue(func() []byte { return elfImage(InitBase, code(text(initAddr, maxCode))) })

// SeedCode returns the offset in SeedELF's page of an instruction that enters the kernel.
func SeedCode() int { return elfTextOffset + FindSyscall(code(text(seedAddr, maxCode))) }

// elfImage builds an ELF64 executable (elf(5)): header, one PT_LOAD that covers the whole file at base, one
// PT_GNU_STACK that keeps the stack from being executable, then the code.
func elfImage(base uint64, text []byte) []byte {
	if base%PageSize != 0 || base == 0 {
		panic(fmt.Sprintf("arch: executable at %#x, which is not a page", base))
	}
	size := uint64(elfTextOffset + len(text))
	le := binary.LittleEndian
	b := make([]byte, 0, size)
	b = append(b, "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...) // 64-bit, little-endian, version 1, System V
	b = le.AppendUint16(b, 2)                                                   // ET_EXEC
	b = le.AppendUint16(b, elfMachine)
	b = le.AppendUint32(b, 1)                  // version
	b = le.AppendUint64(b, base+elfTextOffset) // entry
	b = le.AppendUint64(b, elfHeaderSize)      // program headers
	b = le.AppendUint64(b, 0)                  // no sections
	b = le.AppendUint32(b, 0)                  // flags
	for _, v := range []uint16{elfHeaderSize, elfPhdrSize, 2, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = appendPhdr(b, 1, 5, base, size, PageSize) // PT_LOAD, r-x
	b = appendPhdr(b, 0x6474e551, 6, 0, 0, 16)    // PT_GNU_STACK, rw-
	return append(b, text...)
}

func appendPhdr(b []byte, typ, flags uint32, addr, size, align uint64) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, typ)
	b = le.AppendUint32(b, flags)
	b = le.AppendUint64(b, 0) // from the start of the file
	for _, v := range []uint64{addr, addr, size, size, align} {
		b = le.AppendUint64(b, v)
	}
	return b
}
