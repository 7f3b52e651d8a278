//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/files"
	"migrate/engine/images"
	"migrate/engine/mem"
	"migrate/engine/procfs"
	"migrate/engine/remote"
	"migrate/engine/span"
	"migrate/engine/task"
)

// Finish gives the skeleton everything but its memory: descriptors, then what belongs to processes and threads, then,
// when the stubs are gone, the registers. The layout and the pages must be those of the stopped source. Afterwards
// the tree only has to be let go.
func (s *Skeleton) Finish(ctx context.Context, cp *images.Checkpoint) error {
	s.pages.Lock()
	defer s.pages.Unlock()
	if s.state != building {
		return fmt.Errorf("finishing: %w: %v", ErrState, s.state)
	}
	for _, img := range cp.Processes {
		if s.procs[int(img.PID)] == nil {
			return fmt.Errorf("checkpoint: process %d is not in the layout", img.PID)
		}
	}
	if len(cp.Processes) != len(s.order) {
		return fmt.Errorf("checkpoint: %d processes, the layout has %d", len(cp.Processes), len(s.order))
	}
	for _, p := range s.procs {
		if p.writer != nil {
			if err := p.writer.Settle(); err != nil {
				return fmt.Errorf("process %d: %w", p.VPID, err)
			}
		}
	}
	if err := s.followObjects(ctx, cp.Header); err != nil {
		return err
	}
	s.findNameless(cp.Header, cp.Files)
	if err := s.settleObjects(cp.Header); err != nil {
		return err
	}
	if err := span.Do(ctx, "ipc namespace", func(context.Context) error { return s.fillIPC(cp) }); err != nil {
		return err
	}
	if s.env.Cgroup == nil {
		var err error
		s.undo, err = task.RestoreCgroups(cp, func(vpid int) *engine.Process { return &s.procs[vpid].Process })
		if err != nil {
			return fmt.Errorf("cgroups: %w", err)
		}
	}
	if err := span.Do(ctx, "open files", func(ctx context.Context) error { return s.openFiles(ctx, cp) }); err != nil {
		return err
	}
	// On the tracer's own thread a batch costs a third: no goroutine has to be woken for it.
	err := s.tracer.OnThread(ctx, func(ctx context.Context) error { return s.finishTasks(ctx, cp) })
	if err != nil {
		return err
	}
	s.state = complete
	return nil
}

// stopAgain stops a process that a signal had stopped.
func (s *Skeleton) stopAgain(ctx context.Context, img *images.Process) error {
	p := s.procs[int(img.PID)]
	var parent remote.Caller
	if q := s.procs[p.VPPID]; q != nil {
		parent = q.trap
	}
	p.stopped = img.Leader().GetCore().GetTc().GetTaskState() == images.TaskStopped
	return task.RestoreStopped(ctx, s.tracer, &p.Process, img, parent)
}

func (s *Skeleton) finishTasks(ctx context.Context, cp *images.Checkpoint) error {
	procs := make([]*engine.Process, 0, len(s.order))
	for _, pid := range s.order {
		procs = append(procs, &s.procs[pid].Process)
	}
	if err := span.Do(ctx, "control", func(ctx context.Context) error { return s.files.Control(ctx, procs) }); err != nil {
		return err
	}
	// Before their parents have their signals, which must not hear of it again.
	for _, img := range cp.Processes {
		if err := s.stopAgain(ctx, img); err != nil {
			return err
		}
		if img.Zombie() {
			if err := task.RestoreZombie(ctx, s.tracer, s.procs[int(img.PID)].trap, img); err != nil {
				return err
			}
		}
	}
	if err := span.Do(ctx, "install files", func(ctx context.Context) error { return s.installFiles(ctx, cp) }); err != nil {
		return err
	}
	for _, img := range cp.Processes {
		if img.Zombie() {
			continue
		}
		err := span.Do(ctx, fmt.Sprintf("process %d", img.PID), func(ctx context.Context) error { return s.finishProcess(ctx, s.procs[int(img.PID)], cp, img) })
		if err != nil {
			return fmt.Errorf("process %d: %w", img.PID, err)
		}
	}
	_, end := span.Begin(ctx, "registers")
	defer end()
	for _, img := range cp.Processes {
		p := s.procs[int(img.PID)]
		if err := s.finishRegisters(ctx, p, cp, img); err != nil {
			return fmt.Errorf("process %d: %w", img.PID, err)
		}
	}
	return nil
}

// installFiles gives every process its descriptors.
func (s *Skeleton) installFiles(ctx context.Context, cp *images.Checkpoint) error {
	for _, pid := range s.order { // while none has descriptors: some share their table
		if img := cp.Process(uint32(pid)); !img.Zombie() {
			if err := s.mapPacketRings(ctx, s.procs[pid], img, cp.Blobs); err != nil {
				return fmt.Errorf("process %d: %w", pid, err)
			}
		}
	}
	for _, pid := range s.order {
		if cp.Process(uint32(pid)).Zombie() {
			continue
		}
		if err := s.procs[pid].fillRings(ctx, cp.Process(uint32(pid)), cp.Blobs); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		if p := s.procs[pid]; p.Second(p.Shared.Files) {
			continue
		}
		if err := s.files.Install(ctx, &s.procs[pid].Process); err != nil {
			return err
		}
	}
	return s.files.Finish(ctx)
}

func (s *Skeleton) openFiles(ctx context.Context, cp *images.Checkpoint) (err error) {
	net, err := s.netNS()
	if err != nil {
		return err
	}
	env := files.Env{NetNS: net, External: s.env.External, Root: s.root, Object: s.openObject, PID: func(vpid int) int { return s.procs[vpid].PID }}
	env.TID, env.Ended, env.Terminals = s.tid, s.ended, s.terminals
	env.Caller, env.Helper = s.caller, s.helper
	if s.env.Terminal != nil {
		env.Terminal = func(name string, master *os.File) error { return s.env.Terminal(ctx, s.parent, name, master) }
	}
	if s.spaces != nil {
		env.Nested = s.spaces.Handle
	}
	s.files, err = files.NewRestorer(cp, env)
	if err != nil {
		return err
	}
	return s.files.Open(ctx)
}

// tid is a thread of a process.
func (s *Skeleton) tid(vpid, vtid int) int {
	if t := s.procs[vpid].threads[vtid]; t != nil {
		return t.TID()
	}
	return s.procs[vpid].PID
}

// root is the root directory of a process, as a path of this program.
func (s *Skeleton) root(vpid int) string {
	return procfs.Host.Path(s.procs[vpid].PID, "root")
}

// target is what package task needs of a process.
func (s *Skeleton) target(p *process, cp *images.Checkpoint, img *images.Process) *task.Target {
	return &task.Target{
		FS: procfs.Host, Tracer: s.tracer, Memory: p.trap.Memory(), Proc: &p.Process, Image: img, Header: cp.Header, Shared: p.Shared,
		Path: func(id uint32) (string, error) {
			for _, f := range cp.Files {
				if f.GetId() == id && f.GetReg() != nil {
					return filepath.Clean(f.GetReg().GetName()), nil
				}
			}
			return "", fmt.Errorf("files.img: file %d is no regular file or directory", id)
		},
		Nameless: func(id uint32, flags int) (*os.File, error) { return s.openNameless(id, flags) },
	}
}

// finishProcess restores all but registers: the leader last, because its process-wide part comes after its threads.
func (s *Skeleton) finishProcess(ctx context.Context, p *process, cp *images.Checkpoint, img *images.Process) error {
	t := s.target(p, cp, img)
	exe, err := t.Path(img.MM.GetExeFileId())
	if err != nil {
		return fmt.Errorf("its program: %w", err)
	}
	nameless, err := s.openNameless(img.MM.GetExeFileId(), unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("its program: %w", err)
	}
	if !p.Second(p.Shared.VM) {
		err = task.RestoreMM(ctx, p.trap, img, exe, nameless)
	}
	if nameless != nil {
		err = errors.Join(err, nameless.Close())
	}
	if err != nil {
		return err
	}
	for _, th := range img.Threads[1:] {
		trap := p.threads[int(th.TID)]
		if trap == nil {
			return fmt.Errorf("thread %d is not in the layout", th.TID)
		}
		if err := task.RestoreThread(ctx, t, trap, th); err != nil {
			return err
		}
	}
	if err := mem.RestoreMarks(ctx, p.trap, img); err != nil {
		return err
	}
	if err := task.RestoreThread(ctx, t, p.trap, img.Leader()); err != nil || !task.EndedLeader(img) {
		return err
	}
	return p.endLeader(ctx, img)
}

// endLeader ends the first thread of a process that was restored; what is left to do, another one does.
func (p *process) endLeader(ctx context.Context, img *images.Process) error {
	old, next := p.trap, int(img.Threads[1].TID)
	if err := task.EndLeader(ctx, procfs.Host, old, img); err != nil {
		return err
	}
	p.trap, p.Caller = p.threads[next], p.threads[next]
	delete(p.threads, next)
	return old.Close()
}

// finishRegisters takes the stub away and gives every thread its registers.
func (s *Skeleton) finishRegisters(ctx context.Context, p *process, cp *images.Checkpoint, img *images.Process) error {
	if img.Zombie() {
		return nil
	}
	if p.Second(p.Shared.VM) { // the stub went with the first of those that share the memory
		if _, err := s.tracer.Settle(ctx, p.trap.TID()); err != nil {
			return err
		}
	} else if err := p.trap.Remove(ctx); err != nil {
		return err
	}
	t := s.target(p, cp, img)
	for _, th := range img.Threads {
		if th.Extra.GetEnded() {
			continue
		}
		trap := p.threads[int(th.TID)]
		if trap == nil { // the one that has removed the stub
			trap = p.trap
		} else {
			if _, err := s.tracer.Settle(ctx, trap.TID()); err != nil {
				return err
			}
		}
		if err := task.RestoreRegisters(ctx, t, trap.TID(), th); err != nil {
			return err
		}
	}
	return nil
}

// Hold puts the finished tree into its frozen cgroup and lets go of it: from here on it stands still whatever becomes of
// this program, and runs when its cgroup is thawed.
func (s *Skeleton) Hold(ctx context.Context) error {
	if s.state != complete || s.env.Cgroup == nil {
		return fmt.Errorf("holding: %w: %v", ErrState, s.state)
	}
	if err := s.env.Cgroup.Freeze(ctx); err != nil {
		return err
	}
	if err := s.letGo(ctx); err != nil {
		return err
	}
	s.state = held
	return nil
}

// Release lets the restored sockets leave repair. It is called once the tree may run, before it does.
func (s *Skeleton) Release(ctx context.Context) error {
	return errors.Join(s.files.Release(ctx), s.releaseObjects())
}

// Resume lets the tree run.
func (s *Skeleton) Resume(ctx context.Context) error {
	switch s.state {
	case complete:
		if err := s.letGo(ctx); err != nil {
			return err
		}
	case held:
		if err := s.env.Cgroup.Thaw(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("resuming: %w: %v", ErrState, s.state)
	}
	s.state = running
	return nil
}

// letGo ends the tracing of the tree and of its parent. The stopped processes come first: they stand still before a parent
// can look at them that has been told so.
func (s *Skeleton) letGo(ctx context.Context) error {
	var errs []error
	for _, stopped := range []bool{true, false} {
		for _, pid := range s.order {
			p := s.procs[pid]
			if p.stopped != stopped {
				continue
			}
			tids := []int{p.trap.TID()}
			for _, t := range p.threads {
				tids = append(tids, t.TID())
			}
			errs = append(errs, s.tracer.DetachAll(ctx, tids...), p.close())
		}
	}
	errs = append(errs, giveBack(ctx, s.parent))
	s.parent = nil
	return errors.Join(errs...)
}

// Processes lists the processes of the tree, parents first: their ids here and as the tree knows them.
func (s *Skeleton) Processes() []Identity {
	out := make([]Identity, 0, len(s.order))
	for _, pid := range s.order {
		out = append(out, Identity{PID: s.procs[pid].PID, VPID: pid})
	}
	return out
}

// Identity is a process by its id as this program sees it, and as the tree does.
type Identity struct{ PID, VPID int }

// Close lets go of what this program holds of a tree that runs or is held: its ends of restored descriptors.
func (s *Skeleton) Close() error {
	errs := []error{s.closeObjects(), s.closeNamespaces()}
	if s.files != nil {
		errs = append(errs, s.files.Close())
	}
	return errors.Join(append(errs, s.tracer.Close())...)
}
