package procfs

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A Set is a set of signals or capabilities: bit n-1 stands for signal n, bit n for capability n.
type Set uint64

// HasSignal tells whether signal n, counted from 1, is in the set.
func (s Set) HasSignal(n int) bool { return n >= 1 && n <= 64 && s>>(n-1)&1 != 0 }

// Status is /proc/PID/status (proc_pid_status(5)). Sizes are in bytes.
type Status struct {
	Name                           string // at most 15 bytes; escapes undone
	Umask                          uint32
	HasUmask                       bool // a task without a filesystem context (a zombie) has none
	State                          byte // as in Stat
	TGID, PID, PPID, TracerPID     int
	UID, GID                       [4]uint32 // real, effective, saved, filesystem
	FDSize                         int
	Groups                         []uint32
	NSTGID, NSPID, NSPGID, NSSID   []int // outermost namespace of the reader first
	KThread                        bool
	VMSize, VMRSS, VMLck, VMSwap   uint64
	RSSAnon, RSSFile, RSSShmem     uint64
	VMPTE                          uint64
	CoreDumping                    bool
	THPEnabled                     bool
	HasTHP                         bool // the kernel and the task tell about THPEnabled
	Threads                        int
	SigQueued, SigQueueLimit       uint64
	SigPnd, ShdPnd                 Set
	SigBlk, SigIgn, SigCgt         Set
	CapInh, CapPrm, CapEff, CapBnd Set
	CapAmb                         Set
	NoNewPrivs                     bool
	Seccomp                        int // 0 off, 1 strict, 2 filter
	SeccompFilters                 int
	SpeculationStoreBypass         string
	SpeculationIndirectBranch      string
	CPUsAllowed                    []int // CPU numbers
	MemsAllowed                    []int // memory node numbers
	VoluntarySwitches              uint64
	NonvoluntarySwitches           uint64
	ThreadFeatures                 []string // x86_Thread_features: "shstk", "wrss"
	ThreadFeaturesLocked           []string
}

// Status reads /proc/PID/status.
func (p FS) Status(pid int) (*Status, error) { return parse(p, ParseStatus, pid, "status") }

// ThreadStatus reads /proc/PID/task/TID/status.
func (p FS) ThreadStatus(pid, tid int) (*Status, error) {
	return parse(p, ParseStatus, pid, "task", tid, "status")
}

// ParseStatus parses /proc/PID/status.
func ParseStatus(r io.Reader) (*Status, error) {
	s := &Status{}
	seen := 0
	err := eachLine(r, func(line string) error {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("%.40q has no colon", line)
		}
		set := statusFields[name]
		if set == nil {
			return nil
		}
		seen++
		if name != "Name" {
			value = strings.TrimSpace(value)
		}
		if err := set(s, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err == nil && seen == 0 {
		err = errors.New("status: no known field")
	}
	return s, err
}

type statusSetter func(s *Status, value string) error

// field makes a setter from a parser of the value and the place that it fills.
func field[T any](parser func(string) (T, error), at func(*Status) *T) statusSetter {
	return func(s *Status, value string) error {
		v, err := parser(value)
		if err != nil {
			return err
		}
		*at(s) = v
		return nil
	}
}

var statusFields = map[string]statusSetter{
	"Name":  field(statusName, func(s *Status) *string { return &s.Name }),
	"State": field(firstByte, func(s *Status) *byte { return &s.State }),
	"Umask": func(s *Status, v string) error {
		n, err := strconv.ParseUint(v, 8, 16)
		s.Umask, s.HasUmask = uint32(n), err == nil
		return err
	},
	"Tgid":                       field(strconv.Atoi, func(s *Status) *int { return &s.TGID }),
	"Pid":                        field(strconv.Atoi, func(s *Status) *int { return &s.PID }),
	"PPid":                       field(strconv.Atoi, func(s *Status) *int { return &s.PPID }),
	"TracerPid":                  field(strconv.Atoi, func(s *Status) *int { return &s.TracerPID }),
	"FDSize":                     field(strconv.Atoi, func(s *Status) *int { return &s.FDSize }),
	"Threads":                    field(strconv.Atoi, func(s *Status) *int { return &s.Threads }),
	"Seccomp":                    field(strconv.Atoi, func(s *Status) *int { return &s.Seccomp }),
	"Seccomp_filters":            field(strconv.Atoi, func(s *Status) *int { return &s.SeccompFilters }),
	"Uid":                        field(fourIDs, func(s *Status) *[4]uint32 { return &s.UID }),
	"Gid":                        field(fourIDs, func(s *Status) *[4]uint32 { return &s.GID }),
	"Groups":                     field(groupList, func(s *Status) *[]uint32 { return &s.Groups }),
	"NStgid":                     field(idList, func(s *Status) *[]int { return &s.NSTGID }),
	"NSpid":                      field(idList, func(s *Status) *[]int { return &s.NSPID }),
	"NSpgid":                     field(idList, func(s *Status) *[]int { return &s.NSPGID }),
	"NSsid":                      field(idList, func(s *Status) *[]int { return &s.NSSID }),
	"Kthread":                    field(zeroOne, func(s *Status) *bool { return &s.KThread }),
	"NoNewPrivs":                 field(zeroOne, func(s *Status) *bool { return &s.NoNewPrivs }),
	"CoreDumping":                field(zeroOne, func(s *Status) *bool { return &s.CoreDumping }),
	"VmSize":                     field(statusKB, func(s *Status) *uint64 { return &s.VMSize }),
	"VmRSS":                      field(statusKB, func(s *Status) *uint64 { return &s.VMRSS }),
	"VmLck":                      field(statusKB, func(s *Status) *uint64 { return &s.VMLck }),
	"VmSwap":                     field(statusKB, func(s *Status) *uint64 { return &s.VMSwap }),
	"VmPTE":                      field(statusKB, func(s *Status) *uint64 { return &s.VMPTE }),
	"RssAnon":                    field(statusKB, func(s *Status) *uint64 { return &s.RSSAnon }),
	"RssFile":                    field(statusKB, func(s *Status) *uint64 { return &s.RSSFile }),
	"RssShmem":                   field(statusKB, func(s *Status) *uint64 { return &s.RSSShmem }),
	"SigPnd":                     field(hexSet, func(s *Status) *Set { return &s.SigPnd }),
	"ShdPnd":                     field(hexSet, func(s *Status) *Set { return &s.ShdPnd }),
	"SigBlk":                     field(hexSet, func(s *Status) *Set { return &s.SigBlk }),
	"SigIgn":                     field(hexSet, func(s *Status) *Set { return &s.SigIgn }),
	"SigCgt":                     field(hexSet, func(s *Status) *Set { return &s.SigCgt }),
	"CapInh":                     field(hexSet, func(s *Status) *Set { return &s.CapInh }),
	"CapPrm":                     field(hexSet, func(s *Status) *Set { return &s.CapPrm }),
	"CapEff":                     field(hexSet, func(s *Status) *Set { return &s.CapEff }),
	"CapBnd":                     field(hexSet, func(s *Status) *Set { return &s.CapBnd }),
	"CapAmb":                     field(hexSet, func(s *Status) *Set { return &s.CapAmb }),
	"Speculation_Store_Bypass":   field(text, func(s *Status) *string { return &s.SpeculationStoreBypass }),
	"SpeculationIndirectBranch":  field(text, func(s *Status) *string { return &s.SpeculationIndirectBranch }),
	"Cpus_allowed_list":          field(rangeList, func(s *Status) *[]int { return &s.CPUsAllowed }),
	"Mems_allowed_list":          field(rangeList, func(s *Status) *[]int { return &s.MemsAllowed }),
	"voluntary_ctxt_switches":    field(decimal, func(s *Status) *uint64 { return &s.VoluntarySwitches }),
	"nonvoluntary_ctxt_switches": field(decimal, func(s *Status) *uint64 { return &s.NonvoluntarySwitches }),
	"x86_Thread_features":        field(words, func(s *Status) *[]string { return &s.ThreadFeatures }),
	"x86_Thread_features_locked": field(words, func(s *Status) *[]string { return &s.ThreadFeaturesLocked }),
	"THP_enabled": func(s *Status, v string) (err error) {
		s.THPEnabled, err = zeroOne(v)
		s.HasTHP = err == nil
		return err
	},
	"SigQ": func(s *Status, v string) (err error) {
		a, b, _ := strings.Cut(v, "/")
		if s.SigQueued, err = decimal(a); err == nil {
			s.SigQueueLimit, err = decimal(b)
		}
		return err
	},
}

func text(v string) (string, error)    { return v, nil }
func words(v string) ([]string, error) { return strings.Fields(v), nil }
func decimal(v string) (uint64, error) { return strconv.ParseUint(v, 10, 64) }
func idList(v string) ([]int, error)   { return ids("list", v) }
func statusKB(v string) (uint64, error) {
	return kilobytes("size", v)
}

func hexSet(v string) (Set, error) {
	n, err := strconv.ParseUint(v, 16, 64)
	return Set(n), err
}

// statusName undoes the escapes of newline and backslash (fs/proc/array.c, proc_task_name).
func statusName(v string) (string, error) {
	v = strings.TrimPrefix(v, "\t")
	return strings.NewReplacer(`\n`, "\n", `\\`, `\`).Replace(v), nil
}

func firstByte(v string) (byte, error) {
	if v == "" {
		return 0, errors.New("is empty")
	}
	return v[0], nil
}

func zeroOne(v string) (bool, error) {
	switch v {
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%q is neither 0 nor 1", v)
}

func groupList(v string) ([]uint32, error) {
	var out []uint32
	for f := range strings.FieldsSeq(v) {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return nil, err
		}
		out = append(out, uint32(n))
	}
	return out, nil
}

func fourIDs(v string) ([4]uint32, error) {
	var out [4]uint32
	l, err := groupList(v)
	if err == nil && len(l) != 4 {
		err = fmt.Errorf("%d ids instead of 4", len(l))
	}
	copy(out[:], l)
	return out, err
}

// maxListed bounds what a range list may expand to; a kernel has at most 8,192 processors.
const maxListed = 1 << 16

// rangeList parses "0-3,8,10-11" (bitmap "list" format, Documentation/admin-guide/kernel-parameters.rst).
func rangeList(v string) ([]int, error) {
	var out []int
	if v == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(v, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(lo, 10, 31)
		if err != nil {
			return nil, err
		}
		b := a
		if isRange {
			if b, err = strconv.ParseUint(hi, 10, 31); err != nil {
				return nil, err
			}
		}
		if b < a || b-a+uint64(len(out)) >= maxListed {
			return nil, fmt.Errorf("range %q is reversed or too long", part)
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	return out, nil
}

// ParseCPUList parses a list of processors such as "0-3,8", as sysfs has them.
func ParseCPUList(s string) ([]int, error) { return rangeList(s) }
