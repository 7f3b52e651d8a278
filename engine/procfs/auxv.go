package procfs

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Entry types of the auxiliary vector that this program uses (include/uapi/linux/auxvec.h).
const (
	AuxNull   = 0
	AuxPhdr   = 3
	AuxPhnum  = 5
	AuxPageSz = 6
	AuxBase   = 7
	AuxEntry  = 9
	AuxHwcap  = 16
	AuxHwcap2 = 26
	AuxVDSO   = 33 // AT_SYSINFO_EHDR
)

// maxAuxv bounds the vector, in entries; mm_struct.saved_auxv has at most some 70 words.
const maxAuxv = 256

// An AuxPair is one pair of the auxiliary vector.
type AuxPair struct{ Type, Value uint64 }

// Auxv reads /proc/PID/auxv: all pairs, with the closing AuxNull, and the zeroes that may follow it.
func (p FS) Auxv(pid int) ([]AuxPair, error) { return parse(p, ParseAuxv, pid, "auxv") }

// ParseAuxv parses the auxiliary vector of a 64-bit little-endian program.
func ParseAuxv(r io.Reader) ([]AuxPair, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxAuxv*16+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxAuxv*16 || len(b)%16 != 0 {
		return nil, fmt.Errorf("auxv: %d bytes are not a list of at most %d pairs of 64-bit words", len(b), maxAuxv)
	}
	out := make([]AuxPair, 0, len(b)/16)
	for ; len(b) > 0; b = b[16:] {
		out = append(out, AuxPair{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])})
	}
	return out, nil
}

// AuxValue looks a type up.
func AuxValue(v []AuxPair, typ uint64) (uint64, bool) {
	for _, e := range v {
		if e.Type == typ {
			return e.Value, true
		}
	}
	return 0, false
}
