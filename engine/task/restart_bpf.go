//go:build linux

package task

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// RestartState is a thread's restart block as the kernel holds it (include/linux/restart_block.h). Times are
// nanoseconds of the host's clocks. Only the fields of its kind mean something; Kind is NONE if the kernel hides its
// symbols, and then the fields of all kinds are filled from the same bytes.
type RestartState struct {
	Kind imagespb.RestartBlock_Kind

	Clock      int32
	Rmtp       uint64
	SleepUntil int64

	PollFDs   uint64
	PollCount int32
	PollTimed bool
	PollUntil int64

	FutexAddr   uint64
	FutexValue  uint32
	FutexFlags  uint32
	FutexBitset uint32
	FutexUntil  int64
}

// restartBlockSize is the size of struct restart_block on 64-bit processors: two words, then the union.
const restartBlockSize = 56

// RestartReader reads restart blocks by a BPF program that the kernel runs for one thread at a time (an iterator;
// Linux 6.1 with CONFIG_DEBUG_INFO_BTF, CAP_BPF and CAP_PERFMON). Open it before the freeze: reading the kernel's
// types takes some 30 ms. Its methods may be called from any goroutine.
type RestartReader struct {
	prog      int
	functions map[uint64]imagespb.RestartBlock_Kind
}

// OpenRestartReader loads the program. An error means that this kernel cannot be asked, and why.
func OpenRestartReader() (*RestartReader, error) {
	types, err := readBTF("/sys/kernel/btf/vmlinux")
	if err != nil {
		return nil, fmt.Errorf("types of the kernel: %w", err)
	}
	offset, err := types.member("task_struct", "restart_block")
	if err != nil {
		return nil, err
	}
	if size := types.structs["restart_block"]; size != restartBlockSize {
		return nil, fmt.Errorf("struct restart_block has %d bytes in this kernel, %d are known", size, restartBlockSize)
	}
	iter := types.funcs["bpf_iter_task"]
	if iter == 0 {
		return nil, errors.New("this kernel has no BPF iterator over threads (Linux 5.8 has)")
	}
	prog, err := loadIterator(iter, restartProgram(offset))
	if err != nil {
		return nil, fmt.Errorf("loading the BPF program: %w", err)
	}
	r := &RestartReader{prog: prog}
	if r.functions, err = restartFunctions("/proc/kallsyms"); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	// A kernel before 6.1 takes the thread's id for padding and would visit all threads.
	if _, err := r.Read(unix.Gettid()); err != nil {
		return nil, errors.Join(fmt.Errorf("reading the restart block of one thread: %w", err), r.Close())
	}
	return r, nil
}

// Close unloads the program.
func (r *RestartReader) Close() error { return unix.Close(r.prog) }

// Read returns the restart block of a thread, by its id in this program's pid namespace. It means something only
// while the thread is stopped and its last system call was interrupted (arch.RestartBlock).
func (r *RestartReader) Read(tid int) (RestartState, error) {
	raw, err := runIterator(r.prog, uint32(tid), 2*restartBlockSize)
	if err != nil {
		return RestartState{}, fmt.Errorf("restart block of thread %d: %w", tid, err)
	}
	if len(raw) != restartBlockSize {
		return RestartState{}, fmt.Errorf("restart block of thread %d: the kernel gave %d bytes instead of %d", tid, len(raw), restartBlockSize)
	}
	le := binary.LittleEndian
	u := raw[16:]
	return RestartState{
		Kind:  r.functions[le.Uint64(raw[8:])],
		Clock: int32(le.Uint32(u)), Rmtp: rmtp(u), SleepUntil: int64(le.Uint64(u[16:])),
		PollFDs: le.Uint64(u), PollCount: int32(le.Uint32(u[8:])), PollTimed: le.Uint32(u[12:]) != 0,
		PollUntil: int64(le.Uint64(u[16:]))*1e9 + int64(le.Uint64(u[24:])),
		FutexAddr: le.Uint64(u), FutexValue: le.Uint32(u[8:]), FutexFlags: le.Uint32(u[12:]), FutexBitset: le.Uint32(u[16:]),
		FutexUntil: int64(le.Uint64(u[24:])),
	}, nil
}

// rmtp is where nanosleep writes the rest; the field holds garbage if the type (enum timespec_type) is TT_NONE.
func rmtp(u []byte) uint64 {
	if binary.LittleEndian.Uint32(u[4:]) == 0 {
		return 0
	}
	return binary.LittleEndian.Uint64(u[8:])
}

// restartFunctions finds by their names the functions that a restart block may name. Kernels hide the addresses from
// programs without CAP_SYSLOG (all are zero); then the map is empty.
func restartFunctions(path string) (map[uint64]imagespb.RestartBlock_Kind, error) {
	names := map[string]imagespb.RestartBlock_Kind{
		"hrtimer_nanosleep_restart": imagespb.RestartBlock_NANOSLEEP,
		"do_restart_poll":           imagespb.RestartBlock_POLL,
		"futex_wait_restart":        imagespb.RestartBlock_FUTEX,
		"posix_cpu_nsleep_restart":  imagespb.RestartBlock_CPU_NANOSLEEP,
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing is lost
	out := map[uint64]imagespb.RestartBlock_Kind{}
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if !strings.HasSuffix(line, "restart") && !strings.HasSuffix(line, "_poll") {
			continue
		}
		if w := strings.Fields(line); len(w) == 3 {
			addr, err := strconv.ParseUint(w[0], 16, 64)
			if kind, ok := names[w[2]]; ok && err == nil && addr != 0 {
				out[addr] = kind
			}
		}
	}
	return out, nil
}

// insn encodes a BPF instruction.
func insn(code uint8, dst, src uint8, off int16, imm int32) []byte {
	b := []byte{code, src<<4 | dst, 0, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint16(b[2:], uint16(off))
	binary.LittleEndian.PutUint32(b[4:], uint32(imm))
	return b
}

// restartProgram is the iterator's program for a restart_block at the given offset of task_struct:
//
//	int f(struct bpf_iter__task *ctx) {
//		char block[restartBlockSize];
//		if (ctx->task) {
//			bpf_probe_read_kernel(block, sizeof block, (char *)ctx->task + offset);
//			bpf_seq_write(ctx->meta->seq, block, sizeof block);
//		}
//		return 0;
//	}
func restartProgram(offset uint32) []byte {
	const (
		load, mov, movImm, addImm, jeqImm, call, exit = 0x79, 0xbf, 0xb7, 0x07, 0x15, 0x85, 0x95
		probeRead, seqWrite                           = 113, 127 // BPF_FUNC_*, include/uapi/linux/bpf.h
		fp                                            = 10
	)
	var p []byte
	for _, i := range [][]byte{
		insn(mov, 6, 1, 0, 0),
		insn(load, 3, 6, 8, 0),    // ctx->task
		insn(jeqImm, 3, 0, 11, 0), // end of the walk
		insn(addImm, 3, 0, 0, int32(offset)),
		insn(mov, 1, fp, 0, 0), insn(addImm, 1, 0, 0, -restartBlockSize), insn(movImm, 2, 0, 0, restartBlockSize),
		insn(call, 0, 0, 0, probeRead),
		insn(load, 1, 6, 0, 0), insn(load, 1, 1, 0, 0), // ctx->meta->seq
		insn(mov, 2, fp, 0, 0), insn(addImm, 2, 0, 0, -restartBlockSize), insn(movImm, 3, 0, 0, restartBlockSize),
		insn(call, 0, 0, 0, seqWrite),
		insn(movImm, 0, 0, 0, 0), insn(exit, 0, 0, 0, 0),
	} {
		p = append(p, i...)
	}
	return p
}
