//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/remote"
	"migrate/tcprepair"
)

// Env is what a Restorer needs to know of the place where the tree will live.
type Env struct {
	// NetNS is the tree's network namespace; nil for this program's own.
	NetNS *os.File
	// Nested is an open namespace that the root of the tree is not in, by its id; nil if there is none. May be nil.
	Nested func(id uint32) *os.File
	// Root is the root directory of a process, by the id that the tree knows, as a path of this program such as
	// /proc/4711/root. Paths are resolved there and never lead out of it.
	Root func(vpid int) string
	// PID is the process of the skeleton, in the pid namespace of this program. If it is nil, Root must give paths of the
	// form /proc/PID/root.
	PID func(vpid int) int
	// TID is a thread of a process of the skeleton, in the pid namespace of this program. May be nil.
	TID func(vpid, vtid int) int
	// Ended calls fn while there is a process, by preference with the given id (0: any), in the pid namespace of the tree, and ends that
	// process afterwards. May be nil.
	Ended func(ctx context.Context, vpid int, fn func(pid, vpid int) error) error
	// External opens what Options.External has named at the source. flags are open flags (fcntl(2), F_GETFL). nil
	// means that there is nothing of the kind.
	External func(name string, flags int) (*os.File, error)
	// Object opens an object of the checkpoint's header. nil means that there are none.
	Object func(id uint32, flags int) (*os.File, error)
	// Terminals are the masters of the pseudoterminals that control sessions of the skeleton, by the ids of the terminals. The
	// Restorer takes out those that it uses; they are its own then.
	Terminals map[uint32]*os.File
	// Terminal takes the master of a pseudoterminal whose holder is outside of the tree (Options.Terminals, FreshTerminal), by a
	// duplicate. nil means that nobody takes any.
	Terminal func(name string, master *os.File) error
	// Caller makes calls in a process of the skeleton, by the id that the tree knows; nil for one that is not in it. If there is no
	// skeleton, Caller is nil.
	Caller func(vpid int) remote.Caller
	// Helper makes a process that stands for one that the tree knew and that has ended, with the same id; EEXIST: the id is taken.
	Helper func(ctx context.Context, vpid int) (Helper, error)
}

// A Helper is a process for a while.
type Helper struct {
	Caller remote.Caller
	End    func() error // ends it and waits until its id is free
}

// A Restorer makes the descriptors of one checkpoint.
type Restorer struct {
	cp  *images.Checkpoint
	env Env

	queued []*tcprepair.State // connections that wait in listeners' queues

	list    []*fdinfo.FileEntry // the records that descriptors name
	files   map[uint32]*os.File // by id of the record
	kinds   map[uint32]*Kind
	homes   map[uint32]home
	pipes   map[uint32]*pipePair
	maps    map[uint32]int // descriptors of BPF maps while they are being made, by the id of the map at the source
	fifos   map[uint32]int // descriptors of FIFOs while they are being made, by the id of their first record
	bound   []*unixPlace
	dirs    []madeDir
	unix    *unixPlan           // once the first unix socket is made
	objects map[uint32]uint32   // of records that no name reaches
	nets    map[uint32]*os.File // network namespaces of sockets that are not in that of the tree's root
	via     map[uint32]int      // of records whose paths are from the root of another process
	mu      sync.Mutex          // over held, which connections that are restored side by side write
	held    []heldConn
	// connects are the sockets that connect again at the release.
	connects []func() error
	ttys     map[uint32]*madeTTY // by id of the terminal
	fresh    map[uint32]*os.File // internet sockets that were made beforehand; also among files
	roots    map[int]int         // descriptors of root directories, by vpid
	tables   map[int]map[int]uint32
	holders  map[uint32][]int // processes that hold a record, in the order of the checkpoint
}

// home is the first process that holds a description, and the number there.
type home struct{ vpid, fd int }

// NewRestorer checks the records against each other; it touches nothing yet.
func NewRestorer(cp *images.Checkpoint, env Env) (*Restorer, error) {
	r := &Restorer{cp: cp, env: env, objects: objectsOf(cp.Header), via: viasOf(cp.Header), nets: map[uint32]*os.File{}, files: map[uint32]*os.File{}, kinds: map[uint32]*Kind{}, homes: map[uint32]home{},
		pipes: map[uint32]*pipePair{}, roots: map[int]int{}, fifos: map[uint32]int{}, maps: map[uint32]int{}, fresh: map[uint32]*os.File{},
		tables: map[int]map[int]uint32{}, ttys: map[uint32]*madeTTY{}, holders: map[uint32][]int{}}
	for _, p := range cp.Processes {
		table := make(map[int]uint32, len(p.FDs))
		r.tables[int(p.PID)] = table
		for _, e := range p.FDs {
			table[int(e.GetFd())] = e.GetId()
			if h := r.holders[e.GetId()]; len(h) == 0 || h[len(h)-1] != int(p.PID) {
				r.holders[e.GetId()] = append(h, int(p.PID))
			}
			if _, ok := r.homes[e.GetId()]; !ok {
				r.homes[e.GetId()] = home{int(p.PID), int(e.GetFd())}
			}
		}
	}
	if err := r.findNets(); err != nil {
		return nil, err
	}
	for id, vpid := range r.via {
		if cp.Process(uint32(vpid)) == nil {
			return nil, fmt.Errorf("migrate.img: header.files: file %d: via: process %d is not in the tree", id, vpid)
		}
	}
	if err := r.homesInFlight(cp); err != nil {
		return nil, err
	}
	seen := map[uint32]bool{}
	for _, e := range cp.Files {
		if _, ok := r.homes[e.GetId()]; !ok {
			continue
		}
		r.list = append(r.list, e)
		k, err := kindOfEntry(e)
		if err != nil {
			return nil, err
		}
		r.kinds[e.GetId()] = k
		seen[e.GetId()] = true
	}
	for id, h := range r.homes {
		if !seen[id] {
			return nil, fmt.Errorf("fdinfo of process %d: descriptor %d names file %d, which files.img lacks", h.vpid, h.fd, id)
		}
	}
	return r, nil
}

// entries lists the records that descriptors name; files.img holds mapped files too.
func (r *Restorer) entries() []*fdinfo.FileEntry { return r.list }

// pid is the process of the skeleton, in the pid namespace of this program.
func (r *Restorer) pid(vpid int) (int, error) {
	if r.env.PID != nil {
		return r.env.PID(vpid), nil
	}
	var pid int
	if _, err := fmt.Sscanf(r.rootPath(vpid), "/proc/%d/root", &pid); err != nil {
		return 0, fmt.Errorf("it is not known here which process stands for process %d", vpid)
	}
	return pid, nil
}

// put gives the Restorer the descriptor made for a record.
func (r *Restorer) put(id uint32, fd int) *os.File {
	f := os.NewFile(uintptr(fd), fmt.Sprintf("file %d", id))
	r.files[id] = f
	return f
}

// descriptor is the number, in this program, of the description of a record. It stays open as long as the Restorer.
func (r *Restorer) descriptor(id uint32) (int, error) {
	f := r.files[id]
	if f == nil {
		return -1, fmt.Errorf("file %d has not been made", id)
	}
	return rawFD(f)
}

// Duplicate is a descriptor of the description of a record, close-on-exec, which the caller closes. It is there after Open.
func (r *Restorer) Duplicate(id uint32) (int, error) {
	fd, err := r.descriptor(id)
	if err != nil {
		return -1, err
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

// rawFD is the number of a file, without the side effects of File.Fd.
func rawFD(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if err := rc.Control(func(p uintptr) { fd = int(p) }); err != nil {
		return -1, err
	}
	return fd, nil
}

// Open makes every description. TCP connections are in repair when it returns.
func (r *Restorer) Open(ctx context.Context) error {
	if err := r.freshSockets(); err != nil {
		return err
	}
	if err := r.firstUnix(ctx); err != nil { // others may open their files
		return err
	}
	if err := r.swapMounts(false); err != nil {
		return err
	}
	for _, e := range r.entries() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.files[e.GetId()] != nil && r.fresh[e.GetId()] == nil {
			continue // made together with another one
		}
		if err := r.kinds[e.GetId()].open(ctx, r, e); err != nil {
			return r.blame(e, err)
		}
	}
	if err := r.connectAll(ctx); err != nil {
		return err
	}
	for _, h := range r.held {
		if err := h.conn.TakeResets(); err != nil {
			return err
		}
	}
	for _, e := range r.entries() {
		if k := r.kinds[e.GetId()]; k.settle != nil {
			if err := k.settle(r, e); err != nil {
				return r.blame(e, err)
			}
		}
	}
	if err := r.settleTerminals(); err != nil {
		return err
	}
	return r.closeSpares()
}

// connectAll connects every description: the many connections of a server side by side, the others one by one.
func (r *Restorer) connectAll(ctx context.Context) error {
	var side []*fdinfo.FileEntry
	for _, e := range r.entries() {
		switch k := r.kinds[e.GetId()]; {
		case k.connect == nil:
		case k.parallel:
			side = append(side, e)
		default:
			if err := k.connect(ctx, r, e); err != nil {
				return r.blame(e, err)
			}
		}
	}
	return parallel(len(side), func(i int) error {
		if err := r.kinds[side[i].GetId()].connect(ctx, r, side[i]); err != nil {
			return r.blame(side[i], err)
		}
		return nil
	})
}

func (r *Restorer) blame(e *fdinfo.FileEntry, err error) error {
	h := r.homes[e.GetId()]
	return fmt.Errorf("descriptor %d of process %d (%s, file %d): %w", h.fd, h.vpid, r.kinds[e.GetId()].Name, e.GetId(), err)
}

// Install gives a process of the skeleton its descriptors at their numbers, and does what must run inside it.
func (r *Restorer) Install(ctx context.Context, p *engine.Process) error {
	ip := r.cp.Process(uint32(p.VPID))
	if ip == nil {
		return fmt.Errorf("process %d is not in the checkpoint", p.VPID)
	}
	push := make([]remote.PushFile, 0, len(ip.FDs))
	in := &inside{r: r, p: p, table: r.tables[p.VPID], batch: &remote.Batch{},
		first: &remote.Batch{}, harvest: map[uint32]int{}, second: &remote.Batch{}, spare: map[uint32]int{}, cloexec: map[int]bool{}}
	for _, e := range ip.FDs {
		f := r.files[e.GetId()]
		if f == nil {
			return fmt.Errorf("descriptor %d of process %d: file %d has not been made", e.GetFd(), p.VPID, e.GetId())
		}
		push = append(push, remote.PushFile{File: f, FD: int(e.GetFd()), CloseOnExec: e.GetFlags()&unix.FD_CLOEXEC != 0})
		in.cloexec[int(e.GetFd())] = e.GetFlags()&unix.FD_CLOEXEC != 0
	}
	if len(push) == 0 {
		return nil
	}
	push, err := in.lend(push)
	if err != nil {
		return fmt.Errorf("descriptors of process %d: %w", p.VPID, err)
	}
	if err := raiseLimit(ctx, p, push); err != nil {
		return fmt.Errorf("descriptors of process %d: %w", p.VPID, err)
	}
	if err := p.Caller.Push(ctx, push); err != nil {
		return fmt.Errorf("descriptors of process %d: %w", p.VPID, err)
	}
	for _, e := range r.entries() {
		if err := in.add(e); err != nil {
			return r.blame(e, err)
		}
	}
	return in.run(ctx)
}

// Finish gives the descriptions the status flags that would have been in the way before (O_NONBLOCK above all). It runs
// after the last Install.
func (r *Restorer) Finish(context.Context) error {
	for _, e := range r.entries() {
		flags, _ := statusFlags(e)
		if flags&unix.O_NONBLOCK == 0 || flags&unix.O_PATH != 0 {
			continue
		}
		fd, err := r.descriptor(e.GetId())
		if err != nil {
			return r.blame(e, err)
		}
		have, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, have|unix.O_NONBLOCK)
		}
		if err != nil {
			return r.blame(e, fmt.Errorf("set O_NONBLOCK: %w", err))
		}
	}
	return r.late()
}

// late does what may come only when nothing is opened or closed any more.
func (r *Restorer) late() error {
	for _, e := range r.entries() {
		if k := r.kinds[e.GetId()]; k.late != nil {
			if err := k.late(r, e); err != nil {
				return r.blame(e, err)
			}
		}
	}
	return nil
}

// Release lets the connections go on. It is called at the resume, after the commit: it tries all and names those that
// failed.
func (r *Restorer) Release(context.Context) error {
	errs := []error{r.unlock()}
	for _, h := range r.held {
		if err := h.conn.Release(); err != nil {
			errs = append(errs, err)
		}
	}
	for _, connect := range r.connects {
		errs = append(errs, connect())
	}
	r.held, r.connects = nil, nil
	errs = append(errs, r.keepPaths())
	return errors.Join(errs...)
}

// Drop gives everything up: connections vanish without a packet when the skeleton is gone, and socket files that
// were set aside are put back.
func (r *Restorer) Drop() error {
	r.held = nil
	return errors.Join(r.putBackPaths(), r.Close())
}

// Close closes this program's ends of all descriptions. Connections that were not released stay in repair.
func (r *Restorer) Close() error {
	errs := []error{r.closeSpares()}
	for _, t := range r.ttys {
		errs = append(errs, t.close())
	}
	for id, f := range r.files {
		if err := f.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close file %d: %w", id, err))
		}
	}
	r.files = map[uint32]*os.File{}
	for vpid, fd := range r.roots {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close the root directory of process %d: %w", vpid, err))
		}
	}
	r.roots = map[int]int{}
	return errors.Join(errs...)
}

// closeSpares closes ends of pipes and FIFOs that no descriptor holds.
func (r *Restorer) closeSpares() error {
	var errs []error
	for id, p := range r.pipes {
		if err := p.closeSpares(); err != nil {
			errs = append(errs, fmt.Errorf("pipe %d: %w", id, err))
		}
	}
	for id, fd := range r.fifos {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close FIFO %d: %w", id, err))
		}
	}
	for id, fd := range r.maps {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close BPF map %d: %w", id, err))
		}
	}
	r.fifos, r.maps = map[uint32]int{}, map[uint32]int{}
	return errors.Join(errs...)
}
