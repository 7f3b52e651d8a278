package images

import (
	"encoding/binary"
	"errors"
	"fmt"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"

	"migrate/engine/images/imagespb"
)

// Bounds of a checkpoint. They are the kernel's own where it has one.
const (
	maxTasks    = 1 << 18 // processes and threads
	maxID       = 1 << 22 // PID_MAX_LIMIT
	maxFD       = 1 << 30 // the largest sysctl fs.nr_open
	maxBlobs    = 1 << 18
	maxGroups   = 1 << 16 // NGROUPS_MAX
	maxSignals  = 1 << 16 // queued for one task
	maxTimers   = 1 << 16 // POSIX timers of one process
	maxRegset   = 1 << 16 // bytes of one register set; AMX takes 11 KiB
	maxComm     = 15      // TASK_COMM_LEN less the terminating zero
	maxAffinity = 1 << 13 // bytes
	siginfoSize = 128     // SI_MAX_SIZE
	maxVMAName  = 79      // ANON_VMA_NAME_MAX_LEN less the terminating zero
	numSignals  = 64
)

// Validate checks every count, length and reference. The error names the file and the field.
func (c *Checkpoint) Validate() error {
	if c.Inventory == nil {
		return errors.New("inventory.img: has no entry")
	}
	if err := validateHeader(c.Header); err != nil {
		return err
	}
	if err := validateNamespaces(c.Namespaces, c.Header); err != nil {
		return err
	}
	tids, err := validateTree(c.Tree)
	if err != nil {
		return err
	}
	if err := validateTTYs(c.TTYs, c.Terminals, c.Files); err != nil {
		return err
	}
	files, err := validateFiles(c.Files)
	if err != nil {
		return err
	}
	if len(c.Processes) != len(c.Tree) {
		return fmt.Errorf("pstree.img: %d entries for %d processes", len(c.Tree), len(c.Processes))
	}
	for i, p := range c.Processes {
		if err := p.validate(c.Tree[i], files, tids); err != nil {
			return err
		}
		for _, t := range p.Threads {
			if err := validateChain(c.Header, t.Extra); err != nil {
				return err
			}
		}
	}
	if err := c.validateShared(); err != nil {
		return err
	}
	if err := validateSessionTerminals(c.Header, c.Tree); err != nil {
		return err
	}
	return validateBlobs(c.Blobs)
}

// Validate checks every count, length and reference. The error names the file and the field.
func (l *Layout) Validate() error {
	if err := validateHeader(l.Header); err != nil {
		return err
	}
	if err := validateNamespaces(l.Namespaces, l.Header); err != nil {
		return err
	}
	if _, err := validateTree(l.Tree); err != nil {
		return err
	}
	if err := validateSessionTerminals(l.Header, l.Tree); err != nil {
		return err
	}
	files, err := validateFiles(l.Files)
	if err != nil {
		return err
	}
	if len(l.Spaces) != len(l.Tree) {
		return fmt.Errorf("pstree.img: %d entries for %d address spaces", len(l.Tree), len(l.Spaces))
	}
	for i, s := range l.Spaces {
		if s.PID != l.Tree[i].GetPid() {
			return fmt.Errorf("pstree.img: entry %d: pid: %d, but the address space is that of %d", i, l.Tree[i].GetPid(), s.PID)
		}
		if s.MM == nil {
			continue
		}
		if err := validateMM(s.PID, s.MM, files); err != nil {
			return err
		}
	}
	return nil
}

func validateHeader(h *imagespb.Header) error {
	if h == nil {
		return errors.New("migrate.img: header: is missing")
	}
	if h.GetVersion() != Version {
		return fmt.Errorf("migrate.img: header.version: %d, this program reads %d", h.GetVersion(), Version)
	}
	if n := len(h.GetFiles()); n > maxEntries {
		return fmt.Errorf("migrate.img: header.files: %d entries", n)
	}
	if err := validateCgroups(h); err != nil {
		return err
	}
	if err := validateSharedStates(h); err != nil {
		return err
	}
	if err := validateSeccomp(h); err != nil {
		return err
	}
	return validateObjects(h.GetObjects())
}

// validateTree checks the ids of the tree and returns all thread ids, each with its process.
func validateTree(tree []*pstree.PstreeEntry) (map[uint32]uint32, error) {
	if len(tree) == 0 {
		return nil, errors.New("pstree.img: has no entry")
	}
	tids := map[uint32]uint32{}
	for i, e := range tree {
		pid := e.GetPid()
		bad := func(field string, v uint32, why string) error {
			return fmt.Errorf("pstree.img: entry %d (pid %d): %s: %d %s", i, pid, field, v, why)
		}
		threads := e.GetThreads()
		if len(threads) == 0 || threads[0] != pid {
			return nil, bad("threads", uint32(len(threads)), "entries, of which the first is not the process itself")
		}
		for _, t := range threads {
			if t == 0 || t > maxID {
				return nil, bad("threads", t, "is no id of a task")
			}
			if _, dup := tids[t]; dup {
				return nil, bad("threads", t, "stands twice")
			}
			if len(tids) >= maxTasks {
				return nil, bad("threads", t, "is one task too many")
			}
			tids[t] = pid
		}
		for name, v := range map[string]uint32{"pgid": e.GetPgid(), "sid": e.GetSid(), "ppid": e.GetPpid()} {
			if v > maxID {
				return nil, bad(name, v, "is no id of a process")
			}
		}
		// Roots have a parent outside the tree: 0, or the pid 1 of their namespace.
		if pp := e.GetPpid(); pp > 1 && tids[pp] != pp {
			return nil, bad("ppid", pp, "is not a process that stands before it")
		}
	}
	return tids, nil
}

// payload returns whether the entry of the given type holds the message that belongs to the type.
func payload(f *fdinfo.FileEntry) bool {
	switch f.GetType() {
	case fdinfo.FdTypes_REG:
		return f.Reg != nil
	case fdinfo.FdTypes_PIPE:
		return f.Pipe != nil
	case fdinfo.FdTypes_FIFO:
		return f.Fifo != nil
	case fdinfo.FdTypes_INETSK:
		return f.Isk != nil
	case fdinfo.FdTypes_UNIXSK:
		return f.Usk != nil
	case fdinfo.FdTypes_EVENTFD:
		return f.Efd != nil
	case fdinfo.FdTypes_EVENTPOLL:
		return f.Epfd != nil
	case fdinfo.FdTypes_INOTIFY:
		return f.Ify != nil
	case fdinfo.FdTypes_SIGNALFD:
		return f.Sgfd != nil
	case fdinfo.FdTypes_PACKETSK:
		return f.Psk != nil
	case fdinfo.FdTypes_TTY:
		return f.Tty != nil
	case fdinfo.FdTypes_NETLINKSK:
		return f.Nlsk != nil
	case fdinfo.FdTypes_NS:
		return f.Nsf != nil
	case fdinfo.FdTypes_TUNF:
		return f.Tunf != nil
	case fdinfo.FdTypes_EXT:
		return f.Ext != nil
	case fdinfo.FdTypes_TIMERFD:
		return f.Tfd != nil
	case fdinfo.FdTypes_MEMFD:
		return f.Memfd != nil
	case fdinfo.FdTypes_PIDFD:
		return f.Pidfd != nil
	case fdinfo.FdTypes_BPFMAP:
		return f.Bpf != nil
	case fdinfo.FdTypes_FANOTIFY:
		return f.Ffy != nil
	}
	return false
}

func validateFiles(files []*fdinfo.FileEntry) (map[uint32]*fdinfo.FileEntry, error) {
	byID := make(map[uint32]*fdinfo.FileEntry, len(files))
	for i, f := range files {
		if f.GetId() == 0 {
			return nil, fmt.Errorf("files.img: entry %d: id: is 0", i)
		}
		if _, dup := byID[f.GetId()]; dup {
			return nil, fmt.Errorf("files.img: entry %d: id: %d stands twice", i, f.GetId())
		}
		if !payload(f) {
			return nil, fmt.Errorf("files.img: entry %d (id %d): type: %v, without the message that belongs to it", i, f.GetId(), f.GetType())
		}
		byID[f.GetId()] = f
	}
	return byID, nil
}

func validateBlobs(blobs map[string][]byte) error {
	if len(blobs) > maxBlobs {
		return fmt.Errorf("blobs: %d, at most %d are taken", len(blobs), maxBlobs)
	}
	for n := range blobs {
		if n == "" || len(blobFile(n)) > maxName {
			return fmt.Errorf("blob %.300q: name: is empty or too long", n)
		}
	}
	return nil
}

func (p *Process) validate(e *pstree.PstreeEntry, files map[uint32]*fdinfo.FileEntry, tids map[uint32]uint32) error {
	if p.PID != e.GetPid() || len(p.Threads) != len(e.GetThreads()) {
		return fmt.Errorf("pstree.img: pid %d with %d threads, but the process is %d with %d", e.GetPid(), len(e.GetThreads()), p.PID, len(p.Threads))
	}
	for i, t := range p.Threads {
		if t.TID != e.GetThreads()[i] {
			return fmt.Errorf("pstree.img: pid %d: threads[%d]: %d, but the thread is %d", p.PID, i, e.GetThreads()[i], t.TID)
		}
		if err := t.validate(i == 0, p.Zombie(), tids); err != nil {
			return err
		}
		if t.Extra.GetEnded() && (i > 0 || len(p.Threads) == 1) {
			return fmt.Errorf("migrate.img: thread %d: ended: it is not the first of several", t.TID)
		}
	}
	if p.Zombie() {
		if len(p.Threads) != 1 || p.MM != nil || p.FS != nil || len(p.FDs) != 0 {
			return fmt.Errorf("core-%d.img: tc.task_state: a zombie with threads, memory or descriptors", p.PID)
		}
		return nil
	}
	if p.Extra != nil && p.Extra.GetPid() != p.PID {
		return fmt.Errorf("migrate.img: process %d: pid: %d", p.PID, p.Extra.GetPid())
	}
	for i, v := range p.Extra.GetVmaNames() {
		if len(v.GetName()) > maxVMAName || v.GetStart() >= v.GetEnd() || v.GetEnd() > maxAddr {
			return fmt.Errorf("migrate.img: process %d: vma_names[%d]: %d bytes at 0x%x", p.PID, i, len(v.GetName()), v.GetStart())
		}
	}
	if err := validateMarks(p.PID, p.Extra); err != nil {
		return err
	}
	switch {
	case p.MM == nil:
		return fmt.Errorf("mm-%d.img: has no entry", p.PID)
	case p.FS == nil:
		return fmt.Errorf("fs-%d.img: has no entry", p.PID)
	case p.IDs == nil:
		return fmt.Errorf("ids-%d.img: has no entry", p.PID)
	}
	if err := validateMM(p.PID, p.MM, files); err != nil {
		return err
	}
	for name, id := range map[string]uint32{"cwd_id": p.FS.GetCwdId(), "root_id": p.FS.GetRootId()} {
		if files[id].GetReg() == nil {
			return fmt.Errorf("fs-%d.img: %s: %d is no regular file or directory of files.img", p.PID, name, id)
		}
	}
	return p.validateFDs(files)
}

func (p *Process) validateFDs(files map[uint32]*fdinfo.FileEntry) error {
	name := fmt.Sprintf("fdinfo-%d.img", p.IDs.GetFilesId())
	seen := map[uint32]bool{}
	for i, d := range p.FDs {
		if d.GetFd() > maxFD || seen[d.GetFd()] {
			return fmt.Errorf("%s: entry %d: fd: %d is out of bounds or stands twice", name, i, d.GetFd())
		}
		seen[d.GetFd()] = true
		f := files[d.GetId()]
		if f == nil {
			return fmt.Errorf("%s: entry %d (fd %d): id: %d is not in files.img", name, i, d.GetFd(), d.GetId())
		}
		if f.GetType() != d.GetType() {
			return fmt.Errorf("%s: entry %d (fd %d): type: %v, but id %d of files.img is %v", name, i, d.GetFd(), d.GetType(), d.GetId(), f.GetType())
		}
	}
	return nil
}

func (t *Thread) validate(leader, zombie bool, tids map[uint32]uint32) error {
	core := fmt.Sprintf("core-%d.img", t.TID)
	if t.Core == nil {
		return fmt.Errorf("%s: has no entry", core)
	}
	tc := t.Core.GetTc()
	if leader && tc == nil {
		return fmt.Errorf("%s: tc: is missing", core)
	}
	if err := validateTask(tc, tids); err != nil {
		return fmt.Errorf("%s: tc.%w", core, err)
	}
	if zombie {
		return nil
	}
	if t.Core.GetThreadCore() == nil {
		return fmt.Errorf("%s: thread_core: is missing", core)
	}
	if err := validateThreadCore(t.Core.GetThreadCore()); err != nil {
		return fmt.Errorf("%s: thread_core.%w", core, err)
	}
	if err := validateThreadExtra(t.TID, t.Extra); err != nil {
		return fmt.Errorf("migrate.img: thread %d: %w", t.TID, err)
	}
	return nil
}

func validateTask(tc *criu_core.TaskCoreEntry, tids map[uint32]uint32) error {
	if tc == nil {
		return nil
	}
	switch tc.GetTaskState() {
	case TaskAlive, TaskDead, TaskStopped, TaskZombie:
	default:
		return fmt.Errorf("task_state: %d", tc.GetTaskState())
	}
	if len(tc.GetComm()) > maxComm {
		return fmt.Errorf("comm: %d bytes", len(tc.GetComm()))
	}
	// CRIU leaves out the actions of SIGKILL and SIGSTOP, which cannot be changed.
	if n := len(tc.GetSigactions()); n != 0 && n != numSignals-2 {
		return fmt.Errorf("sigactions: %d instead of %d", n, numSignals-2)
	}
	if n := len(tc.GetRlimits().GetRlimits()); n > 16 {
		return fmt.Errorf("rlimits: %d", n)
	}
	posix := tc.GetTimers().GetPosix()
	if len(posix) > maxTimers {
		return fmt.Errorf("timers.posix: %d", len(posix))
	}
	seen := map[uint32]bool{}
	for i, p := range posix {
		if id := p.GetItId(); seen[id] || id > 1<<31-1 {
			return fmt.Errorf("timers.posix[%d].it_id: %d is out of bounds or stands twice", i, id)
		}
		seen[p.GetItId()] = true
		if s := p.GetSiSigno(); s > numSignals {
			return fmt.Errorf("timers.posix[%d].si_signo: %d", i, s)
		}
		if n := p.GetNotifyThreadId(); p.NotifyThreadId != nil && tids[uint32(n)] == 0 {
			return fmt.Errorf("timers.posix[%d].notify_thread_id: %d is not in the tree", i, n)
		}
	}
	return validateSignals("signals_s", tc.GetSignalsS())
}

func validateSignals(field string, q *siginfo.SignalQueueEntry) error {
	if n := len(q.GetSignals()); n > maxSignals {
		return fmt.Errorf("%s: %d signals", field, n)
	}
	for i, s := range q.GetSignals() {
		b := s.GetSiginfo()
		if len(b) != siginfoSize {
			return fmt.Errorf("%s.signals[%d].siginfo: %d bytes instead of %d", field, i, len(b), siginfoSize)
		}
		if n := int32(binary.LittleEndian.Uint32(b)); n < 1 || n > numSignals {
			return fmt.Errorf("%s.signals[%d].siginfo: signal %d", field, i, n)
		}
	}
	return nil
}

func validateThreadCore(tc *criu_core.ThreadCoreEntry) error {
	if len(tc.GetComm()) > maxComm {
		return fmt.Errorf("comm: %d bytes", len(tc.GetComm()))
	}
	c := tc.GetCreds()
	if c == nil {
		return errors.New("creds: is missing")
	}
	if n := len(c.GetGroups()); n > maxGroups {
		return fmt.Errorf("creds.groups: %d", n)
	}
	for name, set := range map[string][]uint32{"inh": c.GetCapInh(), "prm": c.GetCapPrm(), "eff": c.GetCapEff(), "bnd": c.GetCapBnd()} {
		if len(set) != 2 {
			return fmt.Errorf("creds.cap_%s: %d words instead of 2", name, len(set))
		}
	}
	if n := len(c.GetCapAmb()); n != 0 && n != 2 {
		return fmt.Errorf("creds.cap_amb: %d words instead of 2", n)
	}
	if s := tc.GetPdeathSig(); s > numSignals {
		return fmt.Errorf("pdeath_sig: %d", s)
	}
	return validateSignals("signals_p", tc.GetSignalsP())
}

func validateThreadExtra(tid uint32, e *imagespb.ThreadExtra) error {
	if e == nil {
		return errors.New("is missing")
	}
	if e.GetTid() != tid {
		return fmt.Errorf("tid: %d", e.GetTid())
	}
	if want := map[string]int{"amd64": 27 * 8, "arm64": 34 * 8}[e.GetGoarch()]; want == 0 || len(e.GetRegs()) != want {
		return fmt.Errorf("regs: %d bytes for processor %.20q", len(e.GetRegs()), e.GetGoarch())
	}
	if n := len(e.GetXstate()); n > maxRegset {
		return fmt.Errorf("xstate: %d bytes", n)
	}
	if n := len(e.GetAffinity()); n > maxAffinity {
		return fmt.Errorf("affinity: %d bytes", n)
	}
	if n := len(e.GetRegsets()); n > 64 {
		return fmt.Errorf("regsets: %d", n)
	}
	for i, r := range e.GetRegsets() {
		if len(r.GetData()) > maxRegset {
			return fmt.Errorf("regsets[%d].data: %d bytes", i, len(r.GetData()))
		}
	}
	if _, ok := imagespb.RestartBlock_Kind_name[int32(e.GetRestart().GetKind())]; !ok {
		return fmt.Errorf("restart.kind: %d", e.GetRestart().GetKind())
	}
	return nil
}
