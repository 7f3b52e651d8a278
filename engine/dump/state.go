//go:build linux

package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/files"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/ptrace"
	"migrate/engine/span"
	"migrate/engine/task"
)

// State records the stopped tree: everything but the contents of its memory. Its TCP connections are in repair from here
// on, until Thaw or Destroy.
func (s *Source) State(ctx context.Context) (_ *images.Checkpoint, err error) {
	if s.frozen == nil {
		return nil, errors.New("recording the state of a tree that was not frozen")
	}
	s.seccomp, s.cgroups, s.memory.cuts = task.SeccompTable{}, task.CgroupTable{}, nil
	in, end := span.Begin(ctx, "header")
	header, err := s.header(in)
	end()
	if err != nil {
		return nil, err
	}
	header.Namespaces = s.spaces.header
	cp := &images.Checkpoint{Header: header, Tree: s.entries(), Blobs: map[string][]byte{}, Namespaces: s.spaces.images}
	s.stops = task.StopTable{}
	defer func() { err = errors.Join(err, s.undos.Close()) }()
	s.undos = task.SemUndos{}
	if s.undos.Leaves, err = s.leavesIPC(); err != nil {
		return nil, err
	}
	for _, f := range s.frozen {
		if len(f.stops) > 0 && f.stops[0].Held != 0 {
			s.stops.Held = append(s.stops.Held, f.Process)
		}
	}
	for _, f := range s.frozen {
		in, end := span.Begin(ctx, fmt.Sprintf("process %d", f.VPID))
		img, err := s.process(in, f, header.Clocks)
		end()
		if err != nil {
			return nil, fmt.Errorf("pid %d: %w", f.PID, err)
		}
		if err := f.rings(img, cp.Blobs); err != nil {
			return nil, fmt.Errorf("pid %d: %w", f.PID, err)
		}
		cp.Processes = append(cp.Processes, img)
	}
	header.Seccomp = s.seccomp.Filters
	if err := span.Do(ctx, "cgroups", func(context.Context) error { return s.dumpCgroups(header) }); err != nil {
		return nil, err
	}
	cp.Files = s.memory.files.entries
	header.Files = slices.Clone(s.memory.files.extras)
	if err := span.Do(ctx, "files", func(ctx context.Context) error { return s.dumpFiles(ctx, cp) }); err != nil {
		return nil, err
	}
	if err := packetRings(cp); err != nil {
		return nil, err
	}
	if header.Objects, err = s.memory.objects.Records(true); err != nil {
		return nil, err
	}
	_, end = span.Begin(ctx, "signals since")
	defer end()
	// Signals and expirations that came since the freeze, now that no thread is borrowed any more.
	for i, f := range s.frozen {
		if f.zombie {
			continue
		}
		if err := task.CatchUp(ctx, f.source, cp.Processes[i]); err != nil {
			return nil, fmt.Errorf("pid %d: %w", f.PID, err)
		}
		if err := task.AddEndedLeader(s.fs, f.Process, cp.Processes[i]); err != nil {
			return nil, fmt.Errorf("pid %d: its first thread: %w", f.PID, err)
		}
	}
	cp.Inventory = images.NewInventory(cp.Processes[0].IDs, uint64(header.Clocks.GetBoottime()/1000))
	return cp, nil
}

// cgroupTable gathers cgroups for a dump to disk. A tree that is moved leaves those of this host behind.
func (s *Source) cgroupTable() *task.CgroupTable {
	if s.opts.Cgroup != nil {
		return nil
	}
	return &s.cgroups
}

func (s *Source) dumpCgroups(header *imagespb.Header) (err error) {
	h := &ns.Hierarchies{}
	header.CgroupSets = s.cgroups.Sets
	header.CgroupDirs, err = h.Describe(s.cgroups.Places())
	return errors.Join(err, h.Close())
}

// dumpFiles records the descriptors. The leader of each process is borrowed for it: its own word on close-on-exec flags costs
// a hundredth of the kernel's in /proc.
func (s *Source) dumpFiles(ctx context.Context, cp *images.Checkpoint) (err error) {
	for _, f := range s.frozen {
		if f.zombie || f.Second(f.Shared.Files) {
			continue
		}
		// Brief: of a thousand that stay borrowed, each hears of everything that happens to the others.
		b := &borrower{tracer: s.tracer, pid: f.PID, tid: f.PID, brief: true}
		f.Caller = b
		defer func() {
			f.Caller = nil
			err = errors.Join(err, b.giveBack())
		}()
	}
	return s.files.Dump(ctx, s.procs, cp)
}

// header says where and when the state was taken. It describes the namespaces, which it leaves to the caller. The clocks are those of
// the tree.
func (s *Source) header(ctx context.Context) (*imagespb.Header, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	clocks, err := task.Clocks(s.fs, s.procs[0].PID)
	if err != nil {
		return nil, err
	}
	if _, err := s.describeNamespaces(ctx); err != nil {
		return nil, err
	}
	terminals, err := s.files.SessionTerminals(s.procs)
	if err != nil {
		return nil, err
	}
	return &imagespb.Header{
		Terminals: terminals,
		Version:   images.Version, Goarch: runtime.GOARCH, Kernel: unix.ByteSliceToString(uts.Release[:]),
		Shared: task.SharedStates(s.procs),
		BootId: strings.TrimSpace(string(boot)), Clocks: clocks, CpuCount: uint64(runtime.NumCPU()),
	}, nil
}

// rings records what waits in the rings of io_setup(2).
func (f *frozen) rings(img *images.Process, blobs map[string][]byte) error {
	for _, v := range img.MM.GetVmas() {
		if !mem.IsAIORing(v) {
			continue
		}
		ring, events, err := mem.DumpAIO(v, func(addr uint64, b []byte) error { return f.memory.Read(ptrace.Addr(addr), b) })
		if err != nil {
			return err
		}
		img.MM.Aios = append(img.MM.Aios, ring)
		blobs[mem.AIOBlob(img.PID, v)] = events
	}
	return nil
}

// packetRings looks whether the tree has a descriptor of every packet socket whose rings it has mapped.
func packetRings(cp *images.Checkpoint) error {
	for _, img := range cp.Processes {
		for _, v := range img.MM.GetVmas() {
			if mem.IsPacketRing(v) && cp.Blobs[mem.PacketRingBlob(v.GetShmid())] == nil {
				return fmt.Errorf("process %d: the rings of a packet socket at 0x%x, of which the tree has no descriptor: %w", img.PID, v.GetStart(), files.ErrNotCarried)
			}
		}
	}
	return nil
}

// entries is the tree as records.
func (s *Source) entries() []*pstree.PstreeEntry {
	var out []*pstree.PstreeEntry
	for _, p := range s.procs {
		e := &pstree.PstreeEntry{
			Pid: proto.Uint32(uint32(p.VPID)), Ppid: proto.Uint32(uint32(p.VPPID)), Pgid: proto.Uint32(uint32(p.VPGID)), Sid: proto.Uint32(uint32(p.VSID)),
		}
		if p.EndedLeader != 0 {
			e.Threads = append(e.Threads, uint32(p.VPID))
		}
		for _, th := range p.Threads {
			e.Threads = append(e.Threads, uint32(th.VTID))
		}
		out = append(out, e)
	}
	return out
}

// process records one process. A thread is borrowed when there are calls that only it can make.
func (s *Source) process(ctx context.Context, f *frozen, clocks *imagespb.Clocks) (_ *images.Process, err error) {
	if f.zombie {
		return task.DumpZombie(s.fs, f.Process)
	}
	for i, th := range f.Threads {
		f.threads[i].Caller = &borrower{tracer: s.tracer, pid: f.PID, tid: th.TID, brief: true}
	}
	memory, err := ptrace.OpenMemory(f.PID)
	if err != nil {
		return nil, err
	}
	f.memory = memory
	f.source = &task.Source{
		FS: s.fs, Tracer: s.tracer, Memory: memory, Proc: f.Process, Tree: s.procs, Clocks: clocks,
		AddPath: func(_ context.Context, link string) (uint32, error) {
			return s.memory.files.addLink(s.fs, s.memory.objects, link)
		},
		RestartBlocks: s.asker, User: s.userNamespace(), Seccomp: &s.seccomp, Cgroups: s.cgroupTable(), Stops: &s.stops, SemUndo: &s.undos,
	}
	sp := s.memory.spaces[f.PID] // nil where it is that of another process
	var policies *mem.PolicyQuestions
	if sp != nil {
		policies = mem.NewPolicyQuestions(sp.vmas, s.memory.policyCuts())
		f.source.Also = policies.Ask
	}
	img, err := task.DumpProcess(ctx, f.source, f.threads)
	if err != nil {
		return nil, err
	}
	if sp != nil {
		if err := sp.record(img); err != nil {
			return nil, err
		}
		if img.Extra.MemoryPolicies, err = policies.Answers(ctx, f.threads[0].Caller); err != nil {
			return nil, err
		}
	}
	id := func(first int) *uint32 { // of a thing: the process that has it, or the first of those that share it
		if first == 0 {
			first = f.VPID
		}
		return proto.Uint32(uint32(first))
	}
	sh := f.Shared
	img.IDs = &criu_core.TaskKobjIdsEntry{VmId: id(sh.VM), FilesId: id(sh.Files), FsId: id(sh.FS), SighandId: id(sh.Sighand)}
	return img, nil
}
