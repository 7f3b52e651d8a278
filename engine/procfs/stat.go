package procfs

import (
	"fmt"
	"io"
	"strings"
)

// maxStat bounds /proc/PID/stat: 52 numbers and a name.
const maxStat = 8 << 10

// Stat is /proc/PID/stat (proc_pid_stat(5)). Times are in clock ticks, sizes in bytes unless said otherwise. The
// kernel hides addresses (as 0 or 1) from readers that may not trace the process.
type Stat struct {
	PID                                 int
	Comm                                string // up to 15 bytes for a process; may hold blanks and parentheses
	State                               byte   // R, S, D, T (stopped), t (traced), Z, X, I, P
	PPID, PGID, SID                     int    // 0 when outside the pid namespace
	TTY                                 int32  // device number of the controlling terminal; 0 for none
	TTYPGID                             int    // foreground group of the terminal; -1 for none
	Flags                               uint64 // PF_* of include/linux/sched.h
	MinFlt, CMinFlt, MajFlt, CMajFlt    uint64
	UTime, STime                        uint64
	CUTime, CSTime                      int64
	Priority, Nice                      int64
	Threads                             int64
	ITRealValue                         int64
	StartTime                           uint64 // after boot, in the boot-time clock of the reader's time namespace
	VSize                               uint64
	RSS                                 int64 // pages
	RSSLim                              uint64
	StartCode, EndCode, StartStack      uint64
	KstkESP, KstkEIP                    uint64
	Signal, Blocked, SigIgnore, SigCtch uint64 // first 31 signals only; use Status
	WChan, NSwap, CNSwap                uint64
	ExitSignal                          int // the signal its parent gets; -1 for a thread
	Processor                           int
	RTPriority, Policy                  uint64
	DelayBlkIO, GuestTime               uint64
	CGuestTime                          int64
	StartData, EndData, StartBrk        uint64
	ArgStart, ArgEnd, EnvStart, EnvEnd  uint64
	ExitCode                            int // as wait(2) tells it
}

// Flags of Stat (include/linux/sched.h).
const (
	FlagExiting    = 0x00000004 // PF_EXITING
	FlagIOWorker   = 0x00000010 // PF_IO_WORKER
	FlagForkNoExec = 0x00000040 // PF_FORKNOEXEC
	FlagUserWorker = 0x00004000 // PF_USER_WORKER, since 6.4
	FlagKThread    = 0x00200000 // PF_KTHREAD
)

// Stat reads /proc/PID/stat.
func (p FS) Stat(pid int) (*Stat, error) { return parse(p, ParseStat, pid, "stat") }

// ThreadStat reads /proc/PID/task/TID/stat.
func (p FS) ThreadStat(pid, tid int) (*Stat, error) {
	return parse(p, ParseStat, pid, "task", tid, "stat")
}

// ParseStat parses /proc/PID/stat. The name is everything between the first "(" and the last ")".
func ParseStat(r io.Reader) (*Stat, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxStat+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxStat {
		return nil, fmt.Errorf("stat: more than %d bytes", maxStat)
	}
	line := string(b)
	open, shut := strings.Index(line, "("), strings.LastIndex(line, ")")
	if open < 0 || shut < open {
		return nil, fmt.Errorf("comm: no name in parentheses in %.80q", line)
	}
	s := &Stat{Comm: line[open+1 : shut]}
	if s.PID, err = id("pid", line[:open]); err != nil {
		return nil, err
	}
	f := strings.Fields(line[shut+1:])
	// Fields 3..37 exist since 2.6 at least, up to cnswap; later ones came one by one and may be missing.
	if len(f) < 35 || len(f[0]) != 1 {
		return nil, fmt.Errorf("stat: %d fields after the name, at least 35 are needed", len(f))
	}
	s.State = f[0][0]
	for i, dst := range s.fields() {
		if i+1 >= len(f) {
			break
		}
		if err := setField(fmt.Sprintf("field %d", i+4), f[i+1], dst); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// fields lists where fields 4 and following go.
func (s *Stat) fields() []any {
	return []any{
		&s.PPID, &s.PGID, &s.SID, &s.TTY, &s.TTYPGID, &s.Flags, &s.MinFlt, &s.CMinFlt, &s.MajFlt, &s.CMajFlt,
		&s.UTime, &s.STime, &s.CUTime, &s.CSTime, &s.Priority, &s.Nice, &s.Threads, &s.ITRealValue, &s.StartTime,
		&s.VSize, &s.RSS, &s.RSSLim, &s.StartCode, &s.EndCode, &s.StartStack, &s.KstkESP, &s.KstkEIP,
		&s.Signal, &s.Blocked, &s.SigIgnore, &s.SigCtch, &s.WChan, &s.NSwap, &s.CNSwap, &s.ExitSignal,
		&s.Processor, &s.RTPriority, &s.Policy, &s.DelayBlkIO, &s.GuestTime, &s.CGuestTime,
		&s.StartData, &s.EndData, &s.StartBrk, &s.ArgStart, &s.ArgEnd, &s.EnvStart, &s.EnvEnd, &s.ExitCode,
	}
}

func setField(name, s string, dst any) (err error) {
	var i int64
	switch d := dst.(type) {
	case *uint64:
		*d, err = number(name, s, 10)
	case *int64:
		*d, err = integer(name, s, 64)
	case *int32:
		i, err = integer(name, s, 32)
		*d = int32(i)
	case *int:
		*d, err = id(name, s)
	}
	return err
}
