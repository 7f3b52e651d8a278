package mem

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// ErrGone means that the program ended.
var ErrGone = fmt.Errorf("the program %w", procfs.ErrGone)

// view is the memory of a process from outside.
type view struct {
	pid int
	mem *os.File // /proc/PID/mem
	// pagemap is /proc/PID/pagemap; nil for a view that only writes.
	pagemap *os.File
}

func openView(pid int) (view, error) {
	f, err := os.OpenFile(procfs.Host.Path(pid, "mem"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = ErrGone
	}
	if err != nil {
		return view{}, fmt.Errorf("memory of pid %d: %w", pid, err)
	}
	return view{pid: pid, mem: f}, nil
}

// close lets go of the memory. It may be called again.
func (v view) close() error {
	errs := []error{v.mem.Close()}
	if v.pagemap != nil {
		errs = append(errs, v.pagemap.Close())
	}
	for i, err := range errs {
		if errors.Is(err, os.ErrClosed) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// gather reads ranges, of len(buf) bytes together, into buf. It returns how many bytes were read before the first page
// that process_vm_readv(2) cannot reach.
func (v view) gather(buf []byte, remote []unix.RemoteIovec) (int, error) {
	local := [1]unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	n, err := unix.ProcessVMReadv(v.pid, local[:], remote, 0)
	if errors.Is(err, unix.EFAULT) {
		return 0, nil
	}
	if errors.Is(err, unix.ESRCH) {
		err = ErrGone
	}
	return max(n, 0), err
}

// readForced reads pages that the program itself may not read. ok is false when nothing is there to be read: nothing
// is mapped, or a file is shorter than its mapping.
func (v view) readForced(addr uint64, buf []byte) (ok bool, err error) {
	n, err := v.mem.ReadAt(buf, int64(addr))
	switch {
	case n == len(buf):
		return true, nil
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EFAULT), n == 0 && v.gone() == nil:
		return false, nil
	}
	return false, errors.Join(v.gone(), fmt.Errorf("reading %d bytes at 0x%x of pid %d: %w", len(buf), addr, v.pid, err))
}

// write puts data at addr; what the program itself may not write is written all the same, if mapped privately.
func (v view) write(addr uint64, data []byte) error {
	for len(data) > 0 {
		n, err := v.writeSome(addr, data)
		if err != nil {
			return errors.Join(v.gone(), fmt.Errorf("writing %d bytes at 0x%x of pid %d: %w", len(data), addr, v.pid, err))
		}
		addr, data = addr+uint64(n), data[n:]
	}
	return nil
}

func (v view) writeSome(addr uint64, data []byte) (int, error) {
	local := [1]unix.Iovec{{Base: &data[0], Len: uint64(len(data))}}
	remote := [1]unix.RemoteIovec{{Base: uintptr(addr), Len: len(data)}}
	if n, err := unix.ProcessVMWritev(v.pid, local[:], remote[:], 0); err == nil && n > 0 {
		return n, nil
	} else if err != nil && !errors.Is(err, unix.EFAULT) {
		return 0, err
	}
	return v.mem.WriteAt(data[:min(len(data), PageSize)], int64(addr))
}

// gone returns ErrGone when the process ended, or is a zombie, and nil otherwise.
func (v view) gone() error {
	st, err := procfs.Host.Stat(v.pid)
	if errors.Is(err, procfs.ErrGone) || err == nil && (st.State == 'Z' || st.State == 'X') {
		return ErrGone
	}
	return nil
}
