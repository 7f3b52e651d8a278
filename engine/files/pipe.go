//go:build linux

package files

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/procfs"
	"migrate/engine/sock"
)

var kindPipe = &Kind{
	Name: "pipe", Type: fdinfo.FdTypes_PIPE, Carried: true,
	Note:  "with its contents, capacity and packets; both ends must be in the tree or belong to the agent",
	match: func(d *description) bool { return d.format() == unix.S_IFIFO && d.magic() == magicPipe },
	check: checkPipe, dump: dumpPipe, open: openPipe,
}

// pipeBuf is PIPE_BUF (pipe(7)): a packet is at most that long.
const pipeBuf = 4096

// pipeKey names a pipe on this host.
type pipeKey struct{ dev, ino uint64 }

// ends tells which ends of the pipe the tree holds.
func ends(s *snapshot, d *description) (read, write *description) {
	for _, o := range s.list {
		if o.stat.Dev != d.stat.Dev || o.stat.Ino != d.stat.Ino {
			continue
		}
		switch o.flags & unix.O_ACCMODE {
		case unix.O_RDONLY:
			read = o
		case unix.O_WRONLY:
			write = o
		default:
			read, write = o, o
		}
	}
	return read, write
}

// checkPipe refuses a pipe of which somebody outside of the tree holds an end. A missing end is noticed by poll(2): the reading
// end hangs up when there is no writer, the writing end has an error when there is no reader.
func checkPipe(_ context.Context, dm *Dumper, d *description) []problem {
	read, write := ends(dm.current, d)
	missing := ""
	switch {
	case write == nil && !polled(d.fd, unix.POLLHUP) && hasWriter(d.fd):
		missing = "writing"
	case read == nil && !polled(d.fd, unix.POLLERR):
		missing = "reading"
	case dm.frozen:
		return nil
	}
	if missing != "" && dm.mayBeInFlight() {
		return nil // Dump will know
	}
	who := dm.outsiders(pipeKey{d.stat.Dev, d.stat.Ino})
	if missing == "" && len(who) == 0 {
		return nil
	}
	if missing == "" {
		return []problem{{reason: fmt.Sprintf("pipe %d is also held by process %v outside of the tree", d.stat.Ino, who)}}
	}
	if key := (pipeKey{d.stat.Dev, d.stat.Ino}); len(who) == 0 && dm.newborn[key] {
		return nil // the next process of a pipeline, say
	}
	by := ""
	if len(who) > 0 {
		by = fmt.Sprintf(", by process %v", who)
	}
	// Where nobody is seen to hold it, it may have been a process that has been born and has ended since the tree was listed.
	return []problem{{passing: len(who) == 0, reason: fmt.Sprintf("the %s end of pipe %d is held outside of the tree%s", missing, d.stat.Ino, by),
		remedy: fmt.Sprintf("redirect it to a file, start the program with migrate run, or, for a dump to disk, call it --external pipe:[%d] and give it another one with migrate restore --inherit-fd", d.stat.Ino)}}
}

func polled(fd int, event int16) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: event}}
	for {
		_, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && p[0].Revents&event != 0
	}
}

// hasWriter tells whether a pipe that does not hang up has a writer: a reading end of a FIFO hangs up only when it has seen one
// (fifo(7)), so tee(2) is asked, which would wait for a writer. Where something is there to be read, it is not known.
func hasWriter(fd int) bool {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return true
	}
	defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }() // what they hold is lent
	_, err := unix.Tee(fd, p[1], 1, unix.SPLICE_F_NONBLOCK)
	return err != nil
}

// outsiders lists the processes that hold a pipe and are not of the tree. It walks all of /proc once per Check.
func (d *Dumper) outsiders(key pipeKey) []int {
	if d.frozen {
		return nil
	}
	if d.outsider == nil {
		d.outsider, d.newborn = map[pipeKey][]int{}, map[pipeKey]bool{}
		ours := map[int]bool{os.Getpid(): true} // the duplicates
		for k := range d.current.byFD {
			ours[k.pid] = true
		}
		pids, _ := procfs.Host.PIDs()
		for _, pid := range pids {
			if !ours[pid] {
				d.pipesOf(pid, procfs.Host.Descends(pid, d.rootOrOurs))
			}
		}
	}
	return d.outsider[key]
}

// rootOrOurs tells whether all descendants of a process are of the tree, also those that were born since it was listed.
func (d *Dumper) rootOrOurs(pid int) bool {
	return pid == d.opts.Init || slices.ContainsFunc(d.procs, func(p *engine.Process) bool { return p.PID == pid })
}

// pipesOf notes which pipes a process holds that is not in the list of the tree. born: it was born of the tree since.
func (d *Dumper) pipesOf(pid int, born bool) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd/"
	fds, _ := procfs.Host.FDs(pid) // a process that ended meanwhile holds nothing
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(dir+strconv.Itoa(fd), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			continue
		}
		key := pipeKey{st.Dev, st.Ino}
		if born {
			d.newborn[key] = true
			continue
		}
		if known := d.outsider[key]; len(known) == 0 || known[len(known)-1] != pid {
			d.outsider[key] = append(known, pid)
		}
	}
}

// A pipe's blob is its capacity in bytes (4 bytes, little-endian), then its contents as sock.EncodeQueue lays them out: one
// message, or one for each packet where an end is in packet mode (O_DIRECT, pipe(2)).
func pipeBlob(id uint32) string { return fmt.Sprintf("pipe-%d", id) }

func dumpPipe(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	id := uint32(d.stat.Ino)
	if !r.pipes[id] {
		r.pipes[id] = true
		blob, err := pipeContents(r.snap, d)
		if err != nil {
			return nil, err
		}
		r.blob(pipeBlob(id), blob)
	}
	return &fdinfo.FileEntry{Pipe: &pipe.PipeEntry{Id: proto.Uint32(d.id), PipeId: proto.Uint32(id), Flags: proto.Uint32(uint32(d.flags)), Fown: owner}}, nil
}

// pipeContents is the blob of a pipe or FIFO.
func pipeContents(s *snapshot, d *description) ([]byte, error) {
	size, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return nil, fmt.Errorf("F_GETPIPE_SZ: %w", err)
	}
	blob := binary.LittleEndian.AppendUint32(nil, uint32(size))
	read, write := ends(s, d)
	from := d.fd
	if read != nil {
		from = read.fd
	} else if n, err := unix.IoctlGetInt(d.fd, unix.TIOCINQ); err == nil && n > 0 {
		// What nobody can read now waits for the next who opens it.
		if from, err = unix.Open("/proc/self/fd/"+strconv.Itoa(d.fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("open pipe %d for reading: %w", d.stat.Ino, err)
		}
		defer func() { _ = unix.Close(from) }() // opened for reading: nothing is lost
	}
	msgs, err := peekPipe(from, size, write != nil && write.flags&unix.O_DIRECT != 0)
	if err != nil {
		return nil, fmt.Errorf("contents of pipe %d: %w", d.stat.Ino, err)
	}
	return append(blob, sock.EncodeQueue(msgs)...), nil
}

// peekPipe reads a pipe without consuming it: tee(2) lends its buffers to a pipe of our own.
func peekPipe(fd, size int, packets bool) (msgs []sock.Message, err error) {
	if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && n == 0 {
		return nil, nil
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("a pipe to peek with: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(p[0]), unix.Close(p[1])) }()
	if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, size); err != nil {
		return nil, fmt.Errorf("a pipe of %d bytes to peek with (/proc/sys/fs/pipe-max-size): %w", size, err)
	}
	if _, err := unix.Tee(fd, p[1], 1<<30, unix.SPLICE_F_NONBLOCK); err != nil && err != unix.EAGAIN {
		return nil, fmt.Errorf("tee: %w", err)
	}
	buf := make([]byte, size)
	for {
		n, err := unix.Read(p[0], buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return nil, err
		}
		if packets && n > pipeBuf {
			return nil, fmt.Errorf("data written with and without packet mode is mixed: %w", ErrNotCarried)
		}
		msgs = append(msgs, sock.Message{Data: bytes.Clone(buf[:n])})
	}
	return msgs, nil
}

// pipePair is a pipe that is being made: the two ends as they were born, and whether a description has taken each.
type pipePair struct {
	fd   [2]int // reading, writing
	used [2]bool
}

func (p *pipePair) closeSpares() error {
	var errs []error
	for i, fd := range p.fd {
		if !p.used[i] && fd >= 0 {
			errs = append(errs, unix.Close(fd))
			p.fd[i] = -1
		}
	}
	return errors.Join(errs...)
}

func openPipe(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	p, err := r.pipe(e.Pipe.GetPipeId(), e.Pipe.GetFlags()&unix.O_DIRECT != 0)
	if err != nil {
		return err
	}
	flags := int(e.Pipe.GetFlags())
	end, ok := map[int]int{unix.O_RDONLY: 0, unix.O_WRONLY: 1}[flags&unix.O_ACCMODE]
	var fd int
	// What was opened by way of /proc shows O_LARGEFILE, what pipe(2) has made does not.
	if ok && !p.used[end] && flags&largeFile == 0 {
		p.used[end] = true
		fd = p.fd[end]
	} else {
		// A further description of the same end, or one for both: by opening it again.
		fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(p.fd[0]), flags&unix.O_ACCMODE|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open pipe %d again: %w", e.Pipe.GetPipeId(), err)
		}
	}
	r.put(e.GetId(), fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&settable&^(unix.O_NONBLOCK|unix.O_ASYNC)); err != nil {
		return fmt.Errorf("flags of pipe %d: %w", e.Pipe.GetPipeId(), err)
	}
	return nil
}

// pipe makes a pipe and fills it.
func (r *Restorer) pipe(id uint32, packets bool) (*pipePair, error) {
	if p := r.pipes[id]; p != nil {
		return p, nil
	}
	p := &pipePair{}
	if err := unix.Pipe2(p.fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	r.pipes[id] = p
	if err := fillPipe(p.fd[1], r.cp.Blobs[pipeBlob(id)], packets); err != nil {
		return nil, fmt.Errorf("blob %s: %w", pipeBlob(id), err)
	}
	for _, fd := range p.fd {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
			return nil, fmt.Errorf("flags of pipe %d: %w", id, err)
		}
	}
	return p, nil
}
