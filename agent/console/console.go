//go:build linux

package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed means that the console has been closed: the program has ended, or its copy has left this host.
var ErrClosed = errors.New("the terminal is not here any more")

// State is what moves with a terminal, beside the terminal itself, or with the output of a program that has none.
type State struct {
	Generation string            `json:"generation"`
	Output     uint64            `json:"output"` // bytes that were ever printed and read
	Tail       []byte            `json:"tail"`   // the last of them
	Taken      map[string]uint64 `json:"taken"`  // bytes that were typed, by session
}

// Bounds of a State.
const (
	MaxTail     = 64 << 10 // bytes
	maxSessions = 1024
)

// Validate checks a State that came from another host.
func (s *State) Validate() error {
	if len(s.Tail) > MaxTail || uint64(len(s.Tail)) > s.Output || len(s.Taken) > maxSessions || len(s.Generation) > 64 {
		return fmt.Errorf("state of an output: %d bytes of %d printed, %d sessions, a generation of %d bytes", len(s.Tail), s.Output, len(s.Taken), len(s.Generation))
	}
	return nil
}

// Console is the terminal of a workload on this host.
type Console struct {
	generation string
	base       uint64 // where the file begins in the output
	log        *os.File
	master     int
	epoll      int
	wake       int // eventfd: look again
	done       chan struct{}

	mu      sync.Mutex
	changed chan struct{} // closed and made anew when anything below changes
	size    uint64        // of the file
	taken   map[string]uint64
	window  *unix.Winsize // that was asked for while it was paused
	paused  bool
	closed  bool
	failed  error
}

// Open begins to read a terminal. It takes over the master and the file, which holds the output from base on.
func Open(master, log *os.File, generation string, base uint64, taken map[string]uint64, paused bool) (_ *Console, err error) {
	defer func() { err = errors.Join(err, master.Close()) }() // a duplicate is used
	c := &Console{generation: generation, base: base, log: log, taken: taken, paused: paused, master: -1, epoll: -1, wake: -1,
		changed: make(chan struct{}), done: make(chan struct{})}
	if c.taken == nil {
		c.taken = map[string]uint64{}
	}
	end, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	c.size = uint64(end)
	if c.master, err = unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		err = unix.SetNonblock(c.master, true)
	}
	if err == nil {
		c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	}
	if err == nil {
		c.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err == nil { // edges: a terminal that nobody has open hangs up, until somebody opens it again
		err = unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, c.master, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(c.master)})
	}
	if err == nil {
		err = unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, c.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c.wake)})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("a terminal's epoll: %w", err), c.release())
	}
	go c.run()
	return c, nil
}

// release closes what the console has open.
func (c *Console) release() error {
	errs := []error{c.log.Close()}
	for _, fd := range []int{c.master, c.epoll, c.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// run reads until the console is closed.
func (c *Console) run() {
	defer close(c.done)
	buf := make([]byte, 32<<10)
	events := make([]unix.EpollEvent, 2)
	for {
		c.mu.Lock()
		if !c.paused || c.closed {
			c.drain(buf)
		}
		closed := c.closed
		c.notify() // there may be room to write, too
		c.mu.Unlock()
		if closed {
			return
		}
		if _, err := unix.EpollWait(c.epoll, events, -1); err != nil && !errors.Is(err, unix.EINTR) {
			c.mu.Lock()
			c.failed = fmt.Errorf("waiting for a terminal: %w", err)
			c.mu.Unlock()
			return
		}
		var count [8]byte
		_, _ = unix.Read(c.wake, count[:]) // EAGAIN: it was the terminal
	}
}

// drain reads what is there. A terminal that nobody has open gives EIO.
func (c *Console) drain(buf []byte) {
	for c.failed == nil {
		n, err := unix.Read(c.master, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		if _, err := c.log.Write(buf[:n]); err != nil {
			c.failed = fmt.Errorf("keeping the output: %w", err)
			return
		}
		c.size += uint64(n)
	}
}

// notify tells those who wait that something changed. The mutex is held.
func (c *Console) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Console) poke() {
	_, _ = unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // it fails only when it is full, and then wakes all the same
}

// Pause keeps everything that waits in the terminal where it is, from its return on.
func (c *Console) Pause() { c.setPaused(true) }

// Resume ends a Pause.
func (c *Console) Resume() { c.setPaused(false) }

func (c *Console) setPaused(v bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = v
	if err := c.settleWindow(); err != nil {
		c.failed = err
	}
	c.notify()
	if !c.closed {
		c.poke()
	}
}

// Close ends the console once all that was printed has been read, unless it is paused. It may be called again.
func (c *Console) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.done
		return nil
	}
	c.closed = true
	if c.paused {
		c.failed = ErrClosed // what waits belongs to the copy on the other host
	}
	c.notify()
	c.poke()
	c.mu.Unlock()
	<-c.done
	return c.release()
}

// Snapshot is the state of a paused console.
func (c *Console) Snapshot() (*State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &State{Generation: c.generation, Output: c.base + c.size, Taken: map[string]uint64{}}
	for k, v := range c.taken {
		s.Taken[k] = v
	}
	s.Tail = make([]byte, min(c.size, MaxTail))
	if _, err := c.log.ReadAt(s.Tail, int64(c.size)-int64(len(s.Tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the kept output: %w", err)
	}
	return s, nil
}

// Begin says where somebody who attaches is: where in the output it goes on, how much of its input is taken, and whether its session is
// known. A session that comes anew is, and gets what is printed from now on, or all that is kept.
func (c *Console) Begin(session, generation string, output uint64, whole bool) (from, taken uint64, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.base + c.size
	taken, known = c.taken[session]
	if generation == "" && len(c.taken) < maxSessions {
		c.taken[session], known = 0, true
	}
	if generation == "" && whole {
		return c.base, taken, known
	}
	if generation != c.generation || output > end {
		return end, taken, known
	}
	return max(output, c.base), taken, known
}

// Leave forgets a session whose terminal has been disconnected by its user.
func (c *Console) Leave(session string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.taken, session)
}

// Generation names the counts.
func (c *Console) Generation() string { return c.generation }

// Taken is how much of what a session has typed has reached the terminal.
func (c *Console) Taken(session string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken[session]
}

// Read reads what was printed from an offset on, from the reader's own opening of the file, and waits until there is something, or until
// the session has typed more than it knew. ErrClosed comes after the last of it.
func (c *Console) Read(ctx context.Context, log io.ReaderAt, from uint64, buf []byte, session string, taken uint64) (int, error) {
	for {
		c.mu.Lock()
		end, changed, failed, typed := c.base+c.size, c.changed, c.failed, c.taken[session] != taken
		c.mu.Unlock()
		if from < end {
			n := min(uint64(len(buf)), end-from)
			if _, err := log.ReadAt(buf[:n], int64(from-c.base)); err != nil {
				return 0, fmt.Errorf("the kept output: %w", err)
			}
			return int(n), nil
		}
		select {
		case <-c.done:
			return 0, errors.Join(ErrClosed, failed)
		default:
		}
		if typed {
			return 0, nil
		}
		select {
		case <-changed:
		case <-c.done:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// retry is after how long a terminal that is full is tried again: the kernel tells of room there in most cases, and not in all
// (a program that changes to another line discipline empties it in silence).
const retry = 200 * time.Millisecond

// Write types what a session sends from an offset on; what is taken already is passed over. It returns when all of it has reached the terminal.
func (c *Console) Write(ctx context.Context, session string, offset uint64, data []byte) error {
	for {
		c.mu.Lock()
		changed, full := c.changed, false
		if c.closed {
			c.mu.Unlock()
			return ErrClosed
		}
		at := c.taken[session]
		if offset > at {
			c.mu.Unlock()
			return fmt.Errorf("what was typed has a gap: %d bytes were taken, and this is from %d on", at, offset)
		}
		if at >= offset+uint64(len(data)) {
			c.mu.Unlock()
			return nil
		}
		if !c.paused {
			n, err := unix.Write(c.master, data[at-offset:])
			if n > 0 {
				c.taken[session] = at + uint64(n)
				c.notify()
			}
			full = n <= 0
			if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				c.mu.Unlock()
				return fmt.Errorf("typing: %w", err)
			}
		}
		paused := c.paused
		c.mu.Unlock()
		if !full && !paused {
			continue
		}
		t := time.NewTimer(retry)
		select {
		case <-changed:
		case <-t.C:
		case <-c.done:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Resize gives the window a size.
func (c *Console) Resize(rows, columns uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window = &unix.Winsize{Row: uint16(rows), Col: uint16(columns)}
	return c.settleWindow()
}

func (c *Console) settleWindow() error {
	if c.window == nil || c.closed || c.paused {
		return nil
	}
	err := unix.IoctlSetWinsize(c.master, unix.TIOCSWINSZ, c.window)
	c.window = nil
	if err != nil {
		return fmt.Errorf("TIOCSWINSZ: %w", err)
	}
	return nil
}
