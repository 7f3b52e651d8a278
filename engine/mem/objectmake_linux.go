package mem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/remote"
)

// An Object is memory or a file without a name, at the destination. It lives as long as it is open, and on as what the
// processes of the tree have of it.
type Object struct {
	record *imagespb.Object
	file   *os.File // for writing, until Settle; of those without content an O_PATH handle
	writer *ObjectWriter
	// Of System V shared memory: a process in its IPC namespace, whether it was made here, and whether others have it attached.
	ipc           int
	made, foreign bool
	settled       bool
	first         *os.File // of a file without a name, by which it was made: the only one that has O_TMPFILE among its flags
}

// ObjectEnv is where objects are made: Root is the root directory of the tree's mount namespace, as a path of this program,
// Caller a process of the tree that is being built.
type ObjectEnv struct {
	Root   string
	Caller remote.Caller
}

// NewObject makes an object, empty.
func NewObject(ctx context.Context, env ObjectEnv, r *imagespb.Object) (_ *Object, err error) {
	root, err := os.OpenFile(env.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the root directory of the tree: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	m := maker{root}
	o := &Object{record: r}
	switch r.GetKind() {
	case imagespb.Object_ANON:
		o.file, err = NewSharedMemory(ctx, env.Caller, r.GetSize(), r.GetHugePage())
	case imagespb.Object_MEMFD:
		o.file, err = newMemfd(r)
	case imagespb.Object_SECRET:
		o.file, err = newSecret(r)
	case imagespb.Object_SYSV:
		o, err = newSegment(env.Caller.PID(), r)
		if err != nil {
			return nil, fmt.Errorf("object %d: %w", r.GetId(), err)
		}
		return o, nil
	case imagespb.Object_FILE:
		o.file, err = m.file(r)
	case imagespb.Object_LINK:
		o.file, err = m.link(r)
	case imagespb.Object_DIRECTORY:
		o.file, err = m.directory(r)
	case imagespb.Object_SYMLINK:
		o.file, err = m.symlink(r)
	default:
		err = fmt.Errorf("kind %v is not known", r.GetKind())
	}
	if err != nil {
		return nil, fmt.Errorf("object %d: %w", r.GetId(), err)
	}
	o.addWriter()
	return o, nil
}

func (o *Object) addWriter() {
	if hasContent(o.record) {
		o.writer = NewObjectWriter(o.file, o.record.GetId(), o.record.GetSize())
		o.writer.huge = o.record.GetHugePage()
		if o.record.GetKind() == imagespb.Object_SECRET {
			o.writer.huge = PageSize // it is written by mappings, too
		}
	}
}

// Writer takes the pages of the object. It is nil for one without content.
func (o *Object) Writer() *ObjectWriter { return o.writer }

// File is the object, open; nil if there is none.
func (o *Object) File() *os.File {
	if o == nil {
		return nil
	}
	return o.file
}

// Record is what is known of the object.
func (o *Object) Record() *imagespb.Object { return o.record }

// Follow makes the object what it has become at the source.
func (o *Object) Follow(r *imagespb.Object) error {
	if r.GetKind() != o.record.GetKind() {
		return fmt.Errorf("object %d: it was a %v and is a %v now", r.GetId(), o.record.GetKind(), r.GetKind())
	}
	resizes := r.GetKind() == imagespb.Object_MEMFD || r.GetKind() == imagespb.Object_FILE ||
		r.GetKind() == imagespb.Object_SECRET && o.record.GetSize() == 0 // which gets its size once
	if resizes && r.GetSize() != o.record.GetSize() {
		if err := o.file.Truncate(int64(r.GetSize())); err != nil {
			return fmt.Errorf("object %d: %w", r.GetId(), err)
		}
		o.writer.Resize(r.GetSize())
	}
	o.record = r
	return nil
}

// Open opens the object with the given flags of open(2). The file stays open when the object is closed.
func (o *Object) Open(flags int) (*os.File, error) {
	if o.record.GetKind() == imagespb.Object_SYMLINK && flags&unix.O_PATH != 0 || o.record.GetKind() == imagespb.Object_SECRET {
		fd, err := unix.FcntlInt(o.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("object %d: %w", o.record.GetId(), err)
		}
		return os.NewFile(uintptr(fd), o.file.Name()), nil
	}
	if f := o.first; f != nil && flags&unix.O_TMPFILE == unix.O_TMPFILE && flags&unix.O_ACCMODE == unix.O_RDWR {
		o.first = nil
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	if o.record.GetMode()&unix.S_IFMT == unix.S_IFREG {
		flags &^= unix.O_TMPFILE // and with it O_DIRECTORY
	}
	return reopen(o.file, flags&^unix.O_NOFOLLOW)
}

// Settle gives the object what it has beside its content, when all pages have come. Nothing writes to it any more.
func (o *Object) Settle() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("object %d (%s): %w", o.record.GetId(), o.file.Name(), err)
		}
	}()
	r, fd := o.record, int(o.file.Fd())
	if r.GetKind() == imagespb.Object_SYSV {
		o.settled = true
		return o.settleSegment()
	}
	switch r.GetKind() {
	case imagespb.Object_MEMFD, imagespb.Object_FILE, imagespb.Object_DIRECTORY:
	default:
		return nil
	}
	if err := o.fillHoles(); err != nil {
		return err
	}
	if err := errors.Join(unix.Fchown(fd, int(r.GetUid()), int(r.GetGid())), unix.Fchmod(fd, r.GetMode()&0o7777)); err != nil {
		return fmt.Errorf("owner and mode: %w", err)
	}
	times := []unix.Timespec{unix.NsecToTimespec(r.GetAtime()), unix.NsecToTimespec(r.GetMtime())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	if err := o.seal(); err != nil {
		return err
	}
	// A program cannot be executed while it is open for writing, and closing an O_PATH descriptor is no event for who watches.
	f, err := reopen(o.file, unix.O_PATH)
	if err != nil {
		return err
	}
	if r.GetTmpfile() {
		o.first = o.file
	} else {
		err = o.file.Close()
	}
	o.file = f
	return err
}

// fillHoles writes zeros where the source has zeros and not a hole.
func (o *Object) fillHoles() error {
	for _, e := range o.record.GetExtents() {
		end := int64(min(e.GetEnd(), o.record.GetSize()))
		for at := int64(e.GetStart()); at < end; {
			hole, err := unix.Seek(int(o.file.Fd()), at, unix.SEEK_HOLE)
			if err != nil {
				return fmt.Errorf("SEEK_HOLE at %d: %w", at, err)
			}
			if at = hole; at >= end {
				break
			}
			data, err := unix.Seek(int(o.file.Fd()), at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				data, err = end, nil
			}
			if err != nil {
				return fmt.Errorf("SEEK_DATA at %d: %w", at, err)
			}
			for data = min(data, end); at < data; {
				n, err := o.file.WriteAt(zeroes[:min(BatchBytes, data-at)], at)
				if err != nil {
					return err
				}
				at += int64(n)
			}
		}
	}
	return nil
}

// seal seals a memfd as it was.
func (o *Object) seal() error {
	if o.record.GetKind() != imagespb.Object_MEMFD {
		return nil
	}
	if _, err := unix.FcntlInt(o.file.Fd(), unix.F_ADD_SEALS, int(o.record.GetSeals())); err != nil {
		return fmt.Errorf("seals 0x%x: %w", o.record.GetSeals(), err)
	}
	return nil
}

// Release removes the name that was made at the source for the restore, when the tree is about to run.
func (o *Object) Release(root string) error {
	if !o.record.GetTemporary() || o.record.GetKind() != imagespb.Object_LINK {
		return nil
	}
	if name := root + o.record.GetOther(); namesFile(name, o.file) {
		return unix.Unlink(name)
	}
	return nil
}

// Close lets go of the object.
func (o *Object) Close() error {
	if o.first != nil {
		return errors.Join(o.first.Close(), o.file.Close())
	}
	return o.file.Close()
}
