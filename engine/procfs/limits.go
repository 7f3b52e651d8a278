package procfs

import (
	"fmt"
	"io"
	"strings"
)

// Unlimited is RLIM_INFINITY.
const Unlimited = ^uint64(0)

// A Limit is the soft and the hard value of one resource limit.
type Limit struct{ Soft, Hard uint64 }

// limitNames are the names in /proc/PID/limits in the order of the RLIMIT_ numbers (fs/proc/base.c, lnames;
// include/uapi/asm-generic/resource.h). The order in the file is another one.
var limitNames = []string{
	"Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max resident set",
	"Max processes", "Max open files", "Max locked memory", "Max address space", "Max file locks",
	"Max pending signals", "Max msgqueue size", "Max nice priority", "Max realtime priority", "Max realtime timeout",
}

// LimitName is the name of limit number n (RLIMIT_...), as /proc/PID/limits spells it.
func LimitName(n int) string {
	if n < 0 || n >= len(limitNames) {
		return fmt.Sprintf("limit %d", n)
	}
	return limitNames[n]
}

// NumLimits is the number of resource limits (RLIM_NLIMITS).
const NumLimits = 16

// Limits reads /proc/PID/limits.
func (p FS) Limits(pid int) ([]Limit, error) { return parse(p, ParseLimits, pid, "limits") }

// ParseLimits parses /proc/PID/limits; the result is indexed by the RLIMIT_ number and has NumLimits entries.
func ParseLimits(r io.Reader) ([]Limit, error) {
	out := make([]Limit, len(limitNames))
	found := 0
	err := eachLine(r, func(line string) error {
		for n, name := range limitNames {
			rest, ok := strings.CutPrefix(line, name+" ")
			if !ok {
				continue
			}
			f := strings.Fields(rest)
			if len(f) < 2 {
				return fmt.Errorf("%s: no soft and hard limit in %q", name, rest)
			}
			found++
			for i, dst := range []*uint64{&out[n].Soft, &out[n].Hard} {
				if f[i] == "unlimited" {
					*dst = Unlimited
					continue
				}
				v, err := number(name, f[i], 10)
				if err != nil {
					return err
				}
				*dst = v
			}
		}
		return nil
	})
	if err == nil && found != len(limitNames) {
		err = fmt.Errorf("limits: %d known limits instead of %d", found, len(limitNames))
	}
	return out, err
}
