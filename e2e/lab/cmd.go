package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"syscall"

	"migrate/e2e/lab/boot"
	"migrate/e2e/lab/pid1"
)

// Cmd is a command in a host, used like one of os/exec. It is a child of the host's pid 1, in all of the host's namespaces, in
// a session of its own without a terminal. Files given as Stdin, Stdout or Stderr are passed to it as they are; nil is /dev/null.
// If Stdout and Stderr are the same writer, it is written to by one goroutine at a time.
type Cmd struct {
	Args   []string
	Env    []string // added to the default environment (PATH, HOME, USER, LANG)
	Dir    string   // in the host; default /
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	// PID is the id of the command in the host, after Start. PIDOutside is its id as this process sees it.
	PID, PIDOutside int

	ctx     context.Context
	host    *Host
	process *pid1.Process
	copying []*copier
	stop    func() bool
}

// ExitError is a command that ended without success.
type ExitError struct {
	pid1.Exit
	Args   []string
	Host   string
	Stderr string // the end of what it wrote, if Stderr was not set
}

func (e *ExitError) Error() string {
	what := fmt.Sprintf("exited with code %d", e.Code)
	if e.Signal != 0 {
		what = "was ended by signal " + e.Signal.String()
	}
	text := fmt.Sprintf("%s: %s %s", e.Host, strings.Join(e.Args, " "), what)
	if e.Stderr != "" {
		text += ": " + strings.TrimSpace(e.Stderr)
	}
	return text
}

// ExitCode is what a shell makes of the end: the exit code, or 128 and the number of the signal.
func (e *ExitError) ExitCode() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Code
}

// ErrDown means that the host is not up: killed, or ended during the request.
var ErrDown = pid1.ErrDown

// StartError is a command that could not be started, although the host is up.
type StartError = pid1.StartError

// Command prepares a command in the host. When ctx ends, the command's process group is killed.
func (h *Host) Command(ctx context.Context, args ...string) *Cmd {
	return &Cmd{Args: args, ctx: ctx, host: h}
}

// Exec runs a command in the host and returns what it writes to stdout. The error holds what it wrote to stderr.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	out, err := h.Command(ctx, args...).Output()
	return string(out), err
}

// Start starts the command.
func (c *Cmd) Start() (err error) {
	if c.process != nil {
		return errors.New("lab: the command has been started already")
	}
	if len(c.Args) == 0 {
		return errors.New("lab: no command given")
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // ours were passed on; the other process has its own
		}
		if err != nil {
			c.endCopying()
		}
	}()
	passed := make([]*os.File, 0, 3)
	for fd, stream := range []any{c.Stdin, c.Stdout, c.Stderr} {
		if fd == 2 && stream != nil && sameWriter(c.Stdout, c.Stderr) {
			passed = append(passed, passed[1]) // two copiers would write to it at once
			break
		}
		f, own, err := c.open(fd, stream)
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		passed = append(passed, f)
		if own {
			files = append(files, f)
		}
	}
	c.process, err = pid1.Start(c.ctx, c.host.lab.socket(c.host.name), c.spawn(passed))
	if err != nil {
		return fmt.Errorf("%s: %w", c.host.name, err)
	}
	c.PID = c.process.PID
	c.PIDOutside, err = pidOf(c.process.Pidfd)
	if err != nil && !errors.Is(err, errGone) {
		c.process.Close()
		return fmt.Errorf("lab: %w", err)
	}
	for _, k := range c.copying {
		go k.run()
	}
	c.stop = context.AfterFunc(c.ctx, c.process.Abandon)
	return nil
}

func (c *Cmd) spawn(files []*os.File) pid1.Spawn {
	s := pid1.Spawn{Argv: c.Args, Env: append(defaultEnv(), c.Env...), Dir: c.Dir, Files: files}
	if s.Dir == "" {
		s.Dir = "/"
	}
	if top, err := cgroup2Mount(); err == nil && !c.host.isClient() {
		s.Cgroup = boot.SessionCgroup(top)
	}
	return s
}

func defaultEnv() []string {
	return []string{"PATH=" + pid1.Path, "HOME=/root", "USER=root", "LOGNAME=root", "LANG=C.UTF-8"}
}

// open returns the file for one of the standard descriptors; own says that it is to be closed once it was passed on.
func (c *Cmd) open(fd int, stream any) (f *os.File, own bool, err error) {
	switch s := stream.(type) {
	case nil:
		f, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
		return f, true, err
	case *os.File:
		return s, false, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, false, err
	}
	if fd == 0 {
		c.copying = append(c.copying, &copier{to: w, from: c.Stdin, end: w, done: make(chan struct{})})
		return r, true, nil
	}
	c.copying = append(c.copying, &copier{to: stream.(io.Writer), from: r, end: r, done: make(chan struct{}), awaited: true})
	return w, true, nil
}

// sameWriter tells whether both are one writer, as far as writers can be compared.
func sameWriter(a, b io.Writer) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

// copier moves bytes between one of the command's pipes and a reader or writer of the caller's.
type copier struct {
	to      io.Writer
	from    io.Reader
	end     *os.File // our end of the pipe; closing it ends the copying, unless the caller's own reader blocks
	err     error
	done    chan struct{}
	awaited bool // the command's output: Wait must have all of it
}

func (k *copier) run() {
	defer close(k.done)
	_, k.err = io.Copy(k.to, k.from)
	_ = k.end.Close()
	if errors.Is(k.err, syscall.EPIPE) || errors.Is(k.err, os.ErrClosed) {
		k.err = nil // the command did not want all of its input, or the copying was ended
	}
}

func (c *Cmd) endCopying() {
	for _, k := range c.copying {
		_ = k.end.Close()
	}
}

// Wait returns when the command has ended and its output was copied; an *ExitError if it did not succeed. If a process that
// the command has left behind keeps the output open, Wait waits for that too, or for the end of the context.
func (c *Cmd) Wait() error {
	if c.process == nil {
		return errors.New("lab: the command was not started")
	}
	exit, err := c.process.Wait()
	stopped := c.stop()
	if err != nil && !stopped {
		err = context.Cause(c.ctx)
	}
	for _, k := range c.copying {
		if !k.awaited {
			_ = k.end.Close()
			continue
		}
		select {
		case <-k.done:
		case <-c.ctx.Done():
			_ = k.end.Close()
			<-k.done
		}
		err = errors.Join(err, k.err)
	}
	c.process.Close()
	if err != nil {
		return fmt.Errorf("%s: %s: %w", c.host.name, c.Args[0], err)
	}
	if exit != (pid1.Exit{}) {
		return &ExitError{Exit: exit, Args: c.Args, Host: c.host.name}
	}
	return nil
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns what it wrote to stdout.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	var exit *ExitError
	if errors.As(err, &exit) {
		exit.Stderr = lastBytes(stderr.String(), 4096)
	}
	return stdout.Bytes(), err
}

func lastBytes(s string, n int) string { return s[max(0, len(s)-n):] }

// Signal sends a signal to the command's process group.
func (c *Cmd) Signal(s syscall.Signal) error {
	if c.process == nil {
		return errors.New("lab: the command was not started")
	}
	return c.process.Signal(s)
}
