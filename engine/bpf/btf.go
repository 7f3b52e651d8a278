//go:build linux

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Types is what is needed of the kernel's type information (Documentation/bpf/btf.rst).
type Types struct {
	structs map[string]uint32            // sizes in bytes
	members map[string]map[string]uint32 // of wanted structs: offsets in bytes
	funcs   map[string]uint32            // ids
}

// Member returns the offset of a struct's member in bytes.
func (t *Types) Member(structure, name string) (uint32, error) {
	off, ok := t.members[structure][name]
	if !ok {
		return 0, fmt.Errorf("struct %s has no member %s in this kernel", structure, name)
	}
	return off, nil
}

// Size returns the size of a struct in bytes, 0 if the kernel has none of the name.
func (t *Types) Size(structure string) uint32 { return t.structs[structure] }

// Func returns the type id of a function, 0 if the kernel has none of the name.
func (t *Types) Func(name string) uint32 { return t.funcs[name] }

// Kernel reads the type information of the running kernel about some structs and functions. It takes some 10 to 50 ms.
func Kernel(names ...string) (*Types, error) {
	t, err := readBTF("/sys/kernel/btf/vmlinux", names)
	if err != nil {
		return nil, fmt.Errorf("types of the kernel: %w", err)
	}
	return t, nil
}

// Kinds of types, and the size in bytes of what follows each, once and for each of its elements.
var btfSizes = map[uint32]struct{ fixed, each int }{
	1: {4, 0}, 2: {}, 3: {12, 0}, 4: {0, 12}, 5: {0, 12}, 6: {0, 8}, 7: {}, 8: {}, 9: {}, 10: {}, 11: {}, 12: {}, 13: {0, 8},
	14: {4, 0}, 15: {0, 12}, 16: {}, 17: {4, 0}, 18: {}, 19: {0, 12},
}

const (
	btfStruct = 4
	btfFunc   = 12
	btfMagic  = 0xeb9f
	maxBTF    = 64 << 20
)

var errBTF = errors.New("not in BTF as this program knows it")

// readBTF maps the file, which the kernel allows since 6.16: read, it comes page by page.
func readBTF(path string, names []string) (_ *Types, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing is lost
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxBTF {
		return nil, errBTF
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		if b, err = os.ReadFile(path); err != nil {
			return nil, err
		}
		return parseBTF(b, names)
	}
	defer func() { err = errors.Join(err, unix.Munmap(b)) }()
	return parseBTF(b, names)
}

// parseBTF walks all types once and keeps the few that are of use.
func parseBTF(b []byte, names []string) (*Types, error) {
	le := binary.LittleEndian
	if len(b) < 24 || len(b) > maxBTF || le.Uint16(b) != btfMagic {
		return nil, errBTF
	}
	hdr := uint64(le.Uint32(b[4:]))
	section := func(at int) ([]byte, error) {
		off, size := hdr+uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:]))
		if off+size > uint64(len(b)) {
			return nil, errBTF
		}
		return b[off : off+size], nil
	}
	types, err := section(8)
	if err != nil {
		return nil, err
	}
	strs, err := section(16)
	if err != nil {
		return nil, err
	}
	// Every string stands there once, so a type is known by the place of its name.
	wanted := map[uint32]string{}
	for _, nm := range names {
		if at := bytes.Index(strs, append(append([]byte{0}, nm...), 0)); at >= 0 {
			wanted[uint32(at)+1] = nm
		}
	}
	name := func(off uint32) string {
		if uint64(off) >= uint64(len(strs)) {
			return ""
		}
		s, _, _ := bytes.Cut(strs[off:], []byte{0})
		return string(s)
	}
	t := &Types{structs: map[string]uint32{}, members: map[string]map[string]uint32{}, funcs: map[string]uint32{}}
	for id := uint32(1); len(types) > 0; id++ {
		if len(types) < 12 {
			return nil, errBTF
		}
		info, size := le.Uint32(types[4:]), le.Uint32(types[8:])
		kind, vlen := info>>24&0x1f, int(info&0xffff)
		s, ok := btfSizes[kind]
		n := 12 + s.fixed + vlen*s.each
		if !ok || n > len(types) {
			return nil, errBTF
		}
		switch kind {
		case btfStruct:
			if nm, ok := wanted[le.Uint32(types)]; ok {
				t.structs[nm] = size
				t.members[nm] = btfMembers(types[12:n], info>>31 != 0, name)
			}
		case btfFunc:
			if nm, ok := wanted[le.Uint32(types)]; ok {
				t.funcs[nm] = id
			}
		}
		types = types[n:]
	}
	return t, nil
}

func btfMembers(b []byte, bitfields bool, name func(uint32) string) map[string]uint32 {
	out := map[string]uint32{}
	for ; len(b) >= 12; b = b[12:] {
		bits := binary.LittleEndian.Uint32(b[8:])
		if bitfields {
			bits &= 1<<24 - 1
		}
		out[name(binary.LittleEndian.Uint32(b))] = bits / 8
	}
	return out
}
