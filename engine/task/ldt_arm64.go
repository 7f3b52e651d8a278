//go:build linux

package task

import "errors"

// dumpLDT has nothing to ask: the processor has no local descriptor table.
func dumpLDT(*dumper) error { return nil }

func restoreLDT(r *restorer) error {
	if len(r.Image.Extra.GetLdt()) > 0 {
		return errors.New("this processor has no local descriptor table")
	}
	return nil
}
