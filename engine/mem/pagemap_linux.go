package mem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pmSoftDirty = 1 << 55
	pmFile      = 1 << 61 // of a file, or of shared memory
	pmSwapped   = 1 << 62
	pmPresent   = 1 << 63
)

// entriesAtOnce is how many pages are asked for at once: 1 GiB of addresses.
const entriesAtOnce = 1 << 18

// population reads /proc/PID/pagemap, which every kernel has: populated pages of an area are Written, all others
// Absent. When dirty is not nil, it says of a populated page whether it is to be reported.
func population(pagemap *os.File, a Area, dirty func(entry uint64) bool) ([]Extent, error) {
	var out []Extent
	buf := make([]byte, 8*min(entriesAtOnce, a.Pages()))
	for at := a.Start; at < a.End; {
		want := buf[:8*min(entriesAtOnce, Range{at, a.End}.Pages())]
		n, err := pagemap.ReadAt(want, int64(at/PageSize*8))
		if n < 8 && errors.Is(err, io.EOF) { // there is no memory any more
			return nil, fmt.Errorf("reading %s at 0x%x: %w", pagemap.Name(), at, ErrGone)
		}
		if n < 8 {
			return nil, fmt.Errorf("reading %s at 0x%x: %w", pagemap.Name(), at, err)
		}
		for i := 0; i+8 <= n; i += 8 {
			entry := binary.LittleEndian.Uint64(want[i:])
			state := Written
			switch populated := entry&(pmPresent|pmSwapped) != 0 && (!a.File || entry&pmFile == 0); {
			case !populated:
				state = Absent
			case dirty != nil && !a.Whole && !dirty(entry):
				at += PageSize
				continue
			}
			if k := len(out); k > 0 && out[k-1].End == at && out[k-1].State == state {
				out[k-1].End += PageSize
			} else {
				out = append(out, Extent{Range{at, at + PageSize}, state})
			}
			at += PageSize
		}
	}
	return out, nil
}
