package remote

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
	"migrate/engine/thread"
)

// space is what the callers of one process share: its memory and its descriptors, seen from outside.
type space struct {
	pid   int
	mem   *ptrace.Memory
	pidfd int

	mu   sync.Mutex // guards refs
	refs int
}

func openSpace(pid int) (*space, error) {
	mem, err := ptrace.OpenMemory(pid)
	if err != nil {
		return nil, err
	}
	pidfd, err := thread.Pidfd(pid)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			err = ErrGone
		}
		return nil, errors.Join(fmt.Errorf("pidfd_open(%d): %w", pid, err), mem.Close())
	}
	return &space{pid: pid, mem: mem, pidfd: pidfd, refs: 1}, nil
}

func (s *space) retain() *space {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refs++
	return s
}

func (s *space) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs--; s.refs > 0 {
		return nil
	}
	return errors.Join(s.mem.Close(), unix.Close(s.pidfd))
}

// pull returns a descriptor of this process for descriptor fd of the tracee.
func (s *space) pull(fd int) (*os.File, error) {
	own, err := unix.PidfdGetfd(s.pidfd, fd, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("taking descriptor %d of process %d: %w", fd, s.pid, ErrGone)
	case err != nil:
		return nil, fmt.Errorf("taking descriptor %d of process %d (pidfd_getfd): %w", fd, s.pid, err)
	}
	return os.NewFile(uintptr(own), fmt.Sprintf("fd %d of process %d", fd, s.pid)), nil
}

// mapping is one line of /proc/PID/maps, as far as the stub needs it.
type mapping struct {
	start, end Addr
	perms      string
	inode      uint64
	name       string
}

// mappings reads the mappings of a process. engine/procfs has the parser of all there is in them; this package
// must not depend on it for four fields.
func mappings(pid int) ([]mapping, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("mappings of process %d: %w", pid, err)
	}
	var out []mapping
	for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
		m, err := parseMapping(s.Text())
		if err != nil {
			return nil, fmt.Errorf("mappings of process %d: %w", pid, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// parseMapping reads "start-end perms offset device inode name".
func parseMapping(line string) (mapping, error) {
	f := strings.Fields(line)
	if len(f) < 5 {
		return mapping{}, fmt.Errorf("%q has fewer than five fields", line)
	}
	from, to, _ := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	inode, err3 := strconv.ParseUint(f[4], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil || len(f[1]) != 4 || end <= start {
		return mapping{}, fmt.Errorf("%q is no mapping: %w", line, err)
	}
	m := mapping{start: Addr(start), end: Addr(end), perms: f[1], inode: inode}
	if len(f) > 5 {
		m.name = f[5]
	}
	return m, nil
}

func (m mapping) size() uint64 { return uint64(m.end - m.start) }

// vdso returns the mapping of the vDSO's code, if there is one.
func vdso(maps []mapping) (mapping, bool) {
	for _, m := range maps {
		if m.name == "[vdso]" {
			return m, true
		}
	}
	return mapping{}, false
}

// findSyscall returns the address of an instruction that enters the kernel and that stays when the stub at except is
// gone: in the vDSO; or else the one with which the thread, whose registers are given, last did so; or else any in the program.
func findSyscall(s *space, tid int, regs arch.Regs, except Addr) (Addr, error) {
	maps, err := mappings(tid) // the first thread of the process may have ended
	if err != nil {
		return 0, err
	}
	if v, ok := vdso(maps); ok && v.size() <= 1<<20 {
		code := make([]byte, v.size())
		if err := s.mem.Read(v.start, code); err != nil {
			return 0, fmt.Errorf("the vDSO: %w", err)
		}
		if i := arch.FindSyscall(code); i >= 0 {
			return v.start.Add(uint64(i)), nil
		}
	}
	code := make([]byte, 4)
	before := Addr(regs.IP()) - Addr(len(code))
	if err := s.mem.Read(before, code); err == nil {
		if i := arch.FindSyscall(code); i >= 0 && i == len(code)-arch.SyscallSize {
			return before.Add(uint64(i)), nil
		}
	}
	for _, m := range maps {
		if m.perms[2] != 'x' || m.start <= except && except < m.end {
			continue
		}
		if at, ok := s.findIn(m); ok {
			return at, nil
		}
	}
	return 0, fmt.Errorf("process %d has no system call instruction, in a vDSO or elsewhere", s.pid)
}

// maxCode bounds how much of a mapping is searched, in bytes: the C library has one in its first page of code.
const maxCode = 16 << 20

// findIn looks for a system call instruction in a mapping of code. What cannot be read of it is passed over.
func (s *space) findIn(m mapping) (Addr, bool) {
	const step = 64 << 10
	end := m.end
	if m.size() > maxCode {
		end = m.start.Add(maxCode)
	}
	for at := m.start; at < end; at = at.Add(step) {
		code := make([]byte, min(step, uint64(end-at)))
		if err := s.mem.Read(at, code); err != nil {
			continue
		}
		for from := 0; ; from++ {
			i := arch.FindSyscall(code[from:])
			if i < 0 {
				break
			}
			if from += i; arch.SyscallSize != 4 || from%4 == 0 { // instructions of four bytes are aligned
				return at.Add(uint64(from)), true
			}
		}
	}
	return 0, false
}
