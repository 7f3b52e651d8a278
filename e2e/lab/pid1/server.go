package pid1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Path is the search path that programs get by default, and in which a command without a slash is looked up.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

type server struct {
	mu       sync.Mutex
	children map[int]chan Exit // the waiters, by pid; a channel has room for the one value it gets
	services map[string]int
}

// Serve runs the pid 1: it accepts requests on the listener and reaps. It returns only when the listener fails; a pid 1
// is meant to be killed.
func Serve(l *net.UnixListener) error {
	// Handled by not looking at them, not ignored: programs would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGQUIT)
	unix.Umask(0o022)
	if err := os.Setenv("PATH", Path); err != nil {
		return fmt.Errorf("pid1: %w", err)
	}
	s := &server{children: map[int]chan Exit{}, services: map[string]int{}}
	exits := make(chan os.Signal, 1)
	signal.Notify(exits, syscall.SIGCHLD)
	go s.reap(exits)
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return fmt.Errorf("pid1: %w", err)
		}
		go s.handle(c)
	}
}

// reap runs as long as the process does. A SIGCHLD may stand for several exits, so each is followed until none is left.
func (s *server) reap(exits <-chan os.Signal) {
	for range exits {
		for s.reapOne() {
		}
	}
}

func (s *server) reapOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
	if errors.Is(err, syscall.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if waiter, ok := s.children[pid]; ok {
		waiter <- exitOf(ws)
		delete(s.children, pid)
	}
	for name, p := range s.services {
		if p == pid {
			delete(s.services, name)
		}
	}
	return true
}

// handle serves one connection and ends with it.
func (s *server) handle(c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	var r request
	files, err := receive(c, MaxPacket, &r)
	if err != nil {
		return // nobody is there who could be told
	}
	defer func() { closeAll(files) }()
	switch {
	case r.Op == opSpawn && r.Spawn != nil && len(r.Spawn.Argv) > 0:
		s.spawn(c, r.Spawn, files)
	case r.Op == opFind:
		s.find(c, r.Name)
	default:
		_ = send(c, reply{Error: fmt.Sprintf("operation %d is not known to this pid 1", r.Op)})
	}
}

func (s *server) find(c *net.UnixConn, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pid := os.Getpid()
	if name != "" {
		var ok bool
		if pid, ok = s.services[name]; !ok {
			_ = send(c, reply{Errno: unix.ESRCH, Error: "not running"})
			return
		}
	}
	pidfd, err := openPidfd(pid)
	if err != nil {
		_ = send(c, reply{Error: err.Error()})
		return
	}
	_ = send(c, reply{PID: pid}, pidfd)
	_ = pidfd.Close()
}

func (s *server) spawn(c *net.UnixConn, sp *Spawn, files []*os.File) {
	pid, pidfd, exit, err := s.start(sp, files)
	if err != nil {
		r := reply{Error: err.Error()}
		_ = errors.As(err, &r.Errno)
		_ = send(c, r)
		return
	}
	closeAll(files)                     // else a pipe would not end with the program
	_ = send(c, reply{PID: pid}, pidfd) // if the asker has gone, relay sees it and kills
	_ = pidfd.Close()
	if sp.Daemon {
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.relay(c, pid)
	}()
	e := <-exit
	_ = send(c, e)
	_ = c.Close()
	<-gone
}

// relay passes signals on until the connection ends, and then kills what is left of the program.
func (s *server) relay(c *net.UnixConn, pid int) {
	for {
		var sig signalPacket
		files, err := receive(c, 4096, &sig)
		if err != nil {
			s.kill(pid, syscall.SIGKILL)
			return
		}
		closeAll(files)
		s.kill(pid, syscall.Signal(sig.Signal))
	}
}

// kill signals the process group of a child that has not been reaped. That it has just ended is no error.
func (s *server) kill(pid int, sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.children[pid]; ok {
		_ = syscall.Kill(-pid, sig)
	}
}

// start forks. The pidfd belongs to the caller.
func (s *server) start(sp *Spawn, files []*os.File) (int, *os.File, <-chan Exit, error) {
	path, err := lookup(sp)
	if err != nil {
		return 0, nil, nil, err
	}
	attr := &syscall.ProcAttr{Dir: sp.Dir, Env: sp.Env, Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: sp.Namespaces}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	if sp.Cgroup != "" {
		dir, err := os.Open(sp.Cgroup)
		if err != nil {
			return 0, nil, nil, err
		}
		defer func() { _ = dir.Close() }()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(path, sp.Argv, attr)
	if err != nil {
		return 0, nil, nil, err
	}
	pidfd, err := openPidfd(pid)
	if err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return 0, nil, nil, err
	}
	exit := make(chan Exit, 1)
	s.children[pid] = exit
	if sp.Service != "" {
		s.services[sp.Service] = pid
	}
	return pid, pidfd, exit, nil
}

func lookup(sp *Spawn) (string, error) {
	if sp.Path != "" {
		return sp.Path, nil
	}
	path, err := exec.LookPath(sp.Argv[0])
	var e *exec.Error
	if errors.As(err, &e) && errors.Is(e.Err, exec.ErrNotFound) {
		return "", fmt.Errorf("no such command in %s: %w", Path, syscall.ENOENT)
	}
	return path, err
}

func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open of pid %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Listen makes the socket on which a pid 1 will be asked, replacing one that an earlier pid 1 has left. The file that it
// returns is passed to that process, and must then be closed so that askers notice its death.
func Listen(ctx context.Context, path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pid1: %w", err)
	}
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unixpacket", short)
	if err != nil {
		return nil, fmt.Errorf("pid1: %s: %w", path, err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	f, err := ul.File()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pid1: %w", err), l.Close())
	}
	return f, l.Close()
}
