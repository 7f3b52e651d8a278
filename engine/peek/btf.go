package peek

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// A field is where a member stands in its struct.
type field struct {
	bit  uint32 // from the start of the struct
	size uint32 // in bits, of a bit field; 0 for all others
}

// structure is a struct of the kernel: its size in bytes and its members. Those of a nested struct without a name of its
// own are named with a dot ("flow.stopped"), or plainly where the member has no name either.
type structure struct {
	size   uint32
	fields map[string]field
}

// Kinds of types (Documentation/bpf/btf.rst), and the size in bytes of what follows each, once and for each of its elements.
var btfSizes = map[uint32]struct{ fixed, each int }{
	1: {4, 0}, 2: {}, 3: {12, 0}, 4: {0, 12}, 5: {0, 12}, 6: {0, 8}, 7: {}, 8: {}, 9: {}, 10: {}, 11: {}, 12: {}, 13: {0, 8},
	14: {4, 0}, 15: {0, 12}, 16: {}, 17: {4, 0}, 18: {}, 19: {0, 12},
}

const (
	btfStruct, btfUnion = 4, 5
	btfMagic            = 0xeb9f
	maxBTF              = 64 << 20
	maxDepth            = 8
)

var errBTF = errors.New("the kernel's type information is not as this program knows it")

// btf is the type information, with where each type begins.
type btf struct {
	types, strs []byte
	at          []uint32
}

func readBTF(path string) (*btf, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseBTF(b)
}

func parseBTF(b []byte) (*btf, error) {
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
	t := &btf{types: section(8), strs: section(16), at: []uint32{0}}
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

func (t *btf) name(off uint32) string {
	if uint64(off) >= uint64(len(t.strs)) {
		return ""
	}
	s, _, _ := bytes.Cut(t.strs[off:], []byte{0})
	return string(s)
}

// structures finds the wanted structs.
func (t *btf) structures(wanted ...string) (map[string]*structure, error) {
	want := map[string]bool{}
	for _, w := range wanted {
		want[w] = true
	}
	out := map[string]*structure{}
	for _, off := range t.at[1:] {
		b := t.types[off:]
		kind := binary.LittleEndian.Uint32(b[4:]) >> 24 & 0x1f
		if kind != btfStruct {
			continue
		}
		if n := t.name(binary.LittleEndian.Uint32(b)); want[n] {
			s := &structure{size: binary.LittleEndian.Uint32(b[8:]), fields: map[string]field{}}
			t.members(s, off, "", 0, 0)
			out[n] = s
		}
	}
	for _, w := range wanted {
		if out[w] == nil {
			return nil, fmt.Errorf("this kernel has no struct %s: %w", w, errBTF)
		}
	}
	return out, nil
}

// members adds those of the struct or union at off, which itself stands at bit base.
func (t *btf) members(s *structure, off uint32, prefix string, base uint32, depth int) {
	le := binary.LittleEndian
	b := t.types[off:]
	info := le.Uint32(b[4:])
	for i := range int(info & 0xffff) {
		m := b[12+12*i:]
		name, typ, f := t.name(le.Uint32(m)), le.Uint32(m[4:]), field{bit: le.Uint32(m[8:])}
		if info>>31 != 0 { // the struct has bit fields
			f.bit, f.size = f.bit&(1<<24-1), f.bit>>24
		}
		f.bit += base
		if name != "" {
			s.fields[prefix+name] = f
		}
		if uint64(typ) >= uint64(len(t.at)) || depth > maxDepth {
			continue
		}
		inner := t.types[t.at[typ]:]
		if kind := le.Uint32(inner[4:]) >> 24 & 0x1f; kind != btfStruct && kind != btfUnion || t.name(le.Uint32(inner)) != "" {
			continue
		}
		p := prefix
		if name != "" {
			p += name + "."
		}
		t.members(s, t.at[typ], p, f.bit, depth+1)
	}
}
