//go:build linux

package task

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// dumpMM fills everything of the address space's record but its mappings.
func dumpMM(d *dumper) error {
	s, err := d.FS.Stat(d.Proc.PID)
	if err != nil {
		return err
	}
	aux, err := d.FS.Auxv(d.Proc.PID)
	if err != nil {
		return err
	}
	u, m := proto.Uint64, d.proc.MM
	m.MmStartCode, m.MmEndCode = u(s.StartCode), u(s.EndCode)
	m.MmStartData, m.MmEndData = u(s.StartData), u(s.EndData)
	m.MmStartStack, m.MmStartBrk = u(s.StartStack), u(s.StartBrk)
	m.MmArgStart, m.MmArgEnd, m.MmEnvStart, m.MmEnvEnd = u(s.ArgStart), u(s.ArgEnd), u(s.EnvStart), u(s.EnvEnd)
	for _, p := range aux {
		m.MmSavedAuxv = append(m.MmSavedAuxv, p.Type, p.Value)
		if p.Type == procfs.AuxNull {
			break
		}
	}
	m.ExeFileId = proto.Uint32(0)
	if d.AddPath != nil {
		id, err := d.AddPath(d.ctx, fmt.Sprintf("%d/exe", d.Proc.PID))
		if err != nil {
			return fmt.Errorf("exe: %w", err)
		}
		m.ExeFileId = proto.Uint32(id)
	}
	brk := d.batch.Call(unix.SYS_BRK, 0)
	dumpable := d.batch.Call(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	d.then(func() error {
		end, err := brk.Value()
		if err != nil {
			return err
		}
		v, err := dumpable.Value()
		m.MmBrk, m.Dumpable = u(end), proto.Int32(int32(v))
		return err
	})
	return nil
}

// RestoreMM tells the kernel where program, break, stack, arguments and environment of a skeleton are, gives it its
// auxiliary vector and its exe link. The mappings must stand, those of the seed must be gone (EBUSY), and the
// caller must still have the capabilities with which the skeleton was born. Exe is the path of the program in the
// skeleton's root; nameless is the open program if no path leads to it, else nil.
func RestoreMM(ctx context.Context, caller remote.Caller, img *images.Process, exe string, nameless *os.File) error {
	const mapSize = 104 // struct prctl_mm_map, include/uapi/linux/prctl.h
	m := img.MM
	aux := make([]byte, 0, 8*len(m.GetMmSavedAuxv()))
	for _, v := range m.GetMmSavedAuxv() {
		aux = binary.LittleEndian.AppendUint64(aux, v)
	}
	fd := freeFD(img)
	b := &remote.Batch{}
	var opened *remote.Result
	if nameless == nil {
		opened = b.Try(unix.SYS_OPENAT, unix.AT_FDCWD, b.String(exe), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	} else {
		if err := caller.Push(ctx, []remote.PushFile{{File: nameless, FD: fd, CloseOnExec: true}}); err != nil {
			return fmt.Errorf("pid %d: program %s: %w", img.PID, exe, err)
		}
		opened = b.Try(unix.SYS_FCNTL, fd, unix.F_DUPFD_CLOEXEC, 0)
	}
	// The number of the descriptor stands in the struct, so it must be known beforehand. EINVAL: it is the number.
	dup := b.Try(unix.SYS_DUP3, opened, fd, unix.O_CLOEXEC)
	arg := b.Buffer(mapSize)
	raw := arg.Bytes()
	for i, v := range []uint64{
		m.GetMmStartCode(), m.GetMmEndCode(), m.GetMmStartData(), m.GetMmEndData(), m.GetMmStartBrk(), m.GetMmBrk(),
		m.GetMmStartStack(), m.GetMmArgStart(), m.GetMmArgEnd(), m.GetMmEnvStart(), m.GetMmEnvEnd(),
	} {
		binary.LittleEndian.PutUint64(raw[8*i:], v)
	}
	binary.LittleEndian.PutUint32(raw[96:], uint32(len(aux)))
	binary.LittleEndian.PutUint32(raw[100:], uint32(fd))
	if len(aux) > 0 {
		arg.SetPointer(88, b.Bytes(aux), 0)
	}
	set := b.Try(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, arg, mapSize, 0)
	b.Try(unix.SYS_CLOSE, opened)
	b.Try(unix.SYS_CLOSE, fd)
	if err := caller.Run(ctx, b); err != nil {
		return err
	}
	if err := opened.Err(); err != nil {
		return fmt.Errorf("pid %d: program %s: %w", img.PID, exe, err)
	}
	if n, _ := opened.Value(); dup.Err() != nil && n != uint64(fd) {
		return fmt.Errorf("pid %d: program %s: descriptor %d: %w", img.PID, exe, fd, dup.Err())
	}
	if err := set.Err(); err != nil {
		return fmt.Errorf("pid %d: memory layout and exe link %s: %w", img.PID, exe, err)
	}
	return nil
}

// freeFD returns a number that none of the process's descriptors has. It is low enough for any limit.
func freeFD(img *images.Process) int { return freeFDFrom(img, 3) }

// freeFDFrom returns the first such number from the given one on.
func freeFDFrom(img *images.Process, fd uint32) int {
	used := map[uint32]bool{}
	for _, f := range img.FDs {
		used[f.GetFd()] = true
	}
	for used[fd] {
		fd++
	}
	return int(fd)
}
