package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filter reads the classic BPF program of a socket (SO_GET_FILTER in socket(7)), one instruction a word: struct sock_filter
// as CRIU's record has it, which is its eight bytes in little-endian order.
func filter(fd int) ([]uint64, error) {
	// A length of 0 asks for the number of instructions; EACCES means that the program is eBPF.
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, nil)
	switch {
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("an eBPF socket filter: %w", ErrOption)
	case err != nil || n == 0:
		return nil, nil
	}
	insns := make([]unix.SockFilter, n)
	count := uint32(n)
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_GET_FILTER,
		uintptr(unsafe.Pointer(&insns[0])), uintptr(unsafe.Pointer(&count)), 0)
	if e != 0 {
		return nil, fmt.Errorf("read the socket filter: %w", e)
	}
	out := make([]uint64, min(int(count), n))
	for i := range out {
		f := insns[i]
		out[i] = uint64(f.Code) | uint64(f.Jt)<<16 | uint64(f.Jf)<<24 | uint64(f.K)<<32
	}
	return out, nil
}

// maxFilter is BPF_MAXINSNS (linux/bpf_common.h).
const maxFilter = 4096

// setFilter attaches a program that filter has read.
func setFilter(fd int, program []uint64) error {
	if len(program) == 0 {
		return nil
	}
	if len(program) > maxFilter {
		return fmt.Errorf("a socket filter of %d instructions, %d are possible", len(program), maxFilter)
	}
	insns := make([]unix.SockFilter, len(program))
	for i, w := range program {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], w)
		insns[i] = unix.SockFilter{Code: binary.LittleEndian.Uint16(b[:]), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])}
	}
	prog := unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]}
	_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		uintptr(unsafe.Pointer(&prog)), unsafe.Sizeof(prog), 0)
	runtime.KeepAlive(insns)
	if e != 0 {
		return fmt.Errorf("attach the socket filter: %w", e)
	}
	return nil
}
