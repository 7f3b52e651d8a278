package mem

import (
	"errors"
	"fmt"
	"os"
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
	if x.record.Size == 0 {
		return nil, nil
	}
	return []Range{{0, pageUp(x.record.Size)}}, nil
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
