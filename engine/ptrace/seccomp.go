package ptrace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// seccompMetadata is PTRACE_SECCOMP_GET_METADATA (include/uapi/linux/ptrace.h, Linux 4.16).
const seccompMetadata = 0x420d

// SeccompLog is SECCOMP_FILTER_FLAG_LOG (include/uapi/linux/seccomp.h).
const SeccompLog = 2

// A SeccompFilter is one filter of a thread: struct sock_filter[], and the flags that the kernel tells of (SeccompLog).
type SeccompFilter struct {
	Program []byte
	Flags   uint64
}

// maxSeccompFilters bounds the filters of one thread. Their instructions, and four more for each of them, are at most
// 32,768 (kernel/seccomp.c, MAX_INSNS_PER_PATH).
const maxSeccompFilters = 32768 / 5

// SeccompFilters returns the filters of a stopped thread, the oldest first. It takes CAP_SYS_ADMIN, and a tracer that has
// no filter itself. A thread in no filter mode has none.
func (t *Tracer) SeccompFilters(ctx context.Context, tid int) ([]SeccompFilter, error) {
	var out []SeccompFilter
	err := t.stoppedCall(ctx, "PTRACE_SECCOMP_GET_FILTER", tid, func() error {
		for n := range uintptr(maxSeccompFilters) {
			f, err := seccompFilter(tid, n)
			if errors.Is(err, unix.ENOENT) || n == 0 && errors.Is(err, unix.EINVAL) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("filter %d: %w", n, err)
			}
			out = append(out, f)
		}
		return nil
	})
	return out, err
}

func seccompFilter(tid int, n uintptr) (SeccompFilter, error) {
	count, err := ptraceResult(unix.PTRACE_SECCOMP_GET_FILTER, tid, n, 0)
	if err != nil {
		return SeccompFilter{}, err
	}
	f := SeccompFilter{Program: make([]byte, 8*count)} // struct sock_filter
	if _, err := ptraceBuffer(unix.PTRACE_SECCOMP_GET_FILTER, tid, n, f.Program); err != nil {
		return f, err
	}
	meta := binary.LittleEndian.AppendUint64(nil, uint64(n))
	meta = append(meta, make([]byte, 8)...)
	// The request's address is the size of its buffer.
	switch _, err := ptraceBuffer(seccompMetadata, tid, uintptr(len(meta)), meta); {
	case errors.Is(err, unix.EIO): // a kernel that does not know it
	case err != nil:
		return f, err
	default:
		f.Flags = binary.LittleEndian.Uint64(meta[8:])
	}
	return f, nil
}

// SuspendSeccomp switches seccomp off in a stopped thread for as long as it is traced, or on again. EPERM: it takes
// CAP_SYS_ADMIN, and a tracer without seccomp.
func (t *Tracer) SuspendSeccomp(ctx context.Context, tid int, on bool) error {
	options, _, _, err := t.Options(ctx, tid)
	if err != nil {
		return err
	}
	options &^= unix.PTRACE_O_SUSPEND_SECCOMP
	if on {
		options |= unix.PTRACE_O_SUSPEND_SECCOMP
	}
	return t.SetOptions(ctx, tid, options)
}
