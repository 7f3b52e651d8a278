//go:build linux

package task

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

func dumpName(d *dumper) error {
	var name string
	if d.kernel != nil {
		name = d.kernel.Name
	} else {
		var err error
		if name, err = d.FS.Comm(d.Proc.PID, d.tid()); err != nil {
			return err
		}
	}
	d.thread.Core.ThreadCore.Comm = proto.String(name)
	if d.leader {
		d.thread.Core.Tc.Comm = proto.String(name)
	}
	return nil
}

func restoreName(r *restorer) error {
	r.batch.Call(unix.SYS_PRCTL, unix.PR_SET_NAME, r.batch.String(r.core().GetComm()), 0, 0, 0)
	return nil
}

// dumpPersonality takes the leader's: threads inherit it, and a thread that differs is not carried.
func dumpPersonality(d *dumper) error {
	v, err := d.personality()
	if err != nil {
		return err
	}
	if d.leader {
		d.thread.Core.Tc.Personality = proto.Uint32(v)
	} else if v != d.common.leader.thread.Core.Tc.GetPersonality() {
		return fmt.Errorf("0x%x, unlike that of its process: %w", v, ErrNotCarried)
	}
	return nil
}

func (d *dumper) personality() (uint32, error) {
	if d.kernel != nil {
		return d.kernel.Personality, nil
	}
	b, err := d.FS.Bytes(d.Proc.PID, "task", d.tid(), "personality")
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 32)
	return uint32(v), err
}

func restorePersonality(r *restorer) error {
	p := r.Image.Leader().GetCore().GetTc().GetPersonality()
	r.require(r.batch.Try(unix.SYS_PERSONALITY, p), "0x%x", p)
	return nil
}

// Commands of membarrier(2), and the bit by which GET_REGISTRATIONS (6.3) tells of each registration.
const (
	membarrierGetRegistrations = 1 << 9
	membarrierGlobalExpedited  = 1 << 1
	membarrierExpedited        = 1 << 3
)

var membarrierRegister = []uint64{
	1 << 2, // REGISTER_GLOBAL_EXPEDITED
	1 << 4, // REGISTER_PRIVATE_EXPEDITED
	1 << 6, // REGISTER_PRIVATE_EXPEDITED_SYNC_CORE
	1 << 8, // REGISTER_PRIVATE_EXPEDITED_RSEQ
}

func dumpAttributes(d *dumper) error {
	x := d.proc.Extra
	tc := d.thread.Core.Tc
	oom, err := d.number("oom_score_adj", 10)
	if err != nil {
		return err
	}
	tc.OomScoreAdj = proto.Int32(int32(oom))
	filter, err := d.number("coredump_filter", 16)
	if err != nil && !errors.Is(err, procfs.ErrGone) {
		return err
	}
	x.CoredumpFilter = uint32(filter)
	st, err := d.FS.Stat(d.Proc.PID)
	if err != nil {
		return err
	}
	x.ExitSignal = int32(st.ExitSignal)
	if x.Autogroup, err = d.autogroup(); err != nil {
		return err
	}
	reaper := d.batch.Buffer(4)
	d.batch.Call(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, reaper, 0, 0, 0)
	thp := d.batch.Try(unix.SYS_PRCTL, unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
	merge := d.batch.Try(unix.SYS_PRCTL, unix.PR_GET_MEMORY_MERGE, 0, 0, 0, 0)
	mdwe := d.batch.Try(unix.SYS_PRCTL, unix.PR_GET_MDWE, 0, 0, 0, 0)
	barriers := d.batch.Try(unix.SYS_MEMBARRIER, membarrierGetRegistrations, 0, 0)
	// Kernels before 6.3 do not list registrations, but a private barrier says EPERM without one.
	private := d.batch.Try(unix.SYS_MEMBARRIER, membarrierExpedited, 0, 0)
	d.then(func() error {
		on := func(r *remote.Result) uint64 { v, _ := r.Value(); return v } // what a kernel does not know is off
		tc.ChildSubreaper = proto.Bool(binary.LittleEndian.Uint32(reaper.Bytes()) != 0)
		x.ThpDisable, x.MemoryMerge, x.Mdwe = on(thp), on(merge) != 0, uint32(on(mdwe))
		d.proc.MM.ThpDisabled = proto.Bool(on(thp) != 0)
		if v, err := barriers.Value(); err == nil {
			tc.MembarrierRegistrationMask = proto.Uint32(uint32(v))
		} else if private.Err() == nil {
			tc.MembarrierRegistrationMask = proto.Uint32(1 << 4)
		}
		return nil
	})
	return nil
}

// autogroup is the nice value of a session's group of the scheduler (sched(7)), for the session's leader; 0 if the kernel has none.
func (d *dumper) autogroup() (int32, error) {
	if d.Proc.VSID != d.Proc.VPID {
		return 0, nil
	}
	b, err := d.FS.Bytes(d.Proc.PID, "autogroup")
	if errors.Is(err, procfs.ErrGone) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	_, text, ok := strings.Cut(strings.TrimSpace(string(b)), " nice ") // "/autogroup-25 nice 0"
	if !ok {
		return 0, nil // a task that is in none
	}
	nice, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("autogroup: %w", err)
	}
	return int32(nice), nil
}

// number reads a file of one number in the process's directory.
func (d *dumper) number(name string, base int) (int64, error) {
	b, err := d.FS.Bytes(d.Proc.PID, name)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(strings.TrimSpace(string(b)), base, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

func restoreAttributes(r *restorer) error {
	x, tc := r.Image.Extra, r.thread.Core.GetTc()
	if err := r.writeNumber("oom_score_adj", strconv.Itoa(int(tc.GetOomScoreAdj()))); err != nil {
		return err
	}
	if err := r.writeNumber("coredump_filter", "0x"+strconv.FormatUint(uint64(x.GetCoredumpFilter()), 16)); err != nil {
		return err
	}
	if nice := x.GetAutogroup(); nice != 0 { // the session is new here, and its group has 0
		path := r.FS.Path(r.caller.PID(), "autogroup")
		if err := os.WriteFile(path, []byte(strconv.Itoa(int(nice))), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("autogroup: %d: %w", nice, err)
		}
	}
	set := func(what string, args ...any) { r.require(r.batch.Try(unix.SYS_PRCTL, args...), "%s", what) }
	if tc.GetChildSubreaper() {
		set("child subreaper", unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	if v := x.GetThpDisable(); v != 0 {
		set("disabled huge pages", unix.PR_SET_THP_DISABLE, 1, v&^1, 0, 0)
	}
	if x.GetMemoryMerge() {
		set("memory merging", unix.PR_SET_MEMORY_MERGE, 1, 0, 0, 0)
	}
	if x.GetMdwe() != 0 {
		set("memory-deny-write-execute", unix.PR_SET_MDWE, x.GetMdwe(), 0, 0, 0)
	}
	for _, v := range x.GetVmaNames() {
		r.require(r.batch.Try(unix.SYS_PRCTL, unix.PR_SET_VMA, unix.PR_SET_VMA_ANON_NAME, v.GetStart(), v.GetEnd()-v.GetStart(), r.batch.String(v.GetName())),
			"name %q of the mapping at 0x%x", v.GetName(), v.GetStart())
		if r.batch.Size() > maxBatch {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	for _, cmd := range membarrierRegister {
		if uint64(tc.GetMembarrierRegistrationMask())&cmd != 0 {
			r.require(r.batch.Try(unix.SYS_MEMBARRIER, cmd, 0, 0), "membarrier registration 0x%x", cmd)
		}
	}
	return nil
}

// writeNumber writes a file of the process's directory unless it holds the number already.
func (r *restorer) writeNumber(name, value string) error {
	path := r.FS.Path(r.caller.PID(), name)
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	base := 10
	if strings.HasPrefix(value, "0x") {
		base = 16
	}
	have, err := strconv.ParseInt(strings.TrimSpace(string(old)), base, 64)
	want, err2 := strconv.ParseInt(strings.TrimPrefix(value, "0x"), base, 64)
	if err == nil && err2 == nil && have == want {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("%s: %s instead of %s (lowering it below the agent's own needs CAP_SYS_RESOURCE): %w", name, value, strings.TrimSpace(string(old)), err)
	}
	return nil
}
