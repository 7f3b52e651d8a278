package arch

import (
	"bytes"
	"sync"
)

// sentinel ends every piece of machine code in the assembly files: the linker pads between functions, so that the
// distance of two symbols is not the size of the first one.
var sentinel = []byte("\x46\x02\xa8\xe5\x3b\x7c\x1f\x9d\x8e\x51\x0b\xd6\x27\xf4\x93\x6a")

// maxCode bounds the search for the sentinel.
const maxCode = 2048

// Trap returns the interpreter of system-call batches that ends in a trap. Registers as WithBatch sets them; it
// runs the records one after another, in the form that engine/remote draws, and stops with SIGTRAP when the last one
// has been run, or one that is marked so has failed. It needs no stack and no other memory.
func Trap() []byte { return bytes.Clone(trapCode()) }

// FindSyscall returns the offset of an instruction in code that enters the kernel, or -1. In a vDSO there is one,
// with which calls can be made when nothing else of this program's is left in a tracee.
func FindSyscall(code []byte) int { return bytes.Index(code, syscallInsn) }

// code finds the end of the machine code at the beginning of text.
func code(text []byte) []byte {
	n := bytes.Index(text, sentinel)
	if n < 0 {
		panic("arch: machine code without its end mark")
	}
	return text[:n:n]
}

var trapCode = sync.OnceValue(func() []byte { return code(text(trapAddr, maxCode)) })
