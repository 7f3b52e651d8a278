package mem

import "unsafe"

// addressOf is where in this program's memory b begins.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
