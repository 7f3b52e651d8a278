//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/bpf"
	"migrate/engine/images"
	"migrate/engine/peek"
	"migrate/engine/procfs"
	"migrate/engine/remote"
	"migrate/engine/sock"
	"migrate/engine/span"
	"migrate/engine/thread"
	"migrate/tcprepair"
)

// A FileID names a file or pipe on this host (st_dev and st_ino of stat(2)).
type FileID struct{ Dev, Ino uint64 }

// Options of a Dumper.
type Options struct {
	// External names files and pipes that belong to the agent, such as the log of a workload, or to whoever restores a dump: they are not
	// carried, but attached at the destination by Env.External under the same name.
	External map[FileID]string
	// Init is the pid 1 of a workload, on this host: the tree is all that runs under it. 0: there is none.
	Init int
	// Young tells processes that may well have ended before the tree is stopped: what only they have open is not looked for at the
	// destination beforehand. nil: there are none.
	Young func(*engine.Process) bool
	// SameHost tells that the tree will come back on this host: what it uses of other processes is still there.
	SameHost bool
	// LockConnections keeps the peers of TCP connections from noticing that the tree is gone (sock.Lock): for a dump to disk, where
	// no gate stands before the tree.
	LockConnections bool
	// Objects takes the files that no name reaches. nil: they are refused.
	Objects Objects
	// Terminals are the masters of pseudoterminals that the agent holds for the tree, by the names under which Env.Terminal gets
	// them at the destination. They are used as long as the Dumper is.
	Terminals map[string]*os.File
	// ExternalUnix says what becomes of unix sockets whose peers are outside of the tree, by the peer's address (UnixAddress): Reconnect
	// or HangUp. Others are refused.
	ExternalUnix map[string]string
	// NewTerminals makes the tree leave terminals whose master is held by somebody else: it gets new ones (FreshTerminal).
	NewTerminals bool
}

// A Dumper reads the descriptors of one tree.
type Dumper struct {
	opts   Options
	pidfds map[int]int // by pid
	procs  []*engine.Process
	diag   *diagnosis
	needed []Needed
	frozen bool // Dump runs: checks that search the whole system are left out

	places  map[inode]place   // where watched files were found
	peek    *peek.Kernel      // once a terminal was met
	dnotify uint64            // the kernel's group of marks of F_NOTIFY, once one was looked for
	ttyIDs  map[uint64]uint32 // of terminals, by their addresses
	fresh   uint32            // the id of the one that the tree leaves for a new one; 0 for none

	locked   map[uint64]bool    // while Check or Dump runs: inodes with locks, nil until asked for
	current  *snapshot          // while Check or Dump runs
	held     *snapshot          // after Dump, until Resume or Drop
	kernel   map[int]bpf.Socket // while Check or Dump runs: sockets by their duplicates, nil until asked for
	paused   []*pausedConn
	looked   map[uint32]lookedAt      // connections by inode, at the last call of Pending
	queues   []*queue                 // as paused
	requests *bpf.Requests            // nil if there is no way to fill a queue again, or none is needed
	barriers map[*sock.Diag]*connLock // before the connections of each network namespace, from Dump until Resume or Drop
	outsider map[pipeKey][]int        // while Check runs: who else holds a pipe, by inode
	newborn  map[pipeKey]bool         // the same of processes that were born of the tree since it was listed
}

type pausedConn struct {
	ino   uint32
	conn  *tcprepair.Paused
	state *tcprepair.State
}

// NewDumper returns a Dumper; it touches nothing yet.
func NewDumper(opts Options) *Dumper {
	return &Dumper{opts: opts, pidfds: map[int]int{}, places: map[inode]place{}}
}

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
		errs = append(errs, d.diag.close())
		d.diag = nil
	}
	if d.held != nil {
		errs = append(errs, d.held.close())
		d.held = nil
	}
	if d.peek != nil {
		errs = append(errs, d.peek.Close())
		d.peek = nil
	}
	return errors.Join(errs...)
}

// prepare opens what asking takes: once, before the freeze if Check was called.
func (d *Dumper) prepare(procs []*engine.Process) error {
	d.procs = procs
	for _, p := range procs {
		if _, ok := d.pidfds[p.PID]; ok {
			continue
		}
		fd, err := thread.Pidfd(p.PID)
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
	d.diag, err = newDiagnosis(ns)
	return err
}

// Check lists everything of the open descriptors that is not carried. It reads /proc and duplicates of the
// descriptors and changes nothing; the processes may run. Descriptors that are closed meanwhile are passed over.
func (d *Dumper) Check(ctx context.Context, procs []*engine.Process) ([]engine.Obstacle, error) {
	if err := d.prepare(procs); err != nil {
		return nil, err
	}
	snap, err := d.collect(ctx, procs, 1)
	if err != nil {
		return nil, err
	}
	out, err := checkTables(procs, snap)
	if err != nil {
		return nil, errors.Join(err, snap.close())
	}
	sessions, err := d.checkSessions(procs)
	if err != nil {
		return nil, errors.Join(err, snap.close())
	}
	out = append(out, sessions...)
	d.frozen = false
	for _, desc := range snap.list {
		h := desc.holders[0]
		for _, p := range d.problems(ctx, snap, desc) {
			ended := func(h holder) bool { return hasEnded(h.proc.PID) }
			if slices.ContainsFunc(desc.holders, ended) {
				p.passing = true // what was asked by way of that process may say so only for that
			}
			if !slices.ContainsFunc(desc.holders, func(h holder) bool { return !ended(h) }) {
				continue // it is closed
			}
			out = append(out, engine.Obstacle{PID: h.proc.PID, Kind: desc.kind.Name, Where: h.where(), Reason: p.reason, Remedy: p.remedy, Passing: p.passing})
		}
	}
	d.needed = d.neededOf(snap)
	d.outsider, d.newborn, d.current, d.locked, d.kernel = nil, nil, nil, nil, nil
	return out, snap.close()
}

// hasEnded tells a process that has no descriptors any more.
func hasEnded(pid int) bool {
	st, err := procfs.Host.Stat(pid)
	return err != nil || st.State == 'Z' || st.State == 'X'
}

// problems lists why a description is not carried.
func (d *Dumper) problems(ctx context.Context, snap *snapshot, desc *description) []problem {
	if !desc.kind.Carried {
		return []problem{{reason: desc.kind.Note + named(desc), remedy: desc.kind.Remedy}}
	}
	var out []problem
	d.current = snap
	if desc.kind.check != nil {
		out = desc.kind.check(ctx, d, desc)
	}
	out = append(append(out, d.lockProblems(desc)...), d.dnotifyProblems(desc)...)
	if p, bad := ownerProblem(desc, d.procs); bad {
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

// collect duplicates every descriptor of the tree and groups them.
func (d *Dumper) collect(ctx context.Context, procs []*engine.Process, firstID uint32) (*snapshot, error) {
	c := newCollector(firstID)
	for _, p := range procs {
		if err := d.collectProcess(ctx, c, p); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	if d.frozen {
		if err := d.unixQueues(c); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	for _, desc := range c.list {
		desc.external = d.opts.External[FileID{desc.stat.Dev, desc.stat.Ino}]
		desc.kind = kindOf(desc)
		if desc.format() == unix.S_IFREG {
			c.regular += len(desc.holders)
		}
	}
	if err := d.noteNets(c.snapshot); err != nil {
		return nil, errors.Join(err, c.close())
	}
	if err := c.findViews(procs); err != nil {
		return nil, errors.Join(err, c.close())
	}
	d.findDetached(c.snapshot)
	return c.snapshot, nil
}

// collectProcess duplicates the descriptors of a process. Listing /proc/PID/fd is slow, so of a stopped process small numbers
// are tried for as long as fewer have been found than are open, which that directory's size tells since Linux 6.2.
func (d *Dumper) collectProcess(ctx context.Context, c *collector, p *engine.Process) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.Second(p.Shared.Files) {
		return nil // the table is that of another process of the tree
	}
	low := 0
	var st unix.Stat_t
	if d.frozen && unix.Stat(fmt.Sprintf("/proc/%d/fd", p.PID), &st) == nil && st.Size > 0 {
		for ; low < 2*int(st.Size)+64; low++ {
			if err := d.take(c, p, low); err != nil {
				return err
			}
			if len(c.numbers[p.PID]) == int(st.Size) {
				return nil
			}
		}
	}
	fds, err := procfs.Host.FDs(p.PID)
	if errors.Is(err, procfs.ErrGone) {
		return fmt.Errorf("process %d: %w", p.PID, remote.ErrGone)
	}
	if err != nil {
		return fmt.Errorf("descriptors of process %d: %w", p.PID, err)
	}
	for _, fd := range fds {
		if fd < low {
			continue
		}
		if err := d.take(c, p, fd); err != nil {
			return err
		}
	}
	return nil
}

// take duplicates a descriptor, if it is open.
func (d *Dumper) take(c *collector, p *engine.Process, fd int) error {
	dup, err := unix.PidfdGetfd(d.pidfds[p.PID], fd, 0)
	if errors.Is(err, unix.EBADF) {
		return nil
	}
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", p.PID, remote.ErrGone)
	}
	if err != nil {
		return fmt.Errorf("duplicate descriptor %d of process %d: %w%s", fd, p.PID, err, limitHint(err))
	}
	root, err := c.rootName(p.PID) // not before: a zombie has neither descriptors nor a root
	if err != nil {
		return errors.Join(err, unix.Close(dup))
	}
	c.numbers[p.PID] = append(c.numbers[p.PID], fd)
	return c.add(dup, holder{proc: p, fd: fd}, root)
}

func limitHint(err error) string {
	if errors.Is(err, unix.EMFILE) {
		return " (raise the agent's limit of open files, LimitNOFILE)"
	}
	return ""
}

// A dump is one run of Dumper.Dump.
type dump struct {
	*Dumper
	snap    *snapshot
	cp      *images.Checkpoint
	pipes   map[uint32]bool // inodes of pipes whose contents have been read
	queueMu sync.Mutex      // over Dumper.queues and Dumper.barriers
	// tcpInfo is what sock_diag(7) tells of the TCP sockets of the network namespace, by inode.
	tcpInfo map[uint32]sock.TCPInfo
	// waiting are unix sockets whose connections wait at listeners of the tree, by inode number; nil until asked for.
	waiting map[uint32]bool
	mu      sync.Mutex // over cp.Blobs and Dumper.paused, which kinds that are dumped side by side write
}

// Dump adds the descriptors of the stopped tree to the checkpoint: Files, the processes' FDs (by the ids that the tree sees) and
// Blobs. TCP connections are in repair when it returns, until Resume or Drop. When it fails, all that it changed is put back.
func (d *Dumper) Dump(ctx context.Context, procs []*engine.Process, cp *images.Checkpoint) (err error) {
	if err := d.prepare(procs); err != nil {
		return err
	}
	d.frozen = true
	defer func() {
		d.frozen, d.current, d.locked, d.kernel = false, nil, nil, nil
		if err != nil {
			err = errors.Join(err, d.Resume(ctx))
		}
	}()
	first := uint32(1)
	for _, f := range cp.Files {
		first = max(first, f.GetId()+1)
	}
	in, end := span.Begin(ctx, "collect")
	if d.held == nil { // else Nameless has collected them
		if d.held, err = d.collect(in, procs, first); err != nil {
			return err
		}
	}
	end()
	snap := d.held
	for i, desc := range snap.list {
		desc.id = first + uint32(i)
	}
	if err := refuseTables(procs, snap); err != nil {
		return err
	}
	run := &dump{Dumper: d, snap: snap, cp: cp, pipes: map[uint32]bool{}}
	if cp.Blobs == nil {
		cp.Blobs = map[string][]byte{}
	}
	_, end = span.Begin(ctx, "problems")
	for _, desc := range snap.list {
		if ps := d.problems(ctx, snap, desc); len(ps) > 0 {
			return fmt.Errorf("%s: %s (%s): %w%s", desc.where(), ps[0].reason, desc.kind.Name, ErrNotCarried, ps[0].hint())
		}
	}
	end()
	_, end = span.Begin(ctx, "tcp")
	if err := d.undelivered(snap); err != nil {
		return err
	}
	if err := run.askTCP(); err != nil {
		return err
	}
	if err := run.lockConnections(); err != nil {
		return err
	}
	end()
	// The two halves use nothing in common but the processors.
	type flags struct {
		set map[fdKey]bool
		err error
	}
	done := make(chan flags, 1)
	_, end = span.Begin(ctx, "each")
	defer end()
	go func() {
		set, err := closeOnExec(ctx, procs, snap)
		done <- flags{set, err}
	}()
	err = run.all(ctx)
	cloexec := <-done
	if err = errors.Join(err, cloexec.err); err != nil {
		return err
	}
	run.tables(procs, cloexec.set)
	run.noteInFlight()
	if err := run.heldTerminals(); err != nil {
		return err
	}
	return run.noteTerminals(procs)
}

// all dumps every description: the many connections of a server side by side, the others one by one.
func (r *dump) all(ctx context.Context) error {
	entries := make([]*fdinfo.FileEntry, len(r.snap.list))
	one := func(i int) (err error) {
		desc := r.snap.list[i]
		if entries[i], err = desc.kind.dump(ctx, r, desc); err != nil {
			return fmt.Errorf("%s (%s): %w", desc.where(), desc.kind.Name, err)
		}
		return errors.Join(r.locks(desc), r.notifications(desc))
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
		x, err := r.extra(r.snap.list[i])
		if err != nil {
			return err
		}
		if x != nil {
			r.cp.Header.Files = append(r.cp.Header.Files, x)
		}
	}
	return nil
}

// blob adds raw data to the checkpoint.
func (r *dump) blob(name string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cp.Blobs[name] = data
}

// Resume takes back what Dump has changed, before the tree runs on: connections leave repair exactly as they were. It may be
// called again after an error.
func (d *Dumper) Resume(ctx context.Context) error {
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
	return errors.Join(d.requeue(context.WithoutCancel(ctx)), d.unlock(), d.letGo())
}

// Drop ends the connections without a packet. The processes must have been destroyed before it, and their
// ends be gone: the last duplicate of a socket is closed here, in repair.
func (d *Dumper) Drop() error {
	d.paused = nil
	return errors.Join(d.dropQueues(), d.keepLock(), d.letGo())
}

func (d *Dumper) letGo() error {
	if d.held == nil {
		return nil
	}
	err := d.held.close()
	d.held = nil
	return err
}
