//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/procfs"
	"migrate/engine/remote"
	"migrate/engine/sock"
	"migrate/tcprepair"
)

// A FileID names a file or pipe on this host (st_dev and st_ino of stat(2)).
type FileID struct{ Dev, Ino uint64 }

// Options of a Dumper.
type Options struct {
	// External names files and pipes that belong to the agent, such as the log of a workload: they are not
	// carried, but attached at the destination by Env.External under the same name.
	External map[FileID]string
}

// A Dumper reads the descriptors of one tree.
type Dumper struct {
	opts   Options
	pidfds map[int]int // by pid
	diag   *sock.Diag
	frozen bool // Dump runs: checks that search the whole system are left out

	locked   map[uint64]bool // while Check or Dump runs: inodes with locks, nil until asked for
	current  *snapshot       // while Check or Dump runs
	held     *snapshot       // after Dump, until Resume or Drop
	paused   []*pausedConn
	outsider map[pipeKey][]int // while Check runs: who else holds a pipe, by inode
}

type pausedConn struct {
	conn  *tcprepair.Paused
	state *tcprepair.State
}

// NewDumper returns a Dumper; it touches nothing yet.
func NewDumper(opts Options) *Dumper { return &Dumper{opts: opts, pidfds: map[int]int{}} }

// Close gives back what the Dumper holds except connections in repair: call Resume or Drop before it.
func (d *Dumper) Close() error {
	var errs []error
	for pid, fd := range d.pidfds {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close the pidfd of process %d: %w", pid, err))
		}
	}
	d.pidfds = map[int]int{}
	if d.diag != nil {
		errs = append(errs, d.diag.Close())
		d.diag = nil
	}
	if d.held != nil {
		errs = append(errs, d.held.close())
		d.held = nil
	}
	return errors.Join(errs...)
}

// prepare opens what asking takes: once, before the freeze if Check was called.
func (d *Dumper) prepare(procs []*engine.Process) error {
	for _, p := range procs {
		if _, ok := d.pidfds[p.PID]; ok {
			continue
		}
		fd, err := unix.PidfdOpen(p.PID, 0)
		if err != nil {
			return fmt.Errorf("pidfd of process %d: %w", p.PID, err)
		}
		d.pidfds[p.PID] = fd
	}
	if d.diag != nil || len(procs) == 0 {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", procs[0].PID))
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", procs[0].PID, err)
	}
	defer func() { _ = ns.Close() }() // a namespace's handle: nothing is lost
	return sock.In(sock.Place{NetNS: ns}, func() error {
		d.diag, err = sock.NewDiag()
		return err
	})
}

// Check lists everything of the open descriptors that is not carried. It reads /proc and duplicates of the
// descriptors and changes nothing; the processes may run. Descriptors that are closed meanwhile are passed over.
func (d *Dumper) Check(ctx context.Context, procs []*engine.Process) ([]engine.Obstacle, error) {
	if err := d.prepare(procs); err != nil {
		return nil, err
	}
	out, err := d.checkTables(procs)
	if err != nil {
		return nil, err
	}
	snap, err := d.collect(ctx, procs, 1)
	if err != nil {
		return nil, err
	}
	d.frozen = false
	for _, desc := range snap.list {
		h := desc.holders[0]
		for _, p := range d.problems(ctx, snap, desc) {
			out = append(out, engine.Obstacle{PID: h.proc.PID, Kind: desc.kind.Name, Where: fmt.Sprintf("fd %d", h.fd), Reason: p.reason, Remedy: p.remedy})
		}
	}
	d.outsider, d.current, d.locked = nil, nil, nil
	return out, snap.close()
}

// problems lists why a description is not carried.
func (d *Dumper) problems(ctx context.Context, snap *snapshot, desc *description) []problem {
	if !desc.kind.Carried {
		return []problem{{desc.kind.Note + named(desc), desc.kind.Remedy}}
	}
	var out []problem
	d.current = snap
	if desc.kind.check != nil {
		out = desc.kind.check(ctx, d, desc)
	}
	out = append(out, d.lockProblems(desc)...)
	if p, bad := ownerProblem(desc, snap); bad {
		out = append(out, p)
	}
	return out
}

// named tells what a refused descriptor points to.
func named(d *description) string {
	if s := d.path(); s != "" {
		return " (" + s + ")"
	}
	return ""
}

// checkTables refuses descriptor tables that are shared across processes or not shared by the threads of one.
func (d *Dumper) checkTables(procs []*engine.Process) ([]engine.Obstacle, error) {
	var out []engine.Obstacle
	for _, p := range procs {
		for _, t := range p.Threads {
			if t.TID == p.PID {
				continue
			}
			if r, err := kcmp(p.PID, t.TID, kcmpFiles, 0, 0); err == nil && r != 0 {
				out = append(out, engine.Obstacle{PID: p.PID, Kind: "descriptor table", Where: fmt.Sprintf("thread %d", t.TID),
					Reason: "the thread has a descriptor table of its own (unshare(CLONE_FILES))"})
			}
		}
	}
	sorted := slices.Clone(procs)
	var failed error
	slices.SortFunc(sorted, func(a, b *engine.Process) int {
		if a == b {
			return 0
		}
		r, err := kcmp(a.PID, b.PID, kcmpFiles, 0, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			failed = fmt.Errorf("compare the descriptor tables of processes %d and %d: %w", a.PID, b.PID, err)
		}
		return []int{0, -1, 1, 0, 0}[r&3]
	})
	for i := 1; i < len(sorted); i++ {
		if r, err := kcmp(sorted[i-1].PID, sorted[i].PID, kcmpFiles, 0, 0); err == nil && r == 0 {
			out = append(out, engine.Obstacle{PID: sorted[i].PID, Kind: "descriptor table", Where: "descriptors",
				Reason: fmt.Sprintf("it shares its descriptor table with process %d (clone(CLONE_FILES))", sorted[i-1].PID)})
		}
	}
	return out, failed
}

// collect duplicates every descriptor of the tree and groups them.
func (d *Dumper) collect(ctx context.Context, procs []*engine.Process, firstID uint32) (*snapshot, error) {
	c := newCollector(firstID)
	for _, p := range procs {
		if err := d.collectProcess(ctx, c, p); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	for _, desc := range c.list {
		desc.external = d.opts.External[FileID{desc.stat.Dev, desc.stat.Ino}]
		desc.kind = kindOf(desc)
	}
	return c.snapshot, nil
}

func (d *Dumper) collectProcess(ctx context.Context, c *collector, p *engine.Process) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fds, err := procfs.Host.FDs(p.PID)
	if errors.Is(err, procfs.ErrGone) {
		return fmt.Errorf("process %d: %w", p.PID, remote.ErrGone)
	}
	if err != nil {
		return fmt.Errorf("descriptors of process %d: %w", p.PID, err)
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", p.PID))
	if err != nil {
		return fmt.Errorf("root directory of process %d: %w", p.PID, err)
	}
	for _, fd := range fds {
		dup, err := unix.PidfdGetfd(d.pidfds[p.PID], fd, 0)
		if errors.Is(err, unix.EBADF) && !d.frozen {
			continue
		}
		if err != nil {
			return fmt.Errorf("duplicate descriptor %d of process %d: %w%s", fd, p.PID, err, limitHint(err))
		}
		if err := c.add(dup, holder{proc: p, fd: fd}, root); err != nil {
			return err
		}
	}
	return nil
}

func limitHint(err error) string {
	if errors.Is(err, unix.EMFILE) {
		return " (raise the agent's limit of open files, LimitNOFILE)"
	}
	return ""
}

// closeOnExec asks for FD_CLOEXEC of every descriptor: by one batch where the process is stopped under a Caller, else by
// reading its fdinfo.
func closeOnExec(ctx context.Context, p *engine.Process, fds []int) (map[int]bool, error) {
	out := make(map[int]bool, len(fds))
	if p.Caller == nil {
		for _, fd := range fds {
			i, err := procfs.Host.FDInfo(p.PID, fd)
			if err != nil {
				return nil, fmt.Errorf("pid %d, fd %d: %w", p.PID, fd, err)
			}
			out[fd] = i.Flags&unix.O_CLOEXEC != 0
		}
		return out, nil
	}
	const chunk = 128 // records of one batch
	for len(fds) > 0 {
		part := fds[:min(chunk, len(fds))]
		fds = fds[len(part):]
		var b remote.Batch
		res := make([]*remote.Result, len(part))
		for i, fd := range part {
			res[i] = b.Call(unix.SYS_FCNTL, fd, unix.F_GETFD)
		}
		if err := p.Caller.Run(ctx, &b); err != nil {
			return nil, fmt.Errorf("pid %d: F_GETFD of descriptors %d to %d: %w", p.PID, part[0], part[len(part)-1], err)
		}
		for i, fd := range part {
			v, err := res[i].Value()
			if err != nil {
				return nil, fmt.Errorf("pid %d: F_GETFD of descriptor %d: %w", p.PID, fd, err)
			}
			out[fd] = v&unix.FD_CLOEXEC != 0
		}
	}
	return out, nil
}

// A dump is one run of Dumper.Dump.
type dump struct {
	*Dumper
	snap  *snapshot
	cp    *images.Checkpoint
	pipes map[uint32]bool // inodes of pipes whose contents have been read
	mu    sync.Mutex      // over cp.Blobs and Dumper.paused, which kinds that are dumped side by side write
}

// Dump adds the descriptors of the stopped tree to the checkpoint: Files, the processes' FDs (by the ids that the tree sees) and
// Blobs. TCP connections are in repair when it returns, until Resume or Drop. When it fails, all that it changed is put back.
func (d *Dumper) Dump(ctx context.Context, procs []*engine.Process, cp *images.Checkpoint) (err error) {
	if err := d.prepare(procs); err != nil {
		return err
	}
	if d.held != nil {
		return errors.New("the descriptors have been dumped already")
	}
	d.frozen = true
	defer func() {
		d.frozen, d.current, d.locked = false, nil, nil
		if err != nil {
			err = errors.Join(err, d.Resume(ctx))
		}
	}()
	if err := d.refuseTables(procs); err != nil {
		return err
	}
	first := uint32(1)
	for _, f := range cp.Files {
		first = max(first, f.GetId()+1)
	}
	snap, err := d.collect(ctx, procs, first)
	if err != nil {
		return err
	}
	d.held = snap
	run := &dump{Dumper: d, snap: snap, cp: cp, pipes: map[uint32]bool{}}
	if cp.Blobs == nil {
		cp.Blobs = map[string][]byte{}
	}
	for _, desc := range snap.list {
		if ps := d.problems(ctx, snap, desc); len(ps) > 0 {
			return fmt.Errorf("%s: %s (%s): %w", desc.where(), ps[0].reason, desc.kind.Name, ErrNotCarried)
		}
	}
	if err := run.all(ctx); err != nil {
		return err
	}
	return run.tables(ctx, procs)
}

// all dumps every description: the many connections of a server side by side, the others one by one.
func (r *dump) all(ctx context.Context) error {
	entries := make([]*fdinfo.FileEntry, len(r.snap.list))
	one := func(i int) (err error) {
		desc := r.snap.list[i]
		if entries[i], err = desc.kind.dump(ctx, r, desc); err != nil {
			return fmt.Errorf("%s (%s): %w", desc.where(), desc.kind.Name, err)
		}
		return nil
	}
	var side []int
	for i, desc := range r.snap.list {
		if desc.kind.parallel {
			side = append(side, i)
		} else if err := one(i); err != nil {
			return err
		}
	}
	if err := parallel(len(side), func(i int) error { return one(side[i]) }); err != nil {
		return err
	}
	for i, e := range entries {
		e.Id, e.Type = proto.Uint32(r.snap.list[i].id), r.snap.list[i].kind.Type.Enum()
		r.cp.Files = append(r.cp.Files, e)
	}
	return nil
}

// blob adds raw data to the checkpoint.
func (r *dump) blob(name string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cp.Blobs[name] = data
}

func (d *Dumper) refuseTables(procs []*engine.Process) error {
	obstacles, err := d.checkTables(procs)
	if err != nil {
		return err
	}
	var names []string
	for _, o := range obstacles {
		names = append(names, o.String())
	}
	if len(names) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(names, "; "), ErrNotCarried)
	}
	return nil
}

// tables writes the descriptor table of each process.
func (r *dump) tables(ctx context.Context, procs []*engine.Process) error {
	byPID := map[int][]*fdinfo.FdinfoEntry{}
	fds := map[int][]int{}
	for key := range r.snap.byFD {
		fds[key.pid] = append(fds[key.pid], key.fd)
	}
	for _, p := range procs {
		numbers := fds[p.PID]
		slices.Sort(numbers)
		cloexec, err := closeOnExec(ctx, p, numbers)
		if err != nil {
			return err
		}
		for _, fd := range numbers {
			desc := r.snap.byFD[fdKey{p.PID, fd}]
			var flags uint32
			if cloexec[fd] {
				flags = unix.FD_CLOEXEC
			}
			byPID[p.VPID] = append(byPID[p.VPID], &fdinfo.FdinfoEntry{Id: proto.Uint32(desc.id), Flags: proto.Uint32(flags),
				Type: desc.kind.Type.Enum(), Fd: proto.Uint32(uint32(fd))})
		}
	}
	for _, p := range r.cp.Processes {
		if t, ok := byPID[int(p.PID)]; ok {
			p.FDs = t
		}
	}
	return nil
}

// Resume takes back what Dump has changed, before the tree runs on: connections leave repair exactly as they were. It may be
// called again after an error.
func (d *Dumper) Resume(_ context.Context) error {
	var errs []error
	for _, p := range d.paused {
		if err := p.conn.Resume(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	d.paused = nil
	return d.letGo()
}

// Drop ends the connections without a packet. The processes must have been destroyed before it, and their
// ends be gone: the last duplicate of a socket is closed here, in repair.
func (d *Dumper) Drop() error {
	d.paused = nil
	return d.letGo()
}

func (d *Dumper) letGo() error {
	if d.held == nil {
		return nil
	}
	err := d.held.close()
	d.held = nil
	return err
}
