//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A VMA is a mapping as the kernel holds it (struct vm_area_struct). The bits of Flags are those of the running kernel.
type VMA struct{ Start, End, Flags uint64 }

// VMAs lists mappings by a BPF program that the kernel runs for each of them (an iterator; Linux 6.1 with
// CONFIG_DEBUG_INFO_BTF). Unlike /proc/PID/smaps this walks no page tables. Its methods may be called from any goroutine.
type VMAs struct{ prog int }

const (
	vmaRecord = 24
	maxOwn    = 1 << 12 // mappings of this program, to try it out
)

// OpenVMAs loads the program. An error means that this kernel cannot be asked, and why. It takes some 10 to 50 ms.
func OpenVMAs() (*VMAs, error) {
	t, err := Kernel("vm_area_struct", "bpf_iter_task_vma")
	if err != nil {
		return nil, err
	}
	iterator := t.Func("bpf_iter_task_vma")
	if iterator == 0 {
		return nil, errors.New("this kernel has no BPF iterator over mappings (Linux 5.12 has)")
	}
	var at [3]int32
	for i, name := range []string{"vm_start", "vm_end", "vm_flags"} {
		off, err := t.Member("vm_area_struct", name)
		if err != nil {
			return nil, err
		}
		at[i] = int32(off)
	}
	prog, err := LoadIterator(iterator, vmaProgram(at))
	if err != nil {
		return nil, fmt.Errorf("loading the BPF program for mappings: %w", err)
	}
	v := &VMAs{prog}
	// A kernel before 6.1 takes the thread's id for padding and would visit all threads.
	list, err := v.Read(unix.Gettid(), maxOwn)
	for i := 0; err == nil && i < len(list); i++ {
		if m := list[i]; m.Start >= m.End || m.Start%4096 != 0 || m.End%4096 != 0 || i > 0 && m.Start < list[i-1].End {
			err = fmt.Errorf("mapping %d of %d is 0x%x-0x%x", i, len(list), m.Start, m.End)
		}
	}
	if err == nil && len(list) == 0 {
		err = errors.New("there are none")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading this program's own mappings: %w", err), v.Close())
	}
	return v, nil
}

// Close unloads the program.
func (v *VMAs) Close() error { return unix.Close(v.prog) }

// ErrDisorder means that the kernel did not list the mappings each once and in order. It hands them out some 1,365 at a time, and
// Linux 6.18 was seen to go round in circles after that in a program with 40,000.
var ErrDisorder = errors.New("the kernel does not list the mappings in order")

// Read lists the mappings of a thread's memory, most at most, in the order of their addresses; the vsyscall page is not among them.
// While the program runs, it may change its mappings between two of them. The error is ErrDisorder if there are more.
func (v *VMAs) Read(tid, most int) ([]VMA, error) {
	raw, err := RunIterator(v.prog, uint32(tid), vmaRecord*(most+1))
	if err != nil {
		return nil, fmt.Errorf("mappings of thread %d: %w", tid, err)
	}
	out := make([]VMA, 0, len(raw)/vmaRecord)
	for ne := binary.NativeEndian; len(raw) >= vmaRecord; raw = raw[vmaRecord:] {
		m := VMA{ne.Uint64(raw), ne.Uint64(raw[8:]), ne.Uint64(raw[16:])}
		if n := len(out); n == most || n > 0 && m.Start < out[n-1].End {
			return nil, fmt.Errorf("mappings of thread %d: %w", tid, ErrDisorder)
		}
		out = append(out, m)
	}
	return out, nil
}

// vmaProgram is the iterator's program:
//
//	int f(struct bpf_iter__task_vma *ctx) {
//		u64 record[3];
//		if (!ctx->vma)
//			return 0;
//		for (int i = 0; i < 3; i++) // unrolled
//			bpf_probe_read_kernel(record + i, 8, (char *)ctx->vma + at[i]);
//		bpf_seq_write(ctx->meta->seq, record, sizeof record);
//		return 0;
//	}
func vmaProgram(at [3]int32) []byte {
	const (
		load, mov, movImm, addImm, jneImm, call, exit = 0x79, 0xbf, 0xb7, 0x07, 0x55, 0x85, 0x95
		probeRead, seqWrite                           = 113, 127 // BPF_FUNC_*, include/uapi/linux/bpf.h
		fp                                            = 10
	)
	var p []byte
	emit := func(list ...[]byte) {
		for _, i := range list {
			p = append(p, i...)
		}
	}
	emit(Insn(mov, 6, 1, 0, 0), Insn(load, 7, 6, 16, 0)) // r7 = ctx->vma
	emit(Insn(jneImm, 7, 0, 2, 0), Insn(movImm, 0, 0, 0, 0), Insn(exit, 0, 0, 0, 0))
	for i, off := range at {
		emit(Insn(mov, 3, 7, 0, 0), Insn(addImm, 3, 0, 0, off), Insn(movImm, 2, 0, 0, 8),
			Insn(mov, 1, fp, 0, 0), Insn(addImm, 1, 0, 0, int32(8*i)-vmaRecord), Insn(call, 0, 0, 0, probeRead))
	}
	emit(Insn(load, 1, 6, 0, 0), Insn(load, 1, 1, 0, 0)) // ctx->meta->seq
	emit(Insn(mov, 2, fp, 0, 0), Insn(addImm, 2, 0, 0, -vmaRecord), Insn(movImm, 3, 0, 0, vmaRecord), Insn(call, 0, 0, 0, seqWrite))
	emit(Insn(movImm, 0, 0, 0, 0), Insn(exit, 0, 0, 0, 0))
	return p
}
