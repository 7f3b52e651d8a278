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
	structs map[string]*Struct
	funcs   map[string]uint32 // ids
}

// Struct is a struct of the kernel. Members of a nested struct or union without a type name are its own: plainly where the member
// has no name either, else named with a dot ("flow.stopped").
type Struct struct {
	Name   string
	Size   uint32 // in bytes
	fields map[string]Field
}

// A Field is where a member stands in its struct.
type Field struct {
	Bit  uint32 // from the start of the struct
	Bits uint32 // of a bit field; 0 for all others
}

// Field finds a member.
func (s *Struct) Field(name string) (Field, error) {
	f, ok := s.fields[name]
	if !ok {
		return f, fmt.Errorf("struct %s has no member %s in this kernel", s.Name, name)
	}
	return f, nil
}

// Struct finds a struct among those that were asked for.
func (t *Types) Struct(name string) (*Struct, error) {
	s := t.structs[name]
	if s == nil {
		return nil, fmt.Errorf("this kernel has no struct %s, or nobody asked for it", name)
	}
	return s, nil
}

// Member returns the offset of a struct's member in bytes.
func (t *Types) Member(structure, name string) (uint32, error) {
	s, err := t.Struct(structure)
	if err != nil {
		return 0, err
	}
	f, err := s.Field(name)
	return f.Bit / 8, err
}

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
	btfStruct, btfUnion, btfFunc = 4, 5, 12

	btfMagic = 0xeb9f
	maxBTF   = 64 << 20
	// Bounds of one struct: how deep its unnamed parts nest, and how many members are looked at.
	maxDepth   = 8
	maxMembers = 1 << 14
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

// btf is the type information, with where each type begins.
type btf struct {
	types, strs []byte
	at          []uint32
}

// parseBTF keeps the few types that are asked for. Nothing of b is kept.
func parseBTF(b []byte, names []string) (*Types, error) {
	t, err := indexBTF(b)
	if err != nil {
		return nil, err
	}
	// Every string stands there once, so a type is known by the place of its name.
	wanted := map[uint32]string{}
	for _, nm := range names {
		if at := bytes.Index(t.strs, append(append([]byte{0}, nm...), 0)); at >= 0 {
			wanted[uint32(at)+1] = nm
		}
	}
	out := &Types{structs: map[string]*Struct{}, funcs: map[string]uint32{}}
	for id, off := range t.at[1:] {
		b := t.types[off:]
		name, ok := wanted[binary.LittleEndian.Uint32(b)]
		if !ok {
			continue
		}
		switch t.kind(off) {
		case btfStruct:
			s := &Struct{Name: name, Size: binary.LittleEndian.Uint32(b[8:]), fields: map[string]Field{}}
			left := maxMembers
			t.members(s, off, "", 0, 0, &left)
			out.structs[name] = s
		case btfFunc:
			out.funcs[name] = uint32(id) + 1
		}
	}
	return out, nil
}

// indexBTF finds where each type begins.
func indexBTF(b []byte) (*btf, error) {
	le := binary.LittleEndian
	if len(b) < 24 || len(b) > maxBTF || le.Uint16(b) != btfMagic {
		return nil, errBTF
	}
	hdr := uint64(le.Uint32(b[4:]))
	section := func(at int) []byte {
		off, size := hdr+uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:]))
		if off+size > uint64(len(b)) {
			return nil
		}
		return b[off : off+size]
	}
	t := &btf{types: section(8), strs: section(16), at: []uint32{0}} // type 0 is void
	if t.types == nil || t.strs == nil {
		return nil, errBTF
	}
	for off := 0; off < len(t.types); {
		if len(t.types)-off < 12 {
			return nil, errBTF
		}
		info := le.Uint32(t.types[off+4:])
		s, ok := btfSizes[info>>24&0x1f]
		n := 12 + s.fixed + int(info&0xffff)*s.each
		if !ok || n > len(t.types)-off {
			return nil, errBTF
		}
		t.at = append(t.at, uint32(off))
		off += n
	}
	return t, nil
}

func (t *btf) kind(off uint32) uint32 {
	return binary.LittleEndian.Uint32(t.types[off+4:]) >> 24 & 0x1f
}

func (t *btf) name(off uint32) string {
	if uint64(off) >= uint64(len(t.strs)) {
		return ""
	}
	s, _, _ := bytes.Cut(t.strs[off:], []byte{0})
	return string(s)
}

// members adds those of the struct or union at off, which itself stands at bit base, as long as some are left.
func (t *btf) members(s *Struct, off uint32, prefix string, base uint32, depth int, left *int) {
	le := binary.LittleEndian
	b := t.types[off:]
	info := le.Uint32(b[4:])
	for i := range int(info & 0xffff) {
		if *left--; *left < 0 {
			return
		}
		m := b[12+12*i:]
		name, typ, f := t.name(le.Uint32(m)), le.Uint32(m[4:]), Field{Bit: le.Uint32(m[8:])}
		if info>>31 != 0 { // the struct has bit fields
			f.Bit, f.Bits = f.Bit&(1<<24-1), f.Bit>>24
		}
		f.Bit += base
		if name != "" {
			s.fields[prefix+name] = f
		}
		if typ == 0 || uint64(typ) >= uint64(len(t.at)) || depth > maxDepth {
			continue
		}
		inner := t.at[typ]
		if kind := t.kind(inner); kind != btfStruct && kind != btfUnion || t.name(le.Uint32(t.types[inner:])) != "" {
			continue
		}
		p := prefix
		if name != "" {
			p += name + "."
		}
		t.members(s, inner, p, f.Bit, depth+1, left)
	}
}
