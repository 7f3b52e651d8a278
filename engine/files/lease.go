//go:build linux

package files

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"golang.org/x/sys/unix"
)

// A lease (F_SETLEASE in fcntl(2)) is recorded as a lock. One that somebody is breaking by opening the file is recorded, as
// CRIU does, with the type that it is to become and this bit; its range, which means nothing for a lease, begins at the type
// that it has.
const leaseBreaking = 4

// guessLease fills in the type of a lease that is being broken, which the kernel does not tell. One that may stay for reading
// was for writing; one that must go was for reading if the file is open for reading only, which such a lease needs.
func guessLease(l *file_lock.FileLockEntry, flags int) {
	typ := int64(l.GetType())
	if l.GetType()&leaseBreaking != 0 {
		typ = unix.F_WRLCK
		if l.GetType() == leaseBreaking|unix.F_UNLCK && flags&unix.O_ACCMODE == unix.O_RDONLY {
			typ = unix.F_RDLCK
		}
	}
	*l.Start, *l.Len = typ, 0
}

// brokenLease is a lease that was being broken.
type brokenLease struct {
	id    uint32 // of the record
	flags int    // with which its file is opened to break it
}

// lease takes a lease in the process, since the signal will tell its number of the descriptor. Nobody owns it while it is being broken: the
// program has had the signal already.
func (in *inside) lease(e *fdinfo.FileEntry, l *file_lock.FileLockEntry) error {
	typ, fd := l.GetStart(), int(l.GetFd())
	if typ != unix.F_RDLCK && typ != unix.F_WRLCK {
		return fmt.Errorf("a lease of type %d", typ)
	}
	in.early(fmt.Sprintf("lease of descriptor %d (is its file open elsewhere?)", fd), unix.SYS_FCNTL, fd, unix.F_SETLEASE, typ)
	in.early(fmt.Sprintf("owner of descriptor %d", fd), unix.SYS_FCNTL, fd, unix.F_SETOWN, 0)
	switch l.GetType() &^ leaseBreaking {
	case l.GetType():
	case unix.F_RDLCK:
		in.broken = append(in.broken, brokenLease{e.GetId(), unix.O_RDONLY})
	default:
		in.broken = append(in.broken, brokenLease{e.GetId(), unix.O_WRONLY})
	}
	return nil
}

// breakLeases begins to break leases as somebody did at the source.
func (in *inside) breakLeases() error {
	for _, b := range in.broken {
		fd, err := in.r.descriptor(b.id)
		if err != nil {
			return err
		}
		other, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), b.flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(errors.New("nothing stands in the way of another open"), unix.Close(other))
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("file %d: breaking its lease: %w", b.id, err)
		}
	}
	return nil
}
