//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/remote"
)

// checkTables refuses descriptor tables that are shared across processes or not shared by the threads of one. Processes without
// a descriptor are passed over: zombies have no table.
func checkTables(procs []*engine.Process, s *snapshot) ([]engine.Obstacle, error) {
	var out []engine.Obstacle
	procs = slices.Clone(procs)
	procs = slices.DeleteFunc(procs, func(p *engine.Process) bool { return len(s.numbers[p.PID]) == 0 })
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
	var failed error
	slices.SortFunc(procs, func(a, b *engine.Process) int {
		if a == b {
			return 0
		}
		r, err := kcmp(a.PID, b.PID, kcmpFiles, 0, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			failed = fmt.Errorf("compare the descriptor tables of processes %d and %d: %w", a.PID, b.PID, err)
		}
		return []int{0, -1, 1, 0}[r&3]
	})
	for i := 1; i < len(procs); i++ {
		if r, err := kcmp(procs[i-1].PID, procs[i].PID, kcmpFiles, 0, 0); err == nil && r == 0 {
			out = append(out, engine.Obstacle{PID: procs[i].PID, Kind: "descriptor table", Where: "descriptors",
				Reason: fmt.Sprintf("it shares its descriptor table with process %d (clone(CLONE_FILES))", procs[i-1].PID)})
		}
	}
	return out, failed
}

func refuseTables(procs []*engine.Process, s *snapshot) error {
	obstacles, err := checkTables(procs, s)
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
func (r *dump) tables(procs []*engine.Process, cloexec map[fdKey]bool) {
	byVPID := map[uint32][]*fdinfo.FdinfoEntry{}
	for _, p := range procs {
		for _, fd := range r.snap.numbers[p.PID] {
			desc := r.snap.byFD[fdKey{p.PID, fd}]
			var flags uint32
			if cloexec[fdKey{p.PID, fd}] {
				flags = unix.FD_CLOEXEC
			}
			byVPID[uint32(p.VPID)] = append(byVPID[uint32(p.VPID)], &fdinfo.FdinfoEntry{Id: proto.Uint32(desc.id), Flags: proto.Uint32(flags),
				Type: desc.kind.Type.Enum(), Fd: proto.Uint32(uint32(fd))})
		}
	}
	for _, p := range r.cp.Processes {
		if t, ok := byVPID[p.IDs.GetFilesId()]; ok {
			p.FDs = t
		}
	}
}

// fewFDs is up to how many descriptors it costs less to read about in /proc than to borrow a process and ask it.
const fewFDs = 64

// chunk is how many descriptors are asked about at a time.
const chunk = 64

// closeOnExec asks for FD_CLOEXEC of every descriptor: by batches where a process is stopped under a Caller, else by
// reading its fdinfo, which is slow: so on all processors.
func closeOnExec(ctx context.Context, procs []*engine.Process, s *snapshot) (map[fdKey]bool, error) {
	type job struct {
		p   *engine.Process
		fds []int
		set []bool
	}
	var batches, reads []*job
	for _, p := range procs {
		for part := range slices.Chunk(s.numbers[p.PID], chunk) {
			j := &job{p, part, make([]bool, len(part))}
			if p.Caller != nil && len(s.numbers[p.PID]) > fewFDs {
				batches = append(batches, j)
			} else {
				reads = append(reads, j)
			}
		}
	}
	for _, j := range batches {
		if err := askCloseOnExec(ctx, j.p, j.fds, j.set); err != nil {
			return nil, fmt.Errorf("pid %d: close-on-exec of descriptors %d to %d: %w", j.p.PID, j.fds[0], j.fds[len(j.fds)-1], err)
		}
	}
	if err := parallel(len(reads), func(i int) error { return readCloseOnExec(reads[i].p.PID, reads[i].fds, reads[i].set) }); err != nil {
		return nil, err
	}
	out := make(map[fdKey]bool, len(s.byFD))
	for _, j := range append(batches, reads...) {
		for i, fd := range j.fds {
			out[fdKey{j.p.PID, fd}] = j.set[i]
		}
	}
	return out, nil
}

func askCloseOnExec(ctx context.Context, p *engine.Process, fds []int, set []bool) error {
	var b remote.Batch
	res := make([]*remote.Result, len(fds))
	for i, fd := range fds {
		res[i] = b.Call(unix.SYS_FCNTL, fd, unix.F_GETFD)
	}
	if err := p.Caller.Run(ctx, &b); err != nil {
		return err
	}
	for i := range fds {
		v, err := res[i].Value()
		if err != nil {
			return err
		}
		set[i] = v&unix.FD_CLOEXEC != 0
	}
	return nil
}

// readCloseOnExec reads the second line of each /proc/PID/fdinfo/FD, "flags:\t" and an octal number.
func readCloseOnExec(pid int, fds []int, set []bool) (err error) {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d/fdinfo", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fdinfo of process %d: %w", pid, err)
	}
	defer func() { err = errors.Join(err, unix.Close(dir)) }()
	var buf [128]byte
	for i, fd := range fds {
		n, err := readAt(dir, strconv.Itoa(fd), buf[:])
		if err != nil {
			return fmt.Errorf("fdinfo of descriptor %d of process %d: %w", fd, pid, err)
		}
		_, rest, ok := strings.Cut(string(buf[:n]), "flags:\t")
		text, _, ok2 := strings.Cut(rest, "\n")
		flags, err := strconv.ParseUint(text, 8, 32)
		if err != nil || !ok || !ok2 {
			return fmt.Errorf("fdinfo of descriptor %d of process %d: no flags in %q", fd, pid, buf[:n])
		}
		set[i] = flags&unix.O_CLOEXEC != 0
	}
	return nil
}

// readAt reads the beginning of a file in a directory.
func readAt(dir int, name string, buf []byte) (n int, err error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return unix.Read(fd, buf)
}
