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
	procs = slices.DeleteFunc(procs, func(p *engine.Process) bool { return s.count[p.PID] == 0 })
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

// closeOnExec asks for FD_CLOEXEC of every descriptor: by one batch where the process is stopped under a Caller, else by
// reading its fdinfo.
func closeOnExec(ctx context.Context, p *engine.Process, fds []int) (map[int]bool, error) {
	out := make(map[int]bool, len(fds))
	if p.Caller == nil {
		return out, readCloseOnExec(p.PID, fds, out)
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

// readCloseOnExec reads the second line of each /proc/PID/fdinfo/FD, "flags:\t" and an octal number.
func readCloseOnExec(pid int, fds []int, out map[int]bool) (err error) {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d/fdinfo", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fdinfo of process %d: %w", pid, err)
	}
	defer func() { err = errors.Join(err, unix.Close(dir)) }()
	var buf [128]byte
	for _, fd := range fds {
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
		out[fd] = flags&unix.O_CLOEXEC != 0
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
