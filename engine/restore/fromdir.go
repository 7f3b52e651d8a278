//go:build linux

package restore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/remote"
	"migrate/engine/span"
)

// DirOptions say where a checkpoint on disk is brought back.
type DirOptions struct {
	// NewPIDNamespace puts the tree under a pid 1 of its own; otherwise it gets its ids in the pid namespace of this process,
	// whose children its roots become.
	NewPIDNamespace bool
	// Detached: nobody will call Wait. Else a pid 1 of the tree's own keeps the status of its first process for it.
	Detached bool
	// Terminal takes the master of the terminal that the tree gets in the place of one that it has left (files.FreshTerminal). It is the
	// callee's own. nil: such a checkpoint is refused.
	Terminal func(master *os.File) error
	// External opens what the dump has called external (dump.Options), by that name; nil if there is nothing of the kind.
	External func(name string, flags int) (*os.File, error)
}

// Restored is a tree that was brought back from disk and runs.
type Restored struct {
	PID  int      // of its first process, as this process sees it
	Init *ns.Init // its pid 1, if it has one of its own

	vpid  int      // of its first process, as the pid 1 sees it
	exits *os.File // what the pid 1 tells of processes that have ended; nil for none
}

// FromDir brings the checkpoint in dir back and lets it run. On failure nothing is left.
func FromDir(ctx context.Context, dir string, o DirOptions) (_ *Restored, err error) {
	_, end := span.Begin(ctx, "read")
	cp, err := images.ReadDir(dir)
	end()
	if err != nil {
		return nil, err
	}
	if len(cp.Processes) == 0 {
		return nil, fmt.Errorf("%s: the checkpoint has no process", dir)
	}
	if slices.ContainsFunc(cp.Terminals, func(t *imagespb.Terminal) bool { return t.GetHolder() != "" }) && o.Terminal == nil {
		return nil, fmt.Errorf("%s: %w", dir, ErrNeedsTerminal)
	}
	if !o.NewPIDNamespace {
		if err := awaitIDs(ctx, cp); err != nil {
			return nil, err
		}
	}
	r := &Restored{}
	parent, err := r.parentFor(ctx, cp, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || !o.NewPIDNamespace {
			err = errors.Join(err, parent.Kill(context.WithoutCancel(ctx)), parent.Close())
		}
		if err != nil && r.exits != nil {
			err = errors.Join(err, r.exits.Close())
		}
	}()
	env := Env{Parent: parent.PID, Sibling: !o.NewPIDNamespace, External: o.External}
	if o.NewPIDNamespace {
		env.SetUp = SetUpMounts
	}
	if o.Terminal != nil {
		env.Terminal = func(_ context.Context, _ remote.Caller, _ string, master *os.File) error {
			return o.giveTerminal(master)
		}
	}
	layout := layoutOf(cp)
	env.heritage = newHeritage(layout, func(ctx context.Context, s *Skeleton, pid uint32) error { return s.fillSpace(ctx, dir, pid) })
	in, end := span.Begin(ctx, "prepare")
	s, err := Prepare(in, env, layout)
	end()
	if err != nil {
		return nil, err
	}
	if err := s.fill(ctx, dir, cp); err != nil {
		return nil, errors.Join(err, s.Destroy(context.WithoutCancel(ctx)))
	}
	err = span.Do(ctx, "resume", func(ctx context.Context) error { return errors.Join(s.Release(ctx), s.Resume(ctx), s.Close()) })
	if err != nil {
		return nil, err
	}
	r.PID, r.vpid = s.Processes()[0].PID, s.Processes()[0].VPID
	if o.NewPIDNamespace {
		r.Init = parent
	}
	return r, nil
}

// ErrNeedsTerminal means that a checkpoint has left its terminal behind (--tty new), and nobody is here to give it a new one.
var ErrNeedsTerminal = errors.New("the program was dumped without its terminal (--tty new) and gets the one of `migrate restore`: run that in the foreground, on a terminal")

// giveTerminal hands out a duplicate.
func (o *DirOptions) giveTerminal(master *os.File) error {
	rc, err := master.SyscallConn()
	if err != nil {
		return err
	}
	dup := -1
	if cerr := rc.Control(func(fd uintptr) { dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		return errors.Join(cerr, err)
	}
	return o.Terminal(os.NewFile(uintptr(dup), master.Name()))
}

// layoutOf is the layout of a checkpoint's tree.
func layoutOf(cp *images.Checkpoint) *images.Layout {
	l := &images.Layout{Header: cp.Header, Tree: cp.Tree, Files: cp.Files, Namespaces: cp.Namespaces}
	for _, p := range cp.Processes {
		l.Spaces = append(l.Spaces, &images.Space{PID: p.PID, MM: p.MM})
	}
	return l
}

// fill puts the pages of a checkpoint into the skeleton and finishes it.
func (s *Skeleton) fill(ctx context.Context, dir string, cp *images.Checkpoint) error {
	if err := span.Do(ctx, "pages", func(ctx context.Context) error { return s.fillSpaces(ctx, dir, cp) }); err != nil {
		return err
	}
	return span.Do(ctx, "finish", func(ctx context.Context) error { return s.Finish(ctx, cp) })
}

func (s *Skeleton) fillSpaces(ctx context.Context, dir string, cp *images.Checkpoint) error {
	for _, p := range cp.Processes {
		if p.Zombie() {
			continue
		}
		if err := s.fillSpace(ctx, dir, p.PID); err != nil {
			return err
		}
	}
	for id := range s.objects {
		if _, err := images.ReadPages(ctx, dir, mem.ObjectSpace(id), s); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if want, have := cp.Header.GetMemoryDigest(), s.Digest().Bytes(); len(want) > 0 && !bytes.Equal(want, have) {
		return fmt.Errorf("%w: their hash is %x, that of what was dumped %x", ErrPages, have, want)
	}
	return nil
}

// ErrPages means that the pages of a checkpoint are not those that were dumped.
var ErrPages = errors.New("pages-*.img, pagemap-*.img: pages are missing or have been changed")

// parentFor starts the process that the tree is born of or beside. Its clocks continue those of the checkpoint when the
// tree comes from another boot; within one boot they have never stopped, and have the offsets that they had.
func (r *Restored) parentFor(ctx context.Context, cp *images.Checkpoint, o DirOptions) (*ns.Init, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	sameBoot := strings.TrimSpace(string(boot)) == cp.Header.GetBootId()
	monotonic, boottime, err := ns.Clocks()
	if err != nil {
		return nil, err
	}
	then := cp.Header.GetClocks()
	offsets := ns.Offsets{Monotonic: time.Duration(then.GetMonotonic()) - monotonic, Boottime: time.Duration(then.GetBoottime()) - boottime}
	if sameBoot {
		offsets = ns.Offsets{Monotonic: time.Duration(cp.Header.GetNamespaces().GetMonotonicOffset()), Boottime: time.Duration(cp.Header.GetNamespaces().GetBoottimeOffset())}
	}
	if !o.NewPIDNamespace {
		own, err := procfs.Host.ClockOffsets(os.Getpid())
		if err != nil && !errors.Is(err, procfs.ErrGone) {
			return nil, err
		}
		if sameBoot && ns.Offsets(own) == offsets {
			return ns.StartSeed(ctx, nil)
		}
		return ns.StartSeed(ctx, &offsets)
	}
	spec := ns.Spec{Mount: true, Offsets: offsets}
	if o.Detached {
		return ns.StartInit(ctx, spec)
	}
	if r.exits, spec.ExitLog, err = os.Pipe(); err != nil {
		return nil, err
	}
	init, err := ns.StartInit(ctx, spec)
	if err := errors.Join(err, spec.ExitLog.Close()); err != nil { // the pid 1 holds it
		return nil, errors.Join(err, r.exits.Close())
	}
	return init, nil
}

// Wait waits until the first process of the tree has ended, and returns its wait status. A pid 1 of the tree's own ends with the last
// process under it, if that is the first one of the tree. It is called once.
func (r *Restored) Wait() (unix.WaitStatus, error) {
	if r.Init != nil {
		if r.exits == nil {
			return 0, errors.New("the tree was restored for nobody to wait for it")
		}
		st, killed, err := r.told()
		return st, errors.Join(err, r.exits.Close(), r.leave(killed))
	}
	var st unix.WaitStatus
	for {
		_, err := unix.Wait4(r.PID, &st, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return st, err
		}
	}
}

// told reads what the pid 1 tells (arch.InitELF) up to the end of the tree's first process. killed: it was killed itself, and all under it
// with it (pid_namespaces(7)).
func (r *Restored) told() (st unix.WaitStatus, killed bool, err error) {
	for {
		var rec [8]byte
		_, err := io.ReadFull(r.exits, rec[:])
		if errors.Is(err, io.EOF) {
			return unix.WaitStatus(unix.SIGKILL), true, nil
		}
		if err != nil {
			return 0, false, fmt.Errorf("what pid 1 of the tree (pid %d) tells: %w", r.Init.PID, err)
		}
		if ne := binary.NativeEndian; int(ne.Uint32(rec[:])) == r.vpid {
			return unix.WaitStatus(ne.Uint32(rec[4:])), false, nil
		}
	}
}

// leave ends the pid 1 if nothing is left under it. What is left becomes its child, so that to have none is to be alone.
func (r *Restored) leave(killed bool) error {
	var children []int
	var err error
	if !killed {
		children, err = procfs.Host.Children(r.Init.PID, r.Init.PID)
	}
	if errors.Is(err, procfs.ErrGone) { // a kernel without CONFIG_PROC_CHILDREN
		return r.Init.Close()
	}
	if err == nil && len(children) == 0 {
		err = r.Init.Kill(context.Background()) // or only reaps it
	}
	return errors.Join(err, r.Init.Close())
}
