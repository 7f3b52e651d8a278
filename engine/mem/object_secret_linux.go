package mem

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/thread"
)

// Secret memory (memfd_secret(2)) cannot be read from outside of a process that has it mapped, but whoever has its descriptor can map it.
// It cannot be opened anew, has no read(2) and no holes, and gets its size once.

// secretMagic is SECRETMEM_MAGIC (include/uapi/linux/magic.h).
const secretMagic = 0x5345434d

// errSecretClosed means that a process has a mapping of secret memory and no descriptor.
var errSecretClosed = errors.New("secret memory (memfd_secret) whose descriptor the process has closed cannot be read")

// secretFile gets a descriptor of what a link of /proc leads to: the one that it names, or one that the process has which it names.
func secretFile(link string, st *unix.Stat_t) (*os.File, error) {
	parts := strings.Split(strings.TrimPrefix(link, "/proc/"), "/")
	if len(parts) == 3 && parts[0] == "self" && parts[1] == "fd" {
		own, err := strconv.Atoi(parts[2])
		if err != nil {
			return nil, err
		}
		fd, err := unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewFile(uintptr(fd), secretName), err
	}
	pid, err := strconv.Atoi(parts[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", link, ErrNoObject)
	}
	numbers, err := procfs.Host.FDs(pid)
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		var its unix.Stat_t
		if unix.Stat(procfs.Host.Path(pid, "fd", n), &its) != nil || its.Dev != st.Dev || its.Ino != st.Ino {
			continue
		}
		return takeDescriptor(pid, n)
	}
	return nil, errSecretClosed
}

// takeDescriptor duplicates a descriptor of another process.
func takeDescriptor(pid, n int) (_ *os.File, err error) {
	pidfd, err := thread.Pidfd(pid)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	defer func() { err = errors.Join(err, unix.Close(pidfd)) }()
	fd, err := unix.PidfdGetfd(pidfd, n, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_getfd %d of process %d: %w", n, pid, err)
	}
	return os.NewFile(uintptr(fd), secretName), nil
}

const secretName = "/secretmem"

// newSecret makes secret memory.
func newSecret(r *imagespb.Object) (*os.File, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_secret: %w", err)
	}
	f := os.NewFile(uintptr(fd), secretName)
	if r.GetSize() == 0 {
		return f, nil
	}
	if err := f.Truncate(int64(r.GetSize())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// content is the parts of an object that may hold something else than zeros.
func (x *object) content() ([]Range, error) {
	if x.record.Kind != imagespb.Object_SECRET {
		return extentsOf(x.file, x.record.Size)
	}
	return populated(x.file, pageUp(x.record.Size))
}

// secretWindow is how much of a piece of secret memory is mapped at once to be asked about, in bytes.
const secretWindow = 1 << 30

// populated is the pages of secret memory that are there, of size bytes: to read one that is not would make it, out of memory that
// nothing can take back. mincore(2) tells of them, and none is ever swapped out.
func populated(f *os.File, size uint64) (out []Range, err error) {
	for at := uint64(0); at < size; at += secretWindow {
		n := min(size-at, secretWindow)
		m, err := unix.Mmap(int(f.Fd()), int64(at), int(n), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err != nil {
			return nil, fmt.Errorf("mapping secret memory: %w", err)
		}
		there := make([]byte, n/PageSize)
		_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(addressOf(m)), uintptr(n), uintptr(addressOf(there)))
		runtime.KeepAlive(there)
		if err := unix.Munmap(m); err != nil {
			return nil, err
		}
		if e != 0 {
			return nil, fmt.Errorf("mincore of secret memory: %w", e)
		}
		for i, b := range there {
			start := at + uint64(i)*PageSize
			switch last := len(out) - 1; {
			case b&1 == 0:
			case last >= 0 && out[last].End == start:
				out[last].End += PageSize
			default:
				out = append(out, Range{start, start + PageSize})
			}
		}
	}
	return out, nil
}

// readAt reads the object as ReadAt does.
func (x *object) readAt(buf []byte, off int64) (n int, err error) {
	if x.record.Kind != imagespb.Object_SECRET {
		return x.file.ReadAt(buf, off)
	}
	m, err := unix.Mmap(int(x.file.Fd()), off, len(buf), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("mapping secret memory: %w", err)
	}
	n = copy(buf, m)
	return n, unix.Munmap(m)
}
