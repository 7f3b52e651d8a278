package ptrace

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Memory is the address space of one process. Ordinary memory moves by process_vm_readv(2) and process_vm_writev(2);
// what those cannot reach (code and other memory that the process itself may not write or read) by /proc/PID/mem,
// which this process must be allowed to trace. Its methods may be called from any goroutine.
type Memory struct {
	pid  int
	file *os.File
}

// OpenMemory opens the memory of a process. It stays that of the program that runs there now: after an exec, reads
// and writes fail.
func OpenMemory(pid int) (*Memory, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("memory of process %d: %w", pid, ErrGone)
	} else if err != nil {
		return nil, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	return &Memory{pid: pid, file: f}, nil
}

// Close closes it.
func (m *Memory) Close() error { return m.file.Close() }

// Read fills b from addr on.
func (m *Memory) Read(addr Addr, b []byte) error {
	return m.move("reading", addr, b, false, m.file.ReadAt)
}

// Write puts b at addr. Memory that the process may not write is written too, as a private copy if it is a private
// mapping; a shared mapping that is not writable is refused with EIO or EFAULT.
func (m *Memory) Write(addr Addr, b []byte) error {
	return m.move("writing", addr, b, true, m.file.WriteAt)
}

func (m *Memory) move(what string, addr Addr, b []byte, write bool, slow func([]byte, int64) (int, error)) error {
	for len(b) > 0 {
		n, err := processVM(m.pid, addr, b, write)
		if err != nil || n == 0 {
			n, err = slow(b, int64(addr))
		}
		if errors.Is(err, unix.ESRCH) || n == 0 && m.gone() {
			return fmt.Errorf("%s %d bytes at %v of process %d: %w", what, len(b), addr, m.pid, ErrGone)
		}
		if n == 0 {
			return fmt.Errorf("%s %d bytes at %v of process %d: %w", what, len(b), addr, m.pid, err)
		}
		addr, b = addr.Add(uint64(n)), b[n:]
	}
	return nil
}

func (m *Memory) gone() bool {
	state, _, err := taskState(m.pid)
	return err != nil || state == 'Z' || state == 'X'
}
