//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and types of bpf(2) (include/uapi/linux/bpf.h).
const (
	bpfProgLoad        = 5
	bpfProgTestRun     = 10
	bpfLinkCreate      = 28
	bpfIterCreate      = 33
	bpfProgTypeTracing = 26
	bpfTraceIter       = 28
	bpfProgTypeCls     = 3
	bpfTCXIngress      = 46
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

// LoadIterator loads a BPF program that iterates over what the kernel function with this type id walks.
func LoadIterator(btfID uint32, program []byte) (int, error) {
	return load(program, bpfProgTypeTracing, 0, bpfTraceIter, btfID, "migrate_iter")
}

func load(program []byte, progType, flags, attachType, attachTo uint32, name string) (int, error) {
	license := []byte("GPL\x00") // bpf_probe_read_kernel and others are offered to GPL programs alone
	var attr struct {
		progType, insnCount       uint32
		insns, license            uint64
		logLevel, logSize         uint32
		logBuf                    uint64
		kernVersion, flags        uint32
		name                      [16]byte
		ifindex, attachType       uint32
		btfFD, funcInfoSize       uint32
		funcInfo                  uint64
		funcInfoCount, lineSize   uint32
		lineInfo                  uint64
		lineInfoCount, attachToID uint32
		attachProgFD, coreCount   uint32
	}
	attr.progType, attr.flags, attr.attachType, attr.attachToID = progType, flags, attachType, attachTo
	attr.insnCount = uint32(len(program) / 8)
	var pin runtime.Pinner // the kernel is given addresses as numbers, and a goroutine's stack moves when it grows
	defer pin.Unpin()
	pin.Pin(&program[0])
	pin.Pin(&license[0])
	attr.insns, attr.license = uint64(uintptr(unsafe.Pointer(&program[0]))), uint64(uintptr(unsafe.Pointer(&license[0])))
	copy(attr.name[:15], name)
	// The verifier gives up when a signal is pending (do_check in kernel/bpf/verifier.c), and the Go runtime sends its threads some.
	// The signal is handled on the way back here.
	for tries := 0; ; tries++ {
		fd, err := bpf(bpfProgLoad, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if !errors.Is(err, unix.EAGAIN) || tries == maxLoads {
			return fd, err
		}
	}
}

// maxLoads bounds how often a load that signals break off is made again: they come every 10 ms at most, and a load takes less than one.
const maxLoads = 100

// LoadCallable loads a program that runs when RunCallable is called (BPF_PROG_TYPE_SYSCALL, Linux 5.14).
func LoadCallable(program []byte) (int, error) {
	return load(program, bpfProgTypeSyscall, bpfSleepable, 0, 0, "migrate_peek")
}

// RunCallable runs such a program once; it reads and writes ctx.
func RunCallable(prog int, ctx []byte) error {
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

// attachIngress runs a program on what an interface of this thread's network namespace receives, until the link is closed.
func attachIngress(prog int, index uint32) (int, error) {
	var attr struct {
		prog, target, attachType, flags uint32
		relative, pad                   uint32
		revision                        uint64
	}
	attr.prog, attr.target, attr.attachType = uint32(prog), index, bpfTCXIngress
	return bpf(bpfLinkCreate, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// RunIterator runs the program for one thread and returns what it wrote, of at most limit bytes.
func RunIterator(prog int, tid uint32, limit int) (_ []byte, err error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	info := &[4]uint32{tid} // union bpf_iter_link_info: task.tid
	pin.Pin(info)
	var link struct {
		prog, target, attachType, flags uint32
		info                            uint64
		infoLen, pad                    uint32
	}
	link.prog, link.attachType = uint32(prog), bpfTraceIter
	link.info, link.infoLen = uint64(uintptr(unsafe.Pointer(info))), uint32(unsafe.Sizeof(*info))
	lfd, err := bpf(bpfLinkCreate, unsafe.Pointer(&link), unsafe.Sizeof(link))
	if err != nil {
		return nil, fmt.Errorf("BPF link: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(lfd)) }()
	iter := struct{ link, flags uint32 }{link: uint32(lfd)}
	ifd, err := bpf(bpfIterCreate, unsafe.Pointer(&iter), unsafe.Sizeof(iter))
	if err != nil {
		return nil, fmt.Errorf("BPF iterator: %w", err)
	}
	f := os.NewFile(uintptr(ifd), "iterator")
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, min(limit, 64<<10))
	for n := 0; ; {
		k, err := f.Read(buf[n:])
		n += k
		if errors.Is(err, io.EOF) || err == nil && (k == 0 || n == limit) {
			return buf[:n], nil
		}
		if err != nil {
			return nil, fmt.Errorf("BPF iterator: %w", err)
		}
		if len(buf)-n < len(buf)/2 {
			buf = append(buf, make([]byte, min(len(buf), limit-len(buf)))...)
		}
	}
}
