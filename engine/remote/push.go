package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// pushChunk is how many descriptors travel in one message; the kernel allows 253 (SCM_MAX_FD).
const pushChunk = 250

// push gives the tracee open files at fixed numbers. They travel over a socket pair, one end of which is the
// tracee's for as long as it takes, at a number that nobody asked for. What arrives lands on whatever numbers are free,
// among which may be the ones asked for, so each message's files are then moved as a permutation.
func push(ctx context.Context, c Caller, s *space, files []PushFile) (err error) {
	if len(files) == 0 {
		return nil
	}
	wanted := map[int]bool{}
	for _, f := range files {
		if f.FD < 0 || wanted[f.FD] {
			return fmt.Errorf("pushing descriptors to process %d: number %d is negative or given twice", s.pid, f.FD)
		}
		wanted[f.FD] = true
	}
	here, there, err := pushSocket(ctx, c, s, wanted)
	if err != nil {
		return fmt.Errorf("a socket for pushing descriptors to process %d: %w", s.pid, err)
	}
	defer func() {
		var b Batch
		b.Call(unix.SYS_CLOSE, there)
		err = errors.Join(err, unix.Close(here), c.Run(ctx, &b))
	}()
	for len(files) > 0 {
		chunk := files[:min(pushChunk, len(files))]
		files = files[len(chunk):]
		if err := pushSome(ctx, c, here, there, chunk); err != nil {
			return fmt.Errorf("pushing descriptors %d and following to process %d: %w", chunk[0].FD, s.pid, err)
		}
	}
	return nil
}

// pushSocket makes a socket pair in the tracee and returns this process's end and the number of the tracee's end, which
// is not among the wanted ones.
func pushSocket(ctx context.Context, c Caller, s *space, wanted map[int]bool) (here, there int, err error) {
	free, err := freeFD(s.pid, wanted)
	if err != nil {
		return 0, 0, err
	}
	var b Batch
	pair := b.Buffer(8)
	b.Call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0, pair)
	if err := c.Run(ctx, &b); err != nil {
		return 0, 0, err
	}
	ours := int(binary.LittleEndian.Uint32(pair.Bytes()))
	there = int(binary.LittleEndian.Uint32(pair.Bytes()[4:]))
	here, err = unix.PidfdGetfd(s.pidfd, ours, 0)
	var after Batch
	after.Call(unix.SYS_CLOSE, ours)
	var moved *Result
	if wanted[there] {
		moved = after.Call(unix.SYS_FCNTL, there, unix.F_DUPFD_CLOEXEC, free)
		after.Call(unix.SYS_CLOSE, there)
	}
	if err = errors.Join(err, c.Run(ctx, &after)); err != nil {
		return 0, 0, err
	}
	if moved != nil {
		if there = int(moved.value); wanted[there] {
			return 0, 0, fmt.Errorf("number %d was taken while files were pushed; is the process running?", free)
		}
	}
	return here, there, nil
}

// freeFD returns a number that is neither open in the process nor wanted.
func freeFD(pid int, wanted map[int]bool) (int, error) {
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return 0, err
	}
	taken := map[int]bool{}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/fd/%s is no descriptor", pid, e.Name())
		}
		taken[fd] = true
	}
	// The socket pair itself will take two of the free numbers.
	fd := 0
	for spare := 0; ; fd++ {
		if taken[fd] {
			continue
		}
		if spare++; spare > 2 && !wanted[fd] {
			return fd, nil
		}
	}
}

// pushSome sends one message of descriptors and puts them where they belong.
func pushSome(ctx context.Context, c Caller, here, there int, files []PushFile) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.File.Fd())
	}
	if err := unix.Sendmsg(here, []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("sendmsg: %w", err)
	}
	got, err := receiveFDs(ctx, c, there, len(files))
	if err != nil {
		return err
	}
	var b Batch
	place(&b, got, files)
	return c.Run(ctx, &b)
}

// receiveFDs makes the tracee receive a message with n descriptors and returns their numbers there.
func receiveFDs(ctx context.Context, c Caller, socket, n int) ([]int, error) {
	var b Batch
	le := binary.LittleEndian
	space := unix.CmsgSpace(4 * n)
	control, payload, iov, msg := b.Buffer(space), b.Buffer(1), b.Buffer(16), b.Buffer(56)
	iov.SetPointer(0, payload, 0)
	le.PutUint64(iov.Bytes()[8:], 1)
	msg.SetPointer(16, iov, 0) // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags
	le.PutUint64(msg.Bytes()[24:], 1)
	msg.SetPointer(32, control, 0)
	le.PutUint64(msg.Bytes()[40:], uint64(space))
	b.Call(unix.SYS_RECVMSG, socket, msg, unix.MSG_CMSG_CLOEXEC)
	if err := c.Run(ctx, &b); err != nil {
		return nil, err
	}
	if le.Uint32(msg.Bytes()[48:])&unix.MSG_CTRUNC != 0 {
		return nil, fmt.Errorf("the process cannot take %d more descriptors; its RLIMIT_NOFILE is too low", n)
	}
	messages, err := unix.ParseSocketControlMessage(control.Bytes())
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("the descriptors arrived as %d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err == nil && len(fds) != n {
		err = fmt.Errorf("%d of %d descriptors arrived", len(fds), n)
	}
	return fds, err
}

// place appends the calls that move descriptors from the numbers got to those of files, closing what was there. The
// moves are a partial permutation: one whose target is no source that is still to be moved comes first; a ring is
// opened by parking one of its descriptors on a spare number.
func place(b *Batch, got []int, files []PushFile) {
	sources := map[int]int{} // number -> index into files
	for i, fd := range got {
		if fd == files[i].FD {
			if !files[i].CloseOnExec {
				b.Call(unix.SYS_FCNTL, fd, unix.F_SETFD, 0)
			}
			continue
		}
		sources[fd] = i
	}
	for _, fd := range got {
		placeChain(b, fd, sources, files)
	}
}

// placeChain moves the descriptor at fd, after those that stand in its way.
func placeChain(b *Batch, fd int, sources map[int]int, files []PushFile) {
	var chain []int
	onChain := map[int]bool{}
	next := fd
	for {
		i, pending := sources[next]
		if !pending || onChain[next] {
			break
		}
		chain = append(chain, next)
		onChain[next] = true
		next = files[i].FD
	}
	if len(chain) == 0 {
		return
	}
	var parked *Result
	if onChain[next] { // a ring: next is fd, since every number is the target of at most one
		parked = b.Call(unix.SYS_FCNTL, next, unix.F_DUPFD_CLOEXEC, 0)
	}
	for k := len(chain) - 1; k >= 0; k-- {
		f := files[sources[chain[k]]]
		var from any = chain[k]
		if chain[k] == next && parked != nil {
			from = parked
		}
		flags := 0
		if f.CloseOnExec {
			flags = unix.O_CLOEXEC
		}
		b.Call(unix.SYS_DUP3, from, f.FD, flags)
		if from == any(chain[k]) {
			b.Call(unix.SYS_CLOSE, chain[k])
		} else {
			b.Call(unix.SYS_CLOSE, parked)
		}
		delete(sources, chain[k])
	}
}
