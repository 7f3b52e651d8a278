package peek

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and types of bpf(2) (include/uapi/linux/bpf.h).
const (
	bpfProgLoad        = 5
	bpfProgTestRun     = 10
	bpfProgTypeSyscall = 31
	bpfSleepable       = 1 << 4 // BPF_F_SLEEPABLE, which programs of this type must have
)

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// load loads a BPF program.
func load(program []byte) (int, error) {
	license := []byte("GPL\x00") // bpf_probe_read_kernel is offered to GPL programs alone
	var attr struct {
		progType, insnCount uint32
		insns, license      uint64
		logLevel, logSize   uint32
		logBuf              uint64
		kernVersion, flags  uint32
		name                [16]byte
	}
	attr.progType, attr.insnCount, attr.flags = bpfProgTypeSyscall, uint32(len(program)/8), bpfSleepable
	var pin runtime.Pinner // the kernel is given addresses as numbers, and a goroutine's stack moves when it grows
	defer pin.Unpin()
	pin.Pin(&program[0])
	pin.Pin(&license[0])
	attr.insns, attr.license = uint64(uintptr(unsafe.Pointer(&program[0]))), uint64(uintptr(unsafe.Pointer(&license[0])))
	copy(attr.name[:], "migrate_peek")
	fd, err := bpf(bpfProgLoad, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return fd, err
}

// run runs the program once; it reads and writes ctx.
func run(prog int, ctx []byte) error {
	var attr struct {
		prog, retval, inSize, outSize uint32
		in, out                       uint64
		repeat, duration              uint32
		ctxIn, ctxOut                 uint32
		ctx, ctxBack                  uint64
		flags, cpu, batch, pad        uint32
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ctx[0])
	attr.prog, attr.ctxIn, attr.ctx = uint32(prog), uint32(len(ctx)), uint64(uintptr(unsafe.Pointer(&ctx[0])))
	_, err := bpf(bpfProgTestRun, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// insn encodes a BPF instruction.
func insn(code uint8, dst, src uint8, off int16, imm int32) []byte {
	b := []byte{code, src<<4 | dst, 0, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint16(b[2:], uint16(off))
	binary.LittleEndian.PutUint32(b[4:], uint32(imm))
	return b
}
