//go:build linux

// Package bpf asks the kernel, by small BPF programs, for what it tells in no other way, and does what it offers to such programs
// alone. The programs are assembled here, from offsets that the kernel's own type information gives (BTF). It needs
// CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; a kernel without BTF gives an error, which callers take for "not known".
//
// The package takes no locks. Descriptors of programs and links are the caller's to close.
package bpf

import "encoding/binary"

// Insn encodes a BPF instruction (Documentation/bpf/standardization/instruction-set.rst).
func Insn(code uint8, dst, src uint8, off int16, imm int32) []byte {
	b := []byte{code, src<<4 | dst, 0, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint16(b[2:], uint16(off))
	binary.LittleEndian.PutUint32(b[4:], uint32(imm))
	return b
}
