//go:build linux

package files

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
)

// Kinds of locks as CRIU records them (include/linux/filelock.h).
const (
	lockPOSIX = 1    // FL_POSIX: of a process, fcntl(2) F_SETLK
	lockFlock = 2    // FL_FLOCK: of a description, flock(2)
	lockLease = 32   // FL_LEASE: of a description, fcntl(2) F_SETLEASE
	lockOFD   = 1024 // FL_OFDLCK: of a description, fcntl(2) F_OFD_SETLK
)

// maxLocks bounds the locks of one description in an image.
const maxLocks = 1 << 16

// lockBlob holds CRIU's file_lock_entry messages of a description, each after its length (4 bytes, little-endian).
func lockBlob(id uint32) string { return fmt.Sprintf("locks-%d", id) }

// lockedInodes lists the inode numbers that /proc/locks names (proc_locks(5)). Numbers of different file systems may coincide:
// it only saves reading fdinfo of files without locks.
func lockedInodes() (map[uint64]bool, error) {
	b, err := procfs.Host.Bytes("locks")
	if err != nil {
		return nil, err
	}
	out := map[uint64]bool{}
	for line := range bytes.Lines(b) {
		for _, f := range bytes.Fields(line) {
			if p := bytes.LastIndexByte(f, ':'); p >= 0 && bytes.Count(f, []byte(":")) == 2 {
				if ino, err := strconv.ParseUint(string(f[p+1:]), 10, 64); err == nil {
					out[ino] = true
				}
			}
		}
	}
	return out, nil
}

// manyFiles is from how many descriptors on the list of all locks is read in a stopped tree. The kernel waits for a grace period
// of RCU before it shows the list (percpu_down_write in locks_start, fs/locks.c), 10 ms and more, in which some hundreds of
// descriptors are asked.
const manyFiles = 500

// perhapsLocked is false when a description has no lock for certain.
func (d *Dumper) perhapsLocked(desc *description) (bool, error) {
	if d.frozen && d.current != nil && d.current.regular < manyFiles {
		return true, nil
	}
	if d.locked == nil {
		var err error
		if d.locked, err = lockedInodes(); err != nil {
			return false, err
		}
	}
	return d.locked[desc.stat.Ino], nil
}

// locksOf reads the locks that were taken through a description, by any of its holders.
func (d *Dumper) locksOf(desc *description) ([]*file_lock.FileLockEntry, error) {
	if desc.flags&unix.O_PATH != 0 || desc.format() != unix.S_IFREG {
		return nil, nil
	}
	if locked, err := d.perhapsLocked(desc); err != nil || !locked {
		return nil, err
	}
	var out []*file_lock.FileLockEntry
	seen := map[int]bool{} // processes
	for n, h := range desc.holders {
		if h.fd == inFlight {
			i, err := desc.fdinfo()
			if err == nil && len(i.Locks) > 0 {
				err = fmt.Errorf("it is locked and in flight: %w", ErrNotCarried)
			}
			return nil, err
		}
		i, err := procfs.Host.FDInfo(h.proc.PID, h.fd)
		if err != nil {
			return nil, err
		}
		for _, line := range i.Locks {
			l, err := parseLock(line)
			if err != nil {
				return nil, err
			}
			// A lock of the description shows at each holder, one of a process at each of its own.
			if l.GetFlag() == lockPOSIX && seen[h.proc.PID] || l.GetFlag() != lockPOSIX && n > 0 {
				continue
			}
			by := h
			if l.GetFlag() != lockPOSIX {
				by = taker(desc, int(l.GetPid()))
			}
			l.Pid, l.Fd = proto.Int32(int32(by.proc.VPID)), proto.Int32(int32(by.fd))
			if l.GetFlag() == lockLease {
				guessLease(l, desc.flags)
			}
			out = append(out, l)
		}
		seen[h.proc.PID] = true
	}
	return out, nil
}

// taker is the holder that has taken a lock of a description, or its first one if that one holds it no more.
func taker(desc *description, pid int) holder {
	for _, h := range desc.holders {
		if h.proc.Group() == pid {
			return h
		}
	}
	return desc.holders[0]
}

// parseLock parses "1: POSIX  ADVISORY  WRITE 14912 fe:00:9991697 0 EOF" (fs/locks.c, lock_get_status). The process is that of this
// host, until the caller knows better.
func parseLock(line string) (*file_lock.FileLockEntry, error) {
	f := strings.Fields(line)
	if len(f) != 8 {
		return nil, fmt.Errorf("it has a lock of an unknown form (%s)", line)
	}
	flag, ok := map[string]uint32{"POSIX": lockPOSIX, "FLOCK": lockFlock, "OFDLCK": lockOFD, "LEASE": lockLease}[f[1]]
	typ, ok2 := map[string]uint32{"READ": unix.F_RDLCK, "WRITE": unix.F_WRLCK, "UNLCK": unix.F_UNLCK}[f[3]]
	pid, err := strconv.ParseInt(f[4], 10, 32)
	switch {
	case !ok || !ok2 || err != nil:
		ok = false
	case flag == lockLease:
		ok = f[2] == "ACTIVE" || f[2] == "BREAKING"
		if f[2] == "BREAKING" {
			typ |= leaseBreaking
		}
	default:
		ok = f[2] == "ADVISORY" && typ != unix.F_UNLCK
	}
	if !ok {
		return nil, fmt.Errorf("it has a lock that is not carried (%s)", strings.Join(f, " "))
	}
	start, err := strconv.ParseInt(f[6], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("start of a lock: %w", err)
	}
	length := int64(0) // to the end of the file, however it grows
	if f[7] != "EOF" {
		end, err := strconv.ParseInt(f[7], 10, 64)
		if err != nil || end < start || end == math.MaxInt64 {
			return nil, fmt.Errorf("end of a lock: %q", f[7])
		}
		length = end - start + 1
	}
	return &file_lock.FileLockEntry{Flag: proto.Uint32(flag), Pid: proto.Int32(int32(pid)), Type: proto.Uint32(typ), Start: proto.Int64(start), Len: proto.Int64(length)}, nil
}

// lockProblems names locks that are not carried.
func (d *Dumper) lockProblems(desc *description) []problem {
	if _, err := d.locksOf(desc); err != nil {
		return []problem{{reason: err.Error()}}
	}
	return nil
}

// locks records the locks of a description.
func (r *dump) locks(desc *description) error {
	list, err := r.locksOf(desc)
	if err != nil || len(list) == 0 {
		return err
	}
	var blob []byte
	for _, l := range list {
		b, err := proto.Marshal(l)
		if err != nil {
			return fmt.Errorf("record a lock: %w", err)
		}
		blob = append(binary.LittleEndian.AppendUint32(blob, uint32(len(b))), b...)
	}
	r.blob(lockBlob(desc.id), blob)
	return nil
}

// locksIn reads a blob of locks.
func (r *Restorer) locksIn(id uint32) ([]*file_lock.FileLockEntry, error) {
	var out []*file_lock.FileLockEntry
	for b := r.cp.Blobs[lockBlob(id)]; len(b) > 0; {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) || len(out) == maxLocks {
			return nil, fmt.Errorf("blob %s: lock %d is cut off or one too many", lockBlob(id), len(out))
		}
		n := binary.LittleEndian.Uint32(b)
		l := &file_lock.FileLockEntry{}
		if err := proto.Unmarshal(b[4:4+n], l); err != nil {
			return nil, fmt.Errorf("blob %s: lock %d: %w", lockBlob(id), len(out), err)
		}
		out, b = append(out, l), b[4+n:]
	}
	return out, nil
}

// settleLocks takes the locks that belong to a description.
func (r *Restorer) settleLocks(e *fdinfo.FileEntry) error {
	list, err := r.locksIn(e.GetId())
	if err != nil || len(list) == 0 {
		return err
	}
	fd, err := r.descriptor(e.GetId())
	if err != nil {
		return err
	}
	for _, l := range list {
		switch l.GetFlag() {
		case lockPOSIX, lockFlock, lockLease: // insideLocks: the kernel remembers who took them
		case lockOFD:
			err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: int16(l.GetType()), Start: l.GetStart(), Len: l.GetLen()})
		default:
			return fmt.Errorf("a lock of type %d", l.GetFlag())
		}
		if err != nil {
			return fmt.Errorf("take the lock of %s (does somebody else hold it?): %w", e.Reg.GetName(), err)
		}
	}
	return nil
}

// insideLocks takes the locks that belong to a process, and those of a description that it has taken.
func insideLocks(in *inside, e *fdinfo.FileEntry) error {
	list, err := in.r.locksIn(e.GetId())
	if err != nil {
		return err
	}
	for _, l := range list {
		if l.GetFlag() == lockOFD || int(l.GetPid()) != in.p.VPID {
			continue
		}
		if in.table[int(l.GetFd())] != e.GetId() {
			return fmt.Errorf("a lock of descriptor %d, which is another file", l.GetFd())
		}
		what := fmt.Sprintf("lock of descriptor %d (does somebody else hold it?)", l.GetFd())
		switch l.GetFlag() {
		case lockLease:
			if err := in.lease(e, l); err != nil {
				return err
			}
			continue
		case lockFlock:
			how := unix.LOCK_SH
			if l.GetType() == unix.F_WRLCK {
				how = unix.LOCK_EX
			}
			in.call(what, unix.SYS_FLOCK, int(l.GetFd()), how|unix.LOCK_NB)
			continue
		}
		var b []byte // struct flock
		b = binary.LittleEndian.AppendUint64(b, uint64(uint16(l.GetType())))
		b = binary.LittleEndian.AppendUint64(b, uint64(l.GetStart()))
		b = binary.LittleEndian.AppendUint64(b, uint64(l.GetLen()))
		b = binary.LittleEndian.AppendUint64(b, 0)
		in.call(what, unix.SYS_FCNTL, int(l.GetFd()), unix.F_SETLK, in.batch.Bytes(b))
	}
	return nil
}
