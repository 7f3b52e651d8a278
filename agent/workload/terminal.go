//go:build linux

package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"migrate/engine/files"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/remote"
	"migrate/engine/restore"
)

// TerminalName is the name under which the terminal of a workload travels.
const TerminalName = "console"

// masterFD is where the pid 1 of a workload holds the master of its terminal, so that it outlives the agent.
const masterFD = 10

// What a terminal is like when nobody says what it is to be like.
const (
	defaultRows    = 24
	defaultColumns = 80
)

// groupTTY is the group of terminals (devpts is mounted with gid=5).
const groupTTY = 5

// startTerminal makes the terminal of a new workload, and the program's standard descriptors lead there.
func (e *Env) startTerminal(ctx context.Context, c remote.Caller, cmd *restore.Command) error {
	t := e.spec.GetTerminal()
	st := &imagespb.SessionTerminal{Path: "/dev/ptmx", Rdev: uint32(unix.Mkdev(136, 0)), Flags: unix.O_RDWR, Rows: t.GetRows(), Columns: t.GetColumns(), Fresh: true}
	if st.Rows == 0 || st.Columns == 0 {
		st.Rows, st.Columns = defaultRows, defaultColumns
	}
	master, slave, err := files.OpenTerminal(procfs.Host.Path(e.init.PID, "root"), st)
	if err != nil {
		return fmt.Errorf("a terminal for the program: %w", err)
	}
	defer func() { _ = master.Close() }() // the pid 1 has it
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Terminal = slave, slave, slave, true
	if err := errors.Join(slave.Chown(int(cmd.UID), groupTTY), blocking(slave)); err != nil {
		return fmt.Errorf("a terminal for the program: %w", err)
	}
	return e.GiveTerminal(ctx, c, TerminalName, master)
}

// blocking makes calls on a file wait, as programs expect of a terminal.
func blocking(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = rc.Control(func(fd uintptr) { e = unix.SetNonblock(int(fd), false) })
	return errors.Join(err, e)
}

// GiveTerminal has the pid 1 hold the master of the workload's terminal; caller makes calls in it.
func (e *Env) GiveTerminal(ctx context.Context, c remote.Caller, name string, master *os.File) error {
	if name != TerminalName && name != files.FreshTerminal {
		return fmt.Errorf("a workload has no terminal %q", name)
	}
	if err := c.Push(ctx, []remote.PushFile{{File: master, FD: masterFD, CloseOnExec: true}}); err != nil {
		return fmt.Errorf("giving the terminal to the pid 1 of the workload: %w", err)
	}
	return nil
}

// Terminal opens the master of the workload's terminal; nil if it has none.
func (e *Env) Terminal() (*os.File, error) {
	if e.init == nil {
		return nil, nil
	}
	fd, err := e.init.Descriptor(masterFD)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the terminal of workload %s: %w", e.Name(), err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// Counts say what the file of a copy's output is of the whole output, which goes on when the agent is started again and when the copy moves.
type Counts struct {
	Generation string `json:"generation"`
	Base       uint64 `json:"base"` // where the file begins in the output
}

const (
	terminalCounts = "terminal.json"
	outputCounts   = "output.json"
)

// Counts reads those of the output of a terminal; none are there for one that was never read.
func (e *Env) Counts() (*Counts, error) { return e.counts(terminalCounts) }

// SetCounts writes them.
func (e *Env) SetCounts(c Counts) error { return e.setCounts(terminalCounts, c) }

// OutputCounts are those of the output of a program without a terminal.
func (e *Env) OutputCounts() (*Counts, error) {
	c, err := e.counts(outputCounts)
	if c == nil && err == nil { // it has begun here
		c = &Counts{Generation: "file-" + strconv.FormatUint(e.Instance(), 10)}
	}
	return c, err
}

// SetOutputCounts writes them.
func (e *Env) SetOutputCounts(c Counts) error { return e.setCounts(outputCounts, c) }

func (e *Env) counts(name string) (*Counts, error) {
	b, err := os.ReadFile(filepath.Join(e.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &Counts{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s/%s: %w", e.dir, name, err)
	}
	return c, nil
}

// setCounts does not flush them: they say nothing after a loss of power, which ends the program. It is called in the blackout of a move.
func (e *Env) setCounts(name string, c Counts) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	path := filepath.Join(e.dir, name)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
