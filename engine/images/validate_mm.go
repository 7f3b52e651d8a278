package images

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine/images/imagespb"
)

const (
	maxVMAs  = 1 << 22
	maxAuxv  = 512 // words
	maxKey   = 15  // of protection keys
	maxNodes = 128 // bytes of a mask of memory nodes
	// maxAddr is the end of what a program can map: 57 bits with five levels of page tables on amd64, 52 on arm64.
	maxAddr = 1 << 56
	// vsyscall is the one page of the kernel's half that a program sees, on amd64.
	vsyscall = 0xffffffffff600000
)

// validateMM checks an address space against the files of its checkpoint or layout.
func validateMM(pid uint32, m *mm.MmEntry, files map[uint32]*fdinfo.FileEntry) error {
	name := fmt.Sprintf("mm-%d.img", pid)
	for _, r := range []struct {
		field      string
		start, end uint64
	}{
		{"mm_start_code", m.GetMmStartCode(), m.GetMmEndCode()}, {"mm_start_data", m.GetMmStartData(), m.GetMmEndData()},
		{"mm_start_brk", m.GetMmStartBrk(), m.GetMmBrk()}, {"mm_arg_start", m.GetMmArgStart(), m.GetMmArgEnd()},
		{"mm_env_start", m.GetMmEnvStart(), m.GetMmEnvEnd()}, {"mm_start_stack", m.GetMmStartStack(), m.GetMmStartStack()},
	} {
		if r.start > r.end || r.end >= maxAddr {
			return fmt.Errorf("%s: %s: 0x%x to 0x%x is no range of addresses", name, r.field, r.start, r.end)
		}
	}
	if n := len(m.GetMmSavedAuxv()); n > maxAuxv || n%2 != 0 {
		return fmt.Errorf("%s: mm_saved_auxv: %d words", name, n)
	}
	if files[m.GetExeFileId()].GetReg() == nil {
		return fmt.Errorf("%s: exe_file_id: %d is no regular file of files.img", name, m.GetExeFileId())
	}
	if n := len(m.GetVmas()); n > maxVMAs {
		return fmt.Errorf("%s: vmas: %d", name, n)
	}
	var end uint64
	for i, v := range m.GetVmas() {
		if err := validateVMA(v, end, files); err != nil {
			return fmt.Errorf("%s: vmas[%d] (0x%x): %w", name, i, v.GetStart(), err)
		}
		end = v.GetEnd()
	}
	return nil
}

// validateVMA checks a mapping that follows one which ends at the address last.
func validateVMA(v *vma.VmaEntry, last uint64, files map[uint32]*fdinfo.FileEntry) error {
	start, end := v.GetStart(), v.GetEnd()
	if start%PageSize != 0 || end%PageSize != 0 || start >= end {
		return fmt.Errorf("end: 0x%x makes no range of pages", end)
	}
	if start < last {
		return fmt.Errorf("start: the mapping before it ends at 0x%x", last)
	}
	if end > maxAddr && (start != vsyscall || v.GetStatus()&VMAVsyscall == 0) {
		return fmt.Errorf("end: 0x%x is beyond the end of the address space", end)
	}
	if v.GetProt() > 7 {
		return fmt.Errorf("prot: 0x%x", v.GetProt())
	}
	if v.GetPgoff() >= 1<<63 || v.GetPgoff()%PageSize != 0 {
		return fmt.Errorf("pgoff: 0x%x", v.GetPgoff())
	}
	if v.GetStatus()&(VMAFilePrivate|VMAFileShared) != 0 {
		id := v.GetShmid()
		if id > 1<<32-1 || files[uint32(id)] == nil {
			return fmt.Errorf("shmid: %d is not in files.img", id)
		}
	}
	return nil
}

// validateMarks checks what mappings are given last.
func validateMarks(pid uint32, x *imagespb.ProcessExtra) error {
	bad := func(start, end uint64) bool {
		return start%PageSize != 0 || end%PageSize != 0 || start >= end || end > maxAddr
	}
	if len(x.GetVmaMarks()) > maxVMAs || len(x.GetGuards()) > maxVMAs {
		return fmt.Errorf("migrate.img: process %d: vma_marks and guards: %d and %d", pid, len(x.GetVmaMarks()), len(x.GetGuards()))
	}
	for i, m := range x.GetVmaMarks() {
		if bad(m.GetStart(), m.GetEnd()) || m.GetPkey() > maxKey {
			return fmt.Errorf("migrate.img: process %d: vma_marks[%d]: 0x%x to 0x%x, key %d", pid, i, m.GetStart(), m.GetEnd(), m.GetPkey())
		}
	}
	for i, g := range x.GetGuards() {
		if bad(g.GetStart(), g.GetEnd()) {
			return fmt.Errorf("migrate.img: process %d: guards[%d]: 0x%x to 0x%x", pid, i, g.GetStart(), g.GetEnd())
		}
	}
	if err := validateSemUndo(pid, x); err != nil {
		return err
	}
	end := uint64(0)
	for i, p := range x.GetMemoryPolicies() {
		if bad(p.GetStart(), p.GetEnd()) || p.GetStart() < end || len(p.GetNodes()) > maxNodes || i == maxVMAs {
			return fmt.Errorf("migrate.img: process %d: memory_policies[%d]: 0x%x to 0x%x, %d bytes of nodes", pid, i, p.GetStart(), p.GetEnd(), len(p.GetNodes()))
		}
		end = p.GetEnd()
	}
	if x.GetPkeys() >= 1<<(maxKey+1) || x.GetLockFuture() > 7 {
		return fmt.Errorf("migrate.img: process %d: pkeys: 0x%x, lock_future: %d", pid, x.GetPkeys(), x.GetLockFuture())
	}
	return nil
}

// validateSemUndo checks adjustments of semaphores (semop(2)): SEMMSL and SEMAEM bound them.
func validateSemUndo(pid uint32, x *imagespb.ProcessExtra) error {
	const maxSemaphores, maxAdjustment = 32000, 1<<15 - 1
	if n := len(x.GetSemUndo()); n > maxIPC {
		return fmt.Errorf("migrate.img: process %d: sem_undo: %d sets", pid, n)
	}
	for i, s := range x.GetSemUndo() {
		if len(s.GetAdjustments()) > maxSemaphores || s.GetId() > 1<<31-1 {
			return fmt.Errorf("migrate.img: process %d: sem_undo[%d]: set %d with %d semaphores", pid, i, s.GetId(), len(s.GetAdjustments()))
		}
		for n, v := range s.GetAdjustments() {
			if v < -maxAdjustment || v > maxAdjustment {
				return fmt.Errorf("migrate.img: process %d: sem_undo[%d].adjustments[%d]: %d", pid, i, n, v)
			}
		}
	}
	return nil
}
