package ptrace

import "fmt"

// Addr is an address in a tracee. It is never an address of this process, so it has a type of its own
// and does not convert to a pointer.
type Addr uint64

// Add returns the address n bytes further on.
func (a Addr) Add(n uint64) Addr { return a + Addr(n) }

// String prints the address as the kernel does in /proc/PID/maps, with a 0x before it.
func (a Addr) String() string { return fmt.Sprintf("0x%x", uint64(a)) }
