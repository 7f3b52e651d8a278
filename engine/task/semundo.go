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

	"migrate/engine"
	"migrate/engine/images/imagespb"
	"migrate/engine/ns"
	"migrate/engine/peek"
	"migrate/engine/remote"
)

// What SEM_UNDO would undo (semop(2)) the kernel shows nobody, so it is read out of its memory (ipc/sem.c). It cannot be set
// either, but an operation with the flag leaves its inverse. When a tree is ended by a dump the kernel adjusts the host's
// semaphores, and the operation that is made again at the restore takes that back; those in a namespace of the tree were made anew
// with the values that they had, so there the operation is paired with one that leaves nothing.

// SemUndos reads adjustments of the processes of a stopped tree. The zero value is ready for use.
type SemUndos struct {
	// Leaves tells that the tree leaves the semaphores behind, so that none may be left to adjust.
	Leaves bool
	kernel *peek.Kernel
	failed bool           // this kernel cannot be read
	owners map[uint64]int // process by its list
}

// Close lets go of the kernel's memory.
func (u *SemUndos) Close() error {
	if u.kernel == nil {
		return nil
	}
	err := u.kernel.Close()
	u.kernel = nil
	return err
}

// Bounds of System V semaphores: the kernel's, include/uapi/linux/sem.h.
const (
	maxSemaphores = 32000
	maxUndoSets   = 1 << 15
	semUndoFlag   = 0x1000
	semNoWait     = 0o4000
)

// dumpSemUndo reads what a process has. Its threads share it, as they do by their birth.
func dumpSemUndo(d *dumper) error {
	if d.kernel == nil || d.SemUndo == nil {
		return nil
	}
	if !d.leader {
		if d.kernel.SemUndo != d.common.leader.kernel.SemUndo {
			return fmt.Errorf("semaphores are adjusted at the end of the thread and not of its process: %w", ErrNotCarried)
		}
		return nil
	}
	list := d.kernel.SemUndo
	if list == 0 {
		return nil
	}
	undos, err := d.SemUndo.read(list, d.Proc.PID)
	if err != nil || len(undos) == 0 {
		return err
	}
	if d.SemUndo.Leaves {
		return fmt.Errorf("semaphores of set %d of the host's are adjusted at its end (SEM_UNDO), and stay behind: %w", undos[0].GetId(), ErrNotCarried)
	}
	if by := d.SemUndo.owners[list]; by != 0 {
		return fmt.Errorf("it has them together with process %d (CLONE_SYSVSEM): %w", by, ErrNotCarried)
	}
	if d.SemUndo.owners == nil {
		d.SemUndo.owners = map[uint64]int{}
	}
	d.SemUndo.owners[list], d.proc.Extra.SemUndo = d.Proc.VPID, undos
	return nil
}

// Check names the adjustments of the processes of a running tree, for semaphores that would stay behind. What cannot be read, because
// it changes meanwhile or the kernel does not tell, is left to the stopped tree.
func (u *SemUndos) Check(r *ThreadReader, tree []*engine.Process) []engine.Obstacle {
	var out []engine.Obstacle
	for _, p := range tree {
		st, err := r.Read(p.PID)
		if err != nil || st.SemUndo == 0 {
			continue
		}
		undos, err := u.read(st.SemUndo, p.PID)
		if err != nil {
			continue
		}
		for _, s := range undos {
			out = append(out, engine.Obstacle{PID: p.PID, Kind: "semaphore-undo", Where: fmt.Sprintf("System V semaphore set %d", s.GetId()),
				Reason: "the process has changed it with SEM_UNDO, and it is in the host's IPC namespace, which stays behind", Remedy: "run it as a workload of its own (migrate run)"})
		}
	}
	return out
}

// read walks a list (struct sem_undo_list).
func (u *SemUndos) read(list uint64, pid int) ([]*imagespb.SemUndo, error) {
	if u.kernel == nil && !u.failed {
		var err error
		u.kernel, err = peek.Open()
		u.failed = err != nil
	}
	if u.failed {
		return nil, nil
	}
	head, err := u.kernel.Load("sem_undo_list", list)
	if err != nil {
		return nil, err
	}
	off, err := head.Offset("list_proc")
	if err != nil {
		return nil, err
	}
	next, err := head.Uint64("list_proc")
	var sizes map[int]int
	var out []*imagespb.SemUndo
	for n := 0; err == nil && next != list+off; n++ {
		if n == maxUndoSets {
			return nil, errors.New("the list of adjustments has no end")
		}
		if sizes == nil {
			if sizes, err = semaphoreSets(pid); err != nil {
				return nil, err
			}
		}
		var one *peek.View
		if one, err = u.kernel.Load("sem_undo", next); err != nil { // list_proc is its first member
			return nil, err
		}
		var s *imagespb.SemUndo
		if s, err = u.adjustments(one, sizes); err == nil && s != nil {
			out = append(out, s)
		}
		if err == nil {
			next, err = one.Uint64("list_proc")
		}
	}
	return out, err
}

// adjustments reads those of a set; nil if there are none.
func (u *SemUndos) adjustments(one *peek.View, sizes map[int]int) (*imagespb.SemUndo, error) {
	id, err := one.Uint32("semid")
	if err != nil || int32(id) < 0 {
		return nil, err // the set was removed
	}
	off, err := one.Offset("semadj")
	if err != nil {
		return nil, err
	}
	at := one.Addr + off
	if off%8 == 0 { // a pointer, before the array was made a part of the struct
		if p, err := one.Uint64("semadj"); err == nil {
			at = p
		}
	}
	n, ok := sizes[int(id)]
	if !ok || n > maxSemaphores {
		return nil, fmt.Errorf("semaphore set %d, which has adjustments, is not in /proc/sysvipc/sem", id)
	}
	raw := make([]byte, 2*n)
	if err := u.kernel.Read(at, raw); err != nil {
		return nil, err
	}
	s := &imagespb.SemUndo{Id: id}
	any := false
	for i := 0; i < len(raw); i += 2 {
		v := int16(binary.NativeEndian.Uint16(raw[i:]))
		s.Adjustments = append(s.Adjustments, int32(v))
		any = any || v != 0
	}
	if !any {
		return nil, nil
	}
	return s, nil
}

// semaphoreSets are the sizes of the sets in the IPC namespace of a process, by id (proc_sysvipc(5)).
func semaphoreSets(pid int) (map[int]int, error) {
	sizes := map[int]int{}
	err := ns.Inside(pid, unix.CLONE_NEWIPC, func() error {
		text, err := os.ReadFile("/proc/sysvipc/sem")
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(text), "\n")[1:] {
			f := strings.Fields(line) // key semid perms nsems
			if len(f) < 4 {
				continue
			}
			id, err := strconv.Atoi(f[1])
			n, err2 := strconv.Atoi(f[3])
			if err := errors.Join(err, err2); err != nil {
				return fmt.Errorf("/proc/sysvipc/sem: %w", err)
			}
			sizes[id] = n
		}
		return nil
	})
	return sizes, err
}

// restoreSemUndo makes operations that leave the adjustments.
func restoreSemUndo(r *restorer) error {
	spaces := r.Header.GetNamespaces()
	anew := (spaces.GetOwn()|spaces.GetAround())&unix.CLONE_NEWIPC != 0
	for _, s := range r.Image.Extra.GetSemUndo() {
		for n, v := range s.GetAdjustments() {
			if v == 0 {
				continue
			}
			op := func(delta int32, flags uint16) []byte {
				b := binary.NativeEndian.AppendUint16(nil, uint16(n))
				b = binary.NativeEndian.AppendUint16(b, uint16(delta))
				return binary.NativeEndian.AppendUint16(b, flags|semNoWait)
			}
			ops := op(-v, semUndoFlag)
			if plain := op(v, 0); anew && v > 0 {
				ops = append(plain, ops...)
			} else if anew {
				ops = append(ops, plain...)
			}
			r.require(r.semop(s.GetId(), ops), "adjustment of semaphore %d in set %d by %d (SEM_UNDO); the set must be there as it was, and nobody may have taken it", n, s.GetId(), v)
			if r.batch.Size() > maxBatch {
				if err := r.flush(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (r *restorer) semop(id uint32, ops []byte) *remote.Result {
	return r.batch.Try(unix.SYS_SEMOP, id, r.batch.Bytes(ops), len(ops)/6)
}
