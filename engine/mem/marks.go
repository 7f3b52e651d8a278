package mem

import (
	"migrate/engine/images/imagespb"
)

// LateMarks lists what mappings have that no record of CRIU's has a place for, and that is given to them last, when they
// have their content: see RestoreMarks. Adjacent mappings with the same marks make one entry.
func (l *Layout) LateMarks() []*imagespb.VmaMark {
	var out []*imagespb.VmaMark
	for i := range l.Mappings {
		m := &l.Mappings[i]
		mark := &imagespb.VmaMark{Start: m.Start, End: m.End, LockOnFault: m.Marks.OnFault, Sealed: m.Marks.Sealed, Pkey: m.Marks.Key}
		if m.Kind >= VDSO || !mark.LockOnFault && !mark.Sealed && mark.Pkey == 0 {
			continue
		}
		if n := len(out); n > 0 && sameMark(out[n-1], mark) {
			out[n-1].End = mark.End
			continue
		}
		out = append(out, mark)
	}
	return out
}

// sameMark tells whether b goes on where a ends, with the same marks.
func sameMark(a, b *imagespb.VmaMark) bool {
	return a.End == b.Start && a.LockOnFault == b.LockOnFault && a.Sealed == b.Sealed && a.Pkey == b.Pkey
}
