//go:build linux

package task

import "errors"

// dumpCPUID has nothing to ask: the processor has no such instruction.
func (d *dumper) dumpCPUID() {}

func (r *restorer) restoreCPUID() error {
	return errors.New("this processor has no cpuid instruction that could be forbidden")
}
