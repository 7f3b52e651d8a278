//go:build linux

package task

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"migrate/engine/bpf"
	"migrate/engine/images/imagespb"
	"migrate/engine/peek"
	"migrate/engine/thread"
)

// RestartState is a thread's restart block as the kernel holds it (include/linux/restart_block.h). Times are
// nanoseconds of the host's clocks. Only the fields of its kind mean something: those of all kinds are filled from the
// same bytes.
type RestartState struct {
	Function uint64 // address of the kernel function that goes on with the wait; see ThreadReader.KindOf

	Clock      int32
	Rmtp       uint64
	SleepUntil int64

	PollFDs   uint64
	PollCount int32
	PollTimed bool
	PollUntil int64

	FutexAddr   uint64
	FutexValue  uint32
	FutexBitset uint32
	FutexUntil  int64
}

// restartBlockSize is the size of struct restart_block on 64-bit processors: two words, then the union.
const restartBlockSize = 56

// KernelState is what the kernel keeps of a thread where neither ptrace nor /proc reaches.
type KernelState struct {
	Restart RestartState

	StackAddr, StackSize uint64 // alternate signal stack
	StackFlags           uint32
	DeathSignal          uint32
	ClearTID             uint64
	SecureBits           uint32
	Keyrings             bool // the thread or its process has a keyring
	// SessionKeyring is the serial number of the session keyring that the thread has been given (keyrings(7)) if something is in it, else 0.
	SessionKeyring uint32
	Landlock       bool // Landlock restricts the thread (landlock(7))
	HasMempolicy   bool // the thread has a NUMA memory policy of its own (set_mempolicy(2))
	Name           string
	Personality    uint32
	TimerSlack     uint64
	NoNewPrivs     bool
	AtomicFlags    uint64 // task_struct.atomic_flags
	// HasSeccomp says that the kernel has seccomp. SeccompFilter is the same for threads that have the same filters, and
	// means nothing else.
	HasSeccomp    bool
	Seccomp       uint32 // mode
	SeccompFilter uint64
	// Cgroups is the same for threads that are in the same cgroups, and means nothing else; 0 if the kernel has none.
	Cgroups uint64
	// SemUndo is where the kernel keeps what SEM_UNDO would undo; 0 if there is nothing.
	SemUndo uint64
	// Cred is the same for threads that share their credentials, and means nothing else.
	Cred uint64
}

// ThreadReader reads the KernelState of threads by a BPF program that the kernel runs for one thread at a time (an
// iterator; Linux 6.1 with CONFIG_DEBUG_INFO_BTF, CAP_BPF and CAP_PERFMON). With it a thread need not be borrowed to
// ask it about itself, and the time left of its interrupted wait is exact. Open it before the freeze: the first time
// costs some 10 ms. Its methods may be called from any goroutine.
type ThreadReader struct {
	prog     int
	seccomp  bool // the kernel has it
	landlock int  // where Landlock's word stands in the blob of the security modules; -1: it is not known
}

// Where the fields stand in what the program writes.
const (
	atStackAddr   = restartBlockSize
	atStackSize   = atStackAddr + 8
	atStackFlags  = atStackSize + 8
	atDeathSignal = atStackFlags + 8
	atClearTID    = atDeathSignal + 8
	atSecureBits  = atClearTID + 8
	atThreadKeys  = atSecureBits + 8
	atProcessKeys = atThreadKeys + 8
	atCred        = atProcessKeys + 8
	atName        = atCred + 8
	atPersonality = atName + commSize
	atSlack       = atPersonality + 8
	atFlags       = atSlack + 8
	atSeccomp     = atFlags + 8 // struct seccomp: mode, number of filters, the newest
	atCgroups     = atSeccomp + 16
	atMempolicy   = atCgroups + 8
	atSemUndo     = atMempolicy + 8
	atSessionKeys = atSemUndo + 8
	atKeySerial   = atSessionKeys + 8
	atKeyArray    = atKeySerial + 8
	atSecurity    = atKeyArray + 16
	atBlob        = atSecurity + 8
	recordSize    = atBlob + blobSize

	blobSize = 64 // of what security modules keep of a thread's credentials, in words, the first ones

	commSize   = 16 // TASK_COMM_LEN
	noNewPrivs = 1  // of task_struct.atomic_flags: bit PFA_NO_NEW_PRIVS (include/linux/sched.h)
)

// threadReads are the reads that the program makes: of task_struct, of its cred, and of the session keyring and the security modules' blob
// of that.
type threadReads struct{ task, cred, key, blob []bpfRead }

func threadFields(t *bpf.Types) (r threadReads, err error) {
	add := func(list *[]bpfRead, structure, name string, size, to int32) {
		off, e := t.Member(structure, name)
		err = errors.Join(err, e)
		*list = append(*list, bpfRead{from: int32(off), size: size, to: to})
	}
	add(&r.task, "task_struct", "restart_block", restartBlockSize, 0)
	add(&r.task, "task_struct", "sas_ss_sp", 8, atStackAddr)
	add(&r.task, "task_struct", "sas_ss_size", 8, atStackSize)
	add(&r.task, "task_struct", "sas_ss_flags", 4, atStackFlags)
	add(&r.task, "task_struct", "pdeath_signal", 4, atDeathSignal)
	add(&r.task, "task_struct", "clear_child_tid", 8, atClearTID)
	add(&r.task, "task_struct", "cred", 8, atCred)
	add(&r.task, "task_struct", "comm", commSize, atName)
	add(&r.task, "task_struct", "personality", 4, atPersonality)
	add(&r.task, "task_struct", "timer_slack_ns", 8, atSlack)
	add(&r.task, "task_struct", "atomic_flags", 8, atFlags)
	if _, e := t.Member("task_struct", "seccomp"); e == nil {
		add(&r.task, "task_struct", "seccomp", 16, atSeccomp)
	}
	if _, e := t.Member("task_struct", "cgroups"); e == nil {
		add(&r.task, "task_struct", "cgroups", 8, atCgroups)
	}
	if _, e := t.Member("task_struct", "mempolicy"); e == nil { // CONFIG_NUMA
		add(&r.task, "task_struct", "mempolicy", 8, atMempolicy)
	}
	if _, e := t.Member("task_struct", "sysvsem"); e == nil { // CONFIG_SYSVIPC
		add(&r.task, "task_struct", "sysvsem", 8, atSemUndo)
	}
	add(&r.cred, "cred", "securebits", 4, atSecureBits)
	if _, e := t.Member("cred", "thread_keyring"); e == nil { // CONFIG_KEYS
		add(&r.cred, "cred", "thread_keyring", 8, atThreadKeys)
		add(&r.cred, "cred", "process_keyring", 8, atProcessKeys)
		add(&r.cred, "cred", "session_keyring", 8, atSessionKeys)
		add(&r.key, "key", "serial", 4, atKeySerial)
		add(&r.key, "key", "keys", 16, atKeyArray) // struct assoc_array: the root, and the number of leaves
	}
	if _, e := t.Member("cred", "security"); e == nil { // CONFIG_SECURITY
		add(&r.cred, "cred", "security", 8, atSecurity)
		for at := int32(0); at < blobSize; at += 8 { // each by itself: the blob may be shorter, and end where the kernel may not read
			r.blob = append(r.blob, bpfRead{from: at, size: 8, to: atBlob + at})
		}
	}
	return r, err
}

// kernelFacts is what the program needs to know of the running kernel. It never changes.
type kernelFacts struct {
	program  []byte
	seccomp  bool
	iterator uint32 // id of the type of bpf_iter_task
}

var factsOfKernel = sync.OnceValues(readKernelFacts)

func readKernelFacts() (*kernelFacts, error) {
	types, err := bpf.Kernel("task_struct", "restart_block", "cred", "key", "bpf_iter_task")
	if err != nil {
		return nil, err
	}
	reads, err := threadFields(types)
	if err != nil {
		return nil, err
	}
	block, err := types.Struct("restart_block")
	if err != nil {
		return nil, err
	}
	if block.Size != restartBlockSize {
		return nil, fmt.Errorf("struct restart_block has %d bytes in this kernel, %d are known", block.Size, restartBlockSize)
	}
	f := &kernelFacts{program: threadProgram(reads), iterator: types.Func("bpf_iter_task")}
	_, err = types.Member("task_struct", "seccomp")
	f.seccomp = err == nil
	if f.iterator == 0 {
		return nil, errors.New("this kernel has no BPF iterator over threads (Linux 5.8 has)")
	}
	return f, nil
}

// OpenThreadReader loads the program. An error means that this kernel cannot be asked, and why.
func OpenThreadReader() (*ThreadReader, error) {
	facts, err := factsOfKernel()
	if err != nil {
		return nil, err
	}
	prog, err := bpf.LoadIterator(facts.iterator, facts.program)
	if err != nil {
		return nil, fmt.Errorf("loading the BPF program: %w", err)
	}
	r := &ThreadReader{prog: prog, seccomp: facts.seccomp}
	// A kernel before 6.1 takes the thread's id for padding and would visit all threads.
	if _, err := r.Read(unix.Gettid()); err != nil {
		return nil, errors.Join(fmt.Errorf("reading one thread's state: %w", err), r.Close())
	}
	landlockOnce.Do(func() { landlockWord = findLandlock(prog) })
	r.landlock = landlockWord
	return r, nil
}

// Close unloads the program.
func (r *ThreadReader) Close() error { return unix.Close(r.prog) }

// Read returns the state of a thread, by its id in this program's pid namespace. The thread should be stopped; its
// restart block means something only if its last system call was interrupted (arch.RestartBlock).
func (r *ThreadReader) Read(tid int) (KernelState, error) {
	raw, err := readThread(r.prog, tid)
	if err != nil {
		return KernelState{}, err
	}
	le := binary.LittleEndian
	u := raw[16:restartBlockSize]
	name, _, _ := bytes.Cut(raw[atName:atName+commSize], []byte{0})
	domain := r.landlock >= 0 && le.Uint64(raw[atBlob+r.landlock:]) != 0
	return KernelState{
		Restart: RestartState{
			Function: le.Uint64(raw[8:]),
			Clock:    int32(le.Uint32(u)), Rmtp: rmtp(u), SleepUntil: int64(le.Uint64(u[16:])),
			PollFDs: le.Uint64(u), PollCount: int32(le.Uint32(u[8:])), PollTimed: le.Uint32(u[12:]) != 0,
			PollUntil: int64(le.Uint64(u[16:]))*1e9 + int64(le.Uint64(u[24:])),
			FutexAddr: le.Uint64(u), FutexValue: le.Uint32(u[8:]), FutexBitset: le.Uint32(u[16:]), FutexUntil: int64(le.Uint64(u[24:])),
		},
		StackAddr: le.Uint64(raw[atStackAddr:]), StackSize: le.Uint64(raw[atStackSize:]), StackFlags: le.Uint32(raw[atStackFlags:]),
		DeathSignal: le.Uint32(raw[atDeathSignal:]), ClearTID: le.Uint64(raw[atClearTID:]), SecureBits: le.Uint32(raw[atSecureBits:]),
		Keyrings: le.Uint64(raw[atThreadKeys:]) != 0 || le.Uint64(raw[atProcessKeys:]) != 0,
		Name:     string(name), Personality: le.Uint32(raw[atPersonality:]), TimerSlack: le.Uint64(raw[atSlack:]),
		NoNewPrivs: le.Uint64(raw[atFlags:])&noNewPrivs != 0, AtomicFlags: le.Uint64(raw[atFlags:]), Cred: le.Uint64(raw[atCred:]),
		HasSeccomp: r.seccomp, Seccomp: le.Uint32(raw[atSeccomp:]), SeccompFilter: le.Uint64(raw[atSeccomp+8:]),
		Cgroups: le.Uint64(raw[atCgroups:]), HasMempolicy: le.Uint64(raw[atMempolicy:]) != 0,
		SemUndo: le.Uint64(raw[atSemUndo:]), SessionKeyring: sessionKeyring(raw), Landlock: domain,
	}, nil
}

func readThread(prog, tid int) ([]byte, error) {
	raw, err := bpf.RunIterator(prog, uint32(tid), 2*recordSize)
	if err != nil {
		return nil, fmt.Errorf("kernel state of thread %d: %w", tid, err)
	}
	if len(raw) != recordSize {
		return nil, fmt.Errorf("kernel state of thread %d: the kernel gave %d bytes instead of %d", tid, len(raw), recordSize)
	}
	return raw, nil
}

var (
	landlockOnce sync.Once
	landlockWord int
)

// findLandlock finds where Landlock keeps its word of a thread's credentials, which no type says: the one that is set once a thread has
// restricted itself. The thread does so to nobody's harm and ends. It is -1 where there is no Landlock.
func findLandlock(prog int) int {
	var before, after []byte
	err := thread.ThrowAway(func() (err error) {
		if before, err = readThread(prog, unix.Gettid()); err != nil {
			return err
		}
		if err := restrictSelf(); err != nil {
			return err
		}
		after, err = readThread(prog, unix.Gettid())
		return err
	})
	if err != nil {
		return -1
	}
	le := binary.LittleEndian
	for at := 0; at < blobSize; at += 8 {
		if le.Uint64(before[atBlob+at:]) == 0 && le.Uint64(after[atBlob+at:]) != 0 {
			return at
		}
	}
	return -1
}

func sessionKeyring(raw []byte) uint32 {
	if leaves := binary.LittleEndian.Uint64(raw[atKeyArray+8:]); leaves == 0 {
		return 0
	}
	return binary.LittleEndian.Uint32(raw[atKeySerial:])
}

// rmtp is where nanosleep writes the rest; the field holds garbage if the type (enum timespec_type) is TT_NONE.
func rmtp(u []byte) uint64 {
	if binary.LittleEndian.Uint32(u[4:]) == 0 {
		return 0
	}
	return binary.LittleEndian.Uint64(u[8:])
}

// Learn reads what a dump needs to know of this kernel, however often it is called only once: it takes some 50 ms, for which a
// stopped tree should not wait. What cannot be learned is said by those who need it.
func Learn() {
	_, _ = kernelFunctions()
	_ = peek.Learn() // of what SEM_UNDO would undo, of terminals and queues
}

// kernelFunctions is read when it is first needed: the kernel takes some 30 ms to print its symbols.
var kernelFunctions = sync.OnceValues(func() (map[uint64]imagespb.RestartBlock_Kind, error) { return restartFunctions("/proc/kallsyms") })

// KindOf tells which kind of wait a restart block goes on with; NONE where the kernel hides its symbols. The system call
// that a thread was in tells the same unless it was interrupted before (restart_syscall).
func (*ThreadReader) KindOf(b RestartState) (imagespb.RestartBlock_Kind, error) {
	functions, err := kernelFunctions()
	if err != nil {
		return imagespb.RestartBlock_NONE, fmt.Errorf("symbols of the kernel: %w", err)
	}
	return functions[b.Function], nil
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
	for s := bufio.NewScanner(f); len(out) < len(names) && s.Scan(); {
		if line := s.Bytes(); !bytes.HasSuffix(line, []byte("restart")) && !bytes.HasSuffix(line, []byte("_poll")) {
			continue
		}
		if w := strings.Fields(s.Text()); len(w) == 3 {
			addr, err := strconv.ParseUint(w[0], 16, 64)
			if kind, ok := names[w[2]]; ok && err == nil && addr != 0 {
				out[addr] = kind
			}
		}
	}
	return out, nil
}

// bpfRead copies size bytes from a place in a struct of the kernel to a place in the record.
type bpfRead struct{ from, size, to int32 }

// threadProgram is the iterator's program:
//
//	int f(struct bpf_iter__task *ctx) {
//		char record[recordSize] = {};
//		if (ctx->task) {
//			// for each read of task, then of cred, then of what that points to, which may be nothing: then it reads zeros
//			bpf_probe_read_kernel(record + to, size, (char *)ctx->task + from);
//			bpf_probe_read_kernel(record + to, size, *(char **)(record + atCred) + from);
//			bpf_probe_read_kernel(record + to, size, *(char **)(record + atSessionKeys) + from);
//			bpf_probe_read_kernel(record + to, size, *(char **)(record + atSecurity) + from);
//			bpf_seq_write(ctx->meta->seq, record, sizeof record);
//		}
//		return 0;
//	}
func threadProgram(r threadReads) []byte {
	const (
		load, store, mov, movImm, addImm, jneImm, call, exit = 0x79, 0x7a, 0xbf, 0xb7, 0x07, 0x55, 0x85, 0x95
		probeRead, seqWrite                                  = 113, 127 // BPF_FUNC_*, include/uapi/linux/bpf.h
		fp                                                   = 10
	)
	var p []byte
	emit := func(list ...[]byte) {
		for _, i := range list {
			p = append(p, i...)
		}
	}
	read := func(base uint8, r bpfRead) {
		emit(bpf.Insn(mov, 3, base, 0, 0), bpf.Insn(addImm, 3, 0, 0, r.from), bpf.Insn(movImm, 2, 0, 0, r.size),
			bpf.Insn(mov, 1, fp, 0, 0), bpf.Insn(addImm, 1, 0, 0, r.to-recordSize), bpf.Insn(call, 0, 0, 0, probeRead))
	}
	emit(bpf.Insn(mov, 6, 1, 0, 0), bpf.Insn(load, 7, 6, 8, 0)) // r7 = ctx->task
	emit(bpf.Insn(jneImm, 7, 0, 2, 0), bpf.Insn(movImm, 0, 0, 0, 0), bpf.Insn(exit, 0, 0, 0, 0))
	for off := int16(0); off < recordSize; off += 8 {
		emit(bpf.Insn(store, fp, 0, off-recordSize, 0))
	}
	for _, from := range []struct {
		base  int16 // where the address was read to; -1: it is in register 7
		reads []bpfRead
	}{{-1, r.task}, {atCred, r.cred}, {atSessionKeys, r.key}, {atSecurity, r.blob}} {
		if from.base >= 0 {
			emit(bpf.Insn(load, 7, fp, from.base-recordSize, 0))
		}
		for _, x := range from.reads {
			read(7, x)
		}
	}
	emit(bpf.Insn(load, 1, 6, 0, 0), bpf.Insn(load, 1, 1, 0, 0)) // ctx->meta->seq
	emit(bpf.Insn(mov, 2, fp, 0, 0), bpf.Insn(addImm, 2, 0, 0, -recordSize), bpf.Insn(movImm, 3, 0, 0, recordSize), bpf.Insn(call, 0, 0, 0, seqWrite))
	emit(bpf.Insn(movImm, 0, 0, 0, 0), bpf.Insn(exit, 0, 0, 0, 0))
	return p
}
