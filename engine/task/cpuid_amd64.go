//go:build linux

package task

import "golang.org/x/sys/unix"

// Of arch_prctl(2): whether the cpuid instruction may be used, else it makes SIGSEGV.
const (
	archGetCPUID = 0x1011
	archSetCPUID = 0x1012
)

func (d *dumper) dumpCPUID() {
	allowed := d.batch.Try(unix.SYS_ARCH_PRCTL, archGetCPUID, 0)
	d.then(func() error {
		v, err := allowed.Value()
		d.thread.Extra.CpuidFaults = err == nil && v == 0
		return nil
	})
}

func (r *restorer) restoreCPUID() error {
	r.require(r.batch.Try(unix.SYS_ARCH_PRCTL, archSetCPUID, 0), "a forbidden cpuid instruction, which this processor or hypervisor may not know")
	return nil
}
