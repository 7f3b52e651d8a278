package volume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Receiver is the destination's side: it changes units as the source says. Serve may be called again when a connection
// has broken; the newest connection ends the one before it.
type Receiver struct {
	units []Unit

	mu     sync.Mutex
	closed bool
	cancel context.CancelFunc // of the connection that is served; nil for none
	done   chan struct{}
}

// NewReceiver takes units that have been claimed (Store.Claim).
func NewReceiver(units []Unit) *Receiver { return &Receiver{units: units} }

// ErrClosed means that the move that the files are for has ended.
var ErrClosed = errors.New("no more files are taken")

// enter ends the connection before, and claims the units for a new one.
func (r *Receiver) enter(ctx context.Context) (context.Context, func(), error) {
	for {
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return nil, nil, ErrClosed
		}
		if r.cancel == nil {
			ctx, cancel := context.WithCancel(ctx)
			done := make(chan struct{})
			r.cancel, r.done = cancel, done
			r.mu.Unlock()
			return ctx, func() {
				cancel()
				r.mu.Lock()
				r.cancel = nil
				r.mu.Unlock()
				close(done)
			}, nil
		}
		cancel, done := r.cancel, r.done
		r.mu.Unlock()
		cancel()
		<-done
	}
}

// Close ends the connection that is served, and takes no more. It returns when nothing is written any more.
func (r *Receiver) Close() {
	r.mu.Lock()
	r.closed = true
	cancel, done := r.cancel, r.done
	r.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// Serve does what arrives over a connection until its end, and closes it.
func (r *Receiver) Serve(ctx context.Context, c net.Conn) (err error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	defer leave()
	defer func() {
		if cerr := c.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}()
	w := &writer{units: r.units, dirs: map[place]bool{}, times: map[place]Entry{}, out: bufio.NewWriterSize(c, 64<<10)}
	if err = w.open(); err == nil {
		err = within(ctx, c, func() error { return w.serve(bufio.NewReaderSize(c, 1<<20)) })
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		w.fail(c, err)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, w.close())
}

// failTime bounds how long a failure is told to a source that may not listen.
const failTime = 2 * time.Second

// fail says why the destination cannot go on, and reads what is under way, so that the answer is not lost with it.
func (w *writer) fail(c net.Conn, err error) {
	text := err.Error()
	_ = c.SetDeadline(time.Now().Add(failTime))
	if _, err := w.out.Write(appendFrame(nil, kindFailure, []byte(text[:min(len(text), maxText)]))); err != nil {
		return
	}
	if err := w.out.Flush(); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, c) // until the source closes, or the deadline
}

// writer changes the files of the units.
type writer struct {
	units []Unit
	roots []*os.File
	out   *bufio.Writer

	file *openFile // that was begun
	// Since the last sync:
	unsynced []*os.File
	dirs     map[place]bool
	many     bool // too much to flush one by one
	times    map[place]Entry
	plain    []byte
}

// place is a path of a unit.
type place struct {
	unit uint32
	path string
}

// openFile is a regular file that is being written.
type openFile struct {
	f     *os.File
	entry Entry
	dir   place
}

// maxUnsynced is how many files are flushed one by one; for more, the whole file system is.
const maxUnsynced = 32

func (w *writer) open() error {
	for _, u := range w.units {
		root, err := openRoot(u.Dir)
		if err != nil {
			return err
		}
		w.roots = append(w.roots, root)
	}
	return nil
}

func (w *writer) close() error {
	var errs []error
	if w.file != nil {
		errs = append(errs, w.file.f.Close())
	}
	for _, f := range append(w.unsynced, w.roots...) {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (w *writer) serve(in *bufio.Reader) error {
	var buf []byte
	for {
		k, p, b, err := readFrame(in, buf)
		buf = b
		if err != nil {
			return err
		}
		if err := w.do(k, p); err != nil {
			return err
		}
	}
}

func (w *writer) do(k kind, p []byte) error {
	switch k {
	case kindEntry:
		return w.entry(p)
	case kindData, kindPacked, kindHole, kindZero, kindEnd:
		if w.file == nil {
			return fmt.Errorf("%w: %v without a file", ErrCorrupt, k)
		}
		return w.content(k, p)
	case kindRemove:
		return w.names(p, 1, w.remove)
	case kindLink:
		return w.names(p, 2, w.link)
	case kindRename:
		return w.names(p, 2, w.rename)
	case kindSync:
		if err := w.sync(); err != nil {
			return err
		}
		return w.answer(kindSynced, nil)
	case kindList:
		return w.names(p, 0, w.list)
	case kindHave:
		return w.names(p, 1, w.have)
	}
	return fmt.Errorf("%w: %v to a destination", ErrCorrupt, k)
}

func (w *writer) answer(k kind, payload []byte) error {
	if _, err := w.out.Write(appendFrame(nil, k, payload)); err != nil {
		return err
	}
	return w.out.Flush()
}

// unit checks that a path is one of a unit's.
func (w *writer) unit(n uint32, path string) error {
	if n >= uint32(len(w.units)) {
		return fmt.Errorf("%w: unit %d of %d", ErrCorrupt, n, len(w.units))
	}
	if u := w.units[n]; u.Name != "" && path != u.Name {
		return fmt.Errorf("%w: path %.100q of the unit %s", ErrCorrupt, path, u.Path())
	}
	if w.units[n].Name == "" && isOurs(path) {
		return fmt.Errorf("%w: path %.100q is this program's own", ErrCorrupt, path)
	}
	return nil
}

// names calls f for a message of n paths, none of which may be the root.
func (w *writer) names(p []byte, n int, f func(unit uint32, paths []string) error) error {
	if w.file != nil {
		return fmt.Errorf("%w: a file does not end", ErrCorrupt)
	}
	unit, paths, err := decodeNames(p, n)
	if err != nil {
		return err
	}
	if n == 0 && unit >= uint32(len(w.units)) {
		return fmt.Errorf("%w: unit %d of %d", ErrCorrupt, unit, len(w.units))
	}
	for _, path := range paths {
		if err := w.unit(unit, path); err != nil {
			return err
		}
		if path == "" {
			return fmt.Errorf("%w: the root of a unit in the place of a name in it", ErrCorrupt)
		}
	}
	return f(unit, paths)
}

// content writes to the file that was begun.
func (w *writer) content(k kind, p []byte) error {
	f := w.file
	var err error
	switch k {
	case kindEnd:
		return w.finish()
	case kindHole, kindZero:
		var s span
		if s, err = decodeSpan(p); err == nil {
			err = f.clear(s, k == kindZero)
		}
	default:
		var at uint64
		var data []byte
		if at, data, err = decodeData(p); err != nil {
			return err
		}
		if k == kindPacked {
			if data, err = w.unpack(data); err != nil {
				return err
			}
		}
		if at+uint64(len(data)) > f.entry.Size {
			return fmt.Errorf("%w: %d bytes at %d of %s, which has %d", ErrCorrupt, len(data), at, f.entry.Path, f.entry.Size)
		}
		_, err = f.f.WriteAt(data, int64(at))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.f.Name(), err)
	}
	return nil
}

func (w *writer) unpack(data []byte) ([]byte, error) {
	n, err := s2.DecodedLen(data)
	if err != nil || n > blockSize {
		return nil, fmt.Errorf("%w: a compressed block of %d bytes: %w", ErrCorrupt, n, err)
	}
	if w.plain == nil {
		w.plain = make([]byte, blockSize)
	}
	out, err := s2.Decode(w.plain[:n], data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return out, nil
}

// clear makes a range read as zeroes: with room on the disk, or as a hole.
func (f *openFile) clear(s span, room bool) error {
	if s.end() > f.entry.Size {
		return fmt.Errorf("%w: a range up to %d of %d bytes", ErrCorrupt, s.end(), f.entry.Size)
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if room {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := unix.Fallocate(int(f.f.Fd()), mode, int64(s.offset), int64(s.length))
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zero := make([]byte, min(s.length, 1<<20))
	for at := s.offset; at < s.end(); {
		n := min(uint64(len(zero)), s.end()-at)
		if _, err := f.f.WriteAt(zero[:n], int64(at)); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// sync flushes what was written since the last call, and then its directories.
func (w *writer) sync() error {
	if w.file != nil {
		return fmt.Errorf("%w: a file does not end", ErrCorrupt)
	}
	if err := w.dirTimes(); err != nil {
		return err
	}
	files, dirs := w.unsynced, w.dirs
	w.unsynced, w.dirs = nil, map[place]bool{}
	defer func() {
		for _, f := range files {
			_ = f.Close() // it has been flushed
		}
	}()
	if w.many || len(dirs) > maxUnsynced {
		w.many = false
		for i, r := range w.roots {
			if err := unix.Syncfs(int(r.Fd())); err != nil {
				return fmt.Errorf("flushing the file system of %s: %w", w.units[i].Path(), err)
			}
		}
		return nil
	}
	var group errgroup.Group
	for _, f := range files {
		group.Go(f.Sync)
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for d := range dirs {
		if err := w.syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) syncDir(d place) error {
	fd, err := openBeneath(int(w.roots[d.unit].Fd()), d.path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) { // it was removed after it was changed
		return nil
	}
	if err == nil {
		err = errors.Join(unix.Fsync(fd), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("flushing directory %s/%s: %w", w.units[d.unit].Dir, d.path, err)
	}
	return nil
}
