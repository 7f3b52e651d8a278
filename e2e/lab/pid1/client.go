package pid1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrDown means that there is no pid 1 behind the socket: the host is not up.
var ErrDown = errors.New("the host is not up")

// ErrNotRunning means that no service of the given name runs.
var ErrNotRunning = errors.New("not running")

// StartError is the failure of a program to start.
type StartError struct {
	Argv0 string
	Errno syscall.Errno // 0 if it was not the kernel that refused
	Text  string
}

func (e *StartError) Error() string { return fmt.Sprintf("starting %s: %s", e.Argv0, e.Text) }

func (e *StartError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Process is a program that a pid 1 has started for us.
type Process struct {
	PID   int      // in the pid namespace of its host
	Pidfd *os.File // refers to it from anywhere
	conn  *net.UnixConn
	once  sync.Once
}

// shortPath returns a name for the path that fits into sun_path (108 bytes) however long the path is; done ends it.
func shortPath(path string) (short string, done func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, fmt.Errorf("pid1: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { _ = dir.Close() }, nil
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	short, done, err := shortPath(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w (%w)", ErrDown, err)
	} else if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", short)
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%w (%s: %w)", ErrDown, path, err)
	case err != nil:
		return nil, fmt.Errorf("pid1: %s: %w", path, err)
	}
	uc := c.(*net.UnixConn)
	if err := setSendBuffer(uc); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return uc, nil
}

// setSendBuffer makes room for one packet of the largest size.
func setSendBuffer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("pid1: %w", err)
	}
	var opt error
	if err := raw.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*MaxPacket)
	}); err != nil {
		return fmt.Errorf("pid1: %w", err)
	}
	if opt != nil {
		return fmt.Errorf("pid1: SO_SNDBUFFORCE: %w", opt)
	}
	return nil
}

// call sends the request and returns the reply with the pidfd that came with it. The connection stays open on success.
func call(ctx context.Context, path string, r request, files []*os.File) (*net.UnixConn, reply, *os.File, error) {
	c, err := dial(ctx, path)
	if err != nil {
		return nil, reply{}, nil, err
	}
	stop := watch(ctx, c)
	defer stop()
	var answer reply
	var got []*os.File
	if err = send(c, r, files...); err == nil {
		got, err = receive(c, MaxPacket, &answer)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		err = fmt.Errorf("%w (its pid 1 ended during the request)", ErrDown)
	case err == nil && answer.Error == "" && len(got) != 1:
		err = fmt.Errorf("pid1: %s: a reply with %d descriptors, want 1", path, len(got))
	}
	if err != nil || answer.Error != "" {
		closeAll(got)
		return nil, answer, nil, errors.Join(because(ctx, err), ignoreClosed(c.Close()))
	}
	return c, answer, got[0], nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Start asks the pid 1 behind the socket at path to start a program. ctx bounds the start only. A program that is not a
// Daemon must be waited for; it is killed, with its process group, when the caller's process ends or Abandon is called.
func Start(ctx context.Context, path string, s Spawn) (*Process, error) {
	if len(s.Argv) == 0 {
		return nil, errors.New("pid1: no command given")
	}
	if len(s.Files) > maxFiles {
		return nil, fmt.Errorf("pid1: %d descriptors for %s, at most %d can be passed", len(s.Files), s.Argv[0], maxFiles)
	}
	c, answer, pidfd, err := call(ctx, path, request{Op: opSpawn, Spawn: &s}, s.Files)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, &StartError{Argv0: s.Argv[0], Errno: answer.Errno, Text: answer.Error}
	}
	p := &Process{PID: answer.PID, Pidfd: pidfd, conn: c}
	if s.Daemon {
		p.Abandon()
	}
	return p, nil
}

// Find returns a service of the pid 1 behind the socket at path. With an empty name it returns the pid 1 itself. The error
// is ErrNotRunning when there is none.
func Find(ctx context.Context, path, service string) (*Process, error) {
	c, answer, pidfd, err := call(ctx, path, request{Op: opFind, Name: service}, nil)
	if err != nil {
		return nil, err
	}
	if c == nil {
		if answer.Errno == unix.ESRCH {
			return nil, fmt.Errorf("%s: %w", service, ErrNotRunning)
		}
		return nil, fmt.Errorf("pid1: looking for %s: %s", service, answer.Error)
	}
	p := &Process{PID: answer.PID, Pidfd: pidfd, conn: c}
	p.Abandon()
	return p, nil
}

// Wait returns how the program ended. It blocks until then, or until Abandon. If the host ends first, the error is ErrDown.
func (p *Process) Wait() (Exit, error) {
	var e Exit
	_, err := receive(p.conn, 4096, &e)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return Exit{}, fmt.Errorf("%w (it ended before the program did)", ErrDown)
	case err != nil:
		return Exit{}, fmt.Errorf("pid1: waiting for pid %d: %w", p.PID, err)
	}
	return e, nil
}

// Signal sends a signal to the program's process group.
func (p *Process) Signal(s syscall.Signal) error {
	return send(p.conn, signalPacket{Signal: int(s)})
}

// Abandon gives up the connection: a program that is not a daemon is killed by its pid 1. The pidfd stays open.
func (p *Process) Abandon() { p.once.Do(func() { _ = p.conn.Close() }) }

// Close gives up the connection and the pidfd.
func (p *Process) Close() {
	p.Abandon()
	_ = p.Pidfd.Close() // nothing is buffered in it
}
