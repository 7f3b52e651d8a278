package arch

import "unsafe"

// The addresses of the machine code, set by the assembly files. They are words of read-only data because the Go
// value of an assembly function is that of a wrapper. The server's is nil where there is none.
var trapAddr, seedAddr, initAddr, serverAddr unsafe.Pointer

// text returns up to max bytes of this program's machine code from start on. Reading stops at the end of start's
// page and its follower: the code is shorter, and the text segment of a Go program does not end with it.
func text(start unsafe.Pointer, max int) []byte { return unsafe.Slice((*byte)(start), max) }
