//go:build linux

package restore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/ns"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// Command is a program to be started under the pid 1 of a workload's namespaces.
type Command struct {
	Path  string   // absolute, or relative to Dir; not searched in PATH
	Args  []string // with the name of the program first
	Env   []string
	Dir   string
	UID   uint32
	GID   uint32
	Group []uint32
	// Stdin, Stdout, Stderr become descriptors 0, 1 and 2.
	Stdin, Stdout, Stderr *os.File
	// PidNamespaceID, if not 0, is the id that the program gets in its pid namespace.
	PidNamespaceID int
	// Cgroup, if not nil, is where the program runs.
	Cgroup *ns.Cgroup
	// Terminal tells that Stdin is a terminal, which is to control the program's session.
	Terminal bool
}

// batch is the calls that turn a new child of the pid 1 into the program. The last one is the execve.
func (c *Command) batch() *remote.Batch {
	var b remote.Batch
	b.Call(unix.SYS_SETSID)
	if c.Terminal {
		b.Call(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	b.Call(unix.SYS_CHDIR, b.String(c.Dir))
	if len(c.Group) > 0 {
		groups := make([]byte, 0, 4*len(c.Group))
		for _, g := range c.Group {
			groups = binary.LittleEndian.AppendUint32(groups, g)
		}
		b.Call(unix.SYS_SETGROUPS, len(c.Group), b.Bytes(groups))
	} else {
		b.Call(unix.SYS_SETGROUPS, 0, 0)
	}
	b.Call(unix.SYS_SETRESGID, c.GID, c.GID, c.GID)
	b.Call(unix.SYS_SETRESUID, c.UID, c.UID, c.UID)
	b.Call(unix.SYS_CLOSE_RANGE, 3, uint32(1<<32-1), 0)
	b.Call(unix.SYS_EXECVE, b.String(c.Path), stringArray(&b, c.Args), stringArray(&b, c.Env))
	return &b
}

// stringArray places a null-terminated array of pointers to strings, as execve(2) takes it.
func stringArray(b *remote.Batch, list []string) *remote.Data {
	array := b.Buffer(8 * (len(list) + 1))
	for i, s := range list {
		array.SetPointer(8*i, b.String(s), 0)
	}
	return array
}

// validate refuses what execve(2) would, with a better message.
func (c *Command) validate() error {
	switch {
	case c.Path == "":
		return errors.New("the command is empty")
	case len(c.Args) == 0:
		return fmt.Errorf("%s: the argument list is empty", c.Path)
	case c.Stdin == nil || c.Stdout == nil || c.Stderr == nil:
		return fmt.Errorf("%s: descriptors 0, 1 and 2 must be given", c.Path)
	}
	return nil
}

// Start starts a program under the pid 1 of a workload's namespaces and returns its process id, as this process sees it.
// Before it does, setUp makes calls in the pid 1, whose namespaces it may complete, and may complete the command; it may be nil.
func Start(ctx context.Context, init int, setUp func(context.Context, remote.Caller, *Command) error, c *Command) (pid int, err error) {
	tracer := ptrace.New()
	defer func() { err = errors.Join(err, tracer.Close()) }()
	first, err := remote.InstallStub(ctx, tracer, init, 0)
	if err != nil {
		return 0, fmt.Errorf("borrowing the pid 1 of the workload (pid %d): %w", init, err)
	}
	defer func() { err = errors.Join(err, giveBack(context.WithoutCancel(ctx), first)) }()
	if setUp != nil {
		if err := setUp(ctx, first, c); err != nil {
			return 0, err
		}
	}
	if err := c.validate(); err != nil {
		return 0, err
	}
	return c.start(ctx, first)
}

// giveBack lets a borrowed pid 1 go on as if nothing had happened.
func giveBack(ctx context.Context, t *remote.Trap) error {
	return errors.Join(t.Release(ctx), t.Tracer().Detach(ctx, t.TID(), 0), t.Close())
}

// start makes a child of the pid 1 and turns it into the program. The child lives only if all goes well: until it is
// detached it dies with its tracer.
func (c *Command) start(ctx context.Context, first *remote.Trap) (pid int, err error) {
	child, err := first.CloneProcess(ctx, c.PidNamespaceID, 0)
	if err != nil {
		return 0, fmt.Errorf("a process for %s: %w", c.Path, err)
	}
	defer func() { err = errors.Join(err, child.Close()) }()
	files := []remote.PushFile{{File: c.Stdin, FD: 0}, {File: c.Stdout, FD: 1}, {File: c.Stderr, FD: 2}}
	if err := child.Push(ctx, files); err != nil {
		return 0, fmt.Errorf("giving %s its descriptors: %w", c.Path, errors.Join(err, unix.Kill(child.PID(), unix.SIGKILL)))
	}
	if c.Cgroup != nil {
		if err := c.Cgroup.Add(child.PID()); err != nil {
			return 0, errors.Join(err, unix.Kill(child.PID(), unix.SIGKILL))
		}
	}
	if err := child.Exec(ctx, c.batch()); err != nil {
		return 0, fmt.Errorf("starting %s in %s: %w", c.Path, c.Dir, errors.Join(err, unix.Kill(child.PID(), unix.SIGKILL)))
	}
	// The mask of the stub survived the execve.
	if err := first.Tracer().SetSigMask(ctx, child.TID(), 0); err != nil {
		return 0, err
	}
	return child.PID(), first.Tracer().Detach(ctx, child.TID(), 0)
}
