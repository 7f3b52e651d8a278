package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

func littleEndian(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// doorbellSize is that of the message that starts a batch and comes back at its end: the records' address, their
// number, and a sequence number.
const doorbellSize = 24

// spins is how often the reply is looked for before this goroutine sleeps: a short batch takes less time than a
// switch of threads.
const spins = 64

// PID implements Caller.
func (s *Session) PID() int { return s.space.pid }

// TID implements Caller.
func (s *Session) TID() int { return s.tid }

// Regs returns the registers and the signal mask that the thread will have when it is given back. The registers hold
// its interrupted call, if there is one (arch.Restart).
func (s *Session) Regs() (arch.Regs, uint64) { return s.regs, s.mask }

// Stopped returns the stop in which Open found or put the thread; Held is set if its process was stopped by a signal.
func (s *Session) Stopped() ptrace.Stop { return s.stop }

// Memory returns the mapping that the server has made, which is not the program's.
func (s *Session) Memory() (Addr, uint64) { return s.memory, sessionMemory }

// Code returns where the server stands, in memory that was zero and is so again after Close.
func (s *Session) Code() (Addr, uint64) { return s.at, uint64(arch.ServerSize()) }

// FD returns the descriptor of the tracee that is the server's, not the program's.
func (s *Session) FD() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fd
}

// Pull implements Caller.
func (s *Session) Pull(_ context.Context, fd int) (*os.File, error) { return s.space.pull(fd) }

// Push implements Caller. The other threads of the process should be stopped, lest they open files at the same numbers.
func (s *Session) Push(ctx context.Context, files []PushFile) error {
	wanted := map[int]bool{}
	for _, f := range files {
		wanted[f.FD] = true
	}
	if wanted[s.FD()] {
		if err := s.makeWay(ctx, wanted); err != nil {
			return fmt.Errorf("moving the stub's socket: %w", err)
		}
	}
	return push(ctx, s, s.space, files)
}

// makeWay moves the server's socket to a number that nobody wants.
func (s *Session) makeWay(ctx context.Context, wanted map[int]bool) error {
	free, err := freeFD(s.space.pid, wanted)
	if err != nil {
		return err
	}
	old := s.FD()
	var b Batch
	moved := b.Call(unix.SYS_FCNTL, old, unix.F_DUPFD_CLOEXEC, free)
	if err := s.Run(ctx, &b); err != nil {
		return err
	}
	// The server reads the number before each wait. It may wait on the old one by now, so a batch comes between.
	number := binary.LittleEndian.AppendUint32(nil, uint32(moved.value))
	if err := s.space.mem.Write(s.memory, number); err != nil {
		return err
	}
	s.mu.Lock()
	s.fd = int(moved.value)
	s.mu.Unlock()
	var turn, done Batch
	turn.Call(unix.SYS_GETPID)
	done.Call(unix.SYS_CLOSE, old)
	return errors.Join(s.Run(ctx, &turn), s.Run(ctx, &done))
}

// Run implements Caller. Calls that use the kernel's restart block (nanosleep, poll, futex with a timeout) would cancel
// the program's own and must not be in the batch. A batch that is given up with its context goes on in the tracee.
func (s *Session) Run(ctx context.Context, b *Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Len() == 0 {
		return nil
	}
	if err := s.run(ctx, b); err != nil {
		return fmt.Errorf("a batch in thread %d: %w", s.tid, err)
	}
	return nil
}

func (s *Session) run(ctx context.Context, b *Batch) (err error) {
	place := s.memory.Add(headerSize)
	if b.Size() > sessionMemory-headerSize {
		size := (uint64(b.Size()) + arch.PageSize - 1) &^ (arch.PageSize - 1)
		var room Batch
		mapped := room.Call(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS, -1, 0)
		if err := s.runAt(ctx, &room, place); err != nil {
			return fmt.Errorf("memory for %d bytes: %w", b.Size(), err)
		}
		defer func() {
			if !s.owed {
				var unmap Batch
				unmap.Call(unix.SYS_MUNMAP, uint64(mapped.value), size)
				err = errors.Join(err, s.runAt(ctx, &unmap, s.memory.Add(headerSize)))
			}
		}()
		place = Addr(mapped.value)
	}
	return s.runAt(ctx, b, place)
}

func (s *Session) runAt(ctx context.Context, b *Batch, place Addr) error {
	if err := s.settleDebt(ctx); err != nil {
		return err
	}
	image := b.Encode(place)
	if err := s.space.mem.Write(place, image); err != nil {
		return s.why(err) // its memory is gone
	}
	if err := s.ring(ctx, place, int64(b.Len())); err != nil {
		return err
	}
	if err := s.space.mem.Read(place, image); err != nil {
		return s.why(err)
	}
	return b.Decode(image)
}

// ring sends a doorbell and waits until it comes back.
func (s *Session) ring(ctx context.Context, place Addr, n int64) error {
	if err := s.send(ctx, place, n); err != nil {
		return err
	}
	s.owed = true
	return s.settleDebt(ctx)
}

// send sends a doorbell.
func (s *Session) send(ctx context.Context, place Addr, n int64) error {
	if s.closed {
		return errors.New("the session is closed")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.seq++
	s.last = time.Now()
	bell := make([]byte, 0, doorbellSize)
	for _, v := range []uint64{uint64(place), uint64(n), s.seq} {
		bell = binary.LittleEndian.AppendUint64(bell, v)
	}
	if _, err := s.socket.Write(bell); err != nil {
		return s.why(err)
	}
	return nil
}

// settleDebt waits for the reply to the last doorbell, if it has not come yet.
func (s *Session) settleDebt(ctx context.Context) error {
	for s.owed {
		bell := make([]byte, doorbellSize)
		n, err := s.receive(ctx, bell)
		if err != nil {
			return err
		}
		if n == doorbellSize && littleEndian(bell[16:]) == s.seq {
			s.owed = false
		}
	}
	return nil
}

func (s *Session) receive(ctx context.Context, b []byte) (int, error) {
	raw, err := s.socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	for range spins {
		n, rerr := 0, error(nil)
		if err := raw.Control(func(fd uintptr) { n, _, rerr = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT) }); err != nil {
			return 0, err
		}
		if rerr == nil && n > 0 {
			return n, nil
		}
		if rerr != unix.EAGAIN {
			return 0, s.why(errors.Join(rerr, io.EOF))
		}
		runtime.Gosched()
	}
	return s.receiveSlow(ctx, b)
}

// receiveSlow sleeps until the reply comes. The end of the context or of the thread wakes it by a deadline that has
// passed.
func (s *Session) receiveSlow(ctx context.Context, b []byte) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.gone:
			cancel(ErrGone)
		case <-ctx.Done():
		}
	}()
	wake := context.AfterFunc(ctx, func() { _ = s.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer wake()
	for ctx.Err() == nil {
		if err := s.socket.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
		if ctx.Err() != nil {
			break
		}
		n, err := s.socket.Read(b)
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) { // a late wake of an earlier context is none of this one's
			return 0, s.why(err)
		}
	}
	return 0, context.Cause(ctx)
}

// why explains a failure of the socket. A thread that ends closes its socket a moment before its end is seen.
func (s *Session) why(err error) error {
	select {
	case <-s.gone:
		return ErrGone
	case <-time.After(100 * time.Millisecond):
		return fmt.Errorf("%w (%w)", ErrLost, err)
	}
}

// greet makes the server close its copy of this process's end, which it does before any first batch, sets the lease,
// and keeps the server's memory out of children that the program may fork meanwhile.
func (s *Session) greet(ctx context.Context, lease time.Duration) error {
	var b Batch
	timeout := b.Buffer(16)
	binary.LittleEndian.PutUint64(timeout.Bytes(), uint64(lease/time.Second))
	binary.LittleEndian.PutUint64(timeout.Bytes()[8:], uint64(lease%time.Second/time.Microsecond))
	b.Call(unix.SYS_SETSOCKOPT, s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, timeout, 16)
	b.Call(unix.SYS_MADVISE, s.memory, sessionMemory, unix.MADV_DONTFORK)
	return s.Run(ctx, &b)
}

// tend keeps the borrowed thread running: stop signals take effect on its process but not on the server.
func (s *Session) tend(ctx context.Context) {
	defer s.tended.Done()
	for {
		stop, err := s.tracer.Wait(ctx, s.tid)
		if ctx.Err() != nil {
			return
		}
		if err != nil || stop.Kind == ptrace.Exited {
			close(s.gone)
			return
		}
		sig := unix.Signal(0)
		if stop.Kind == ptrace.SignalStop {
			sig = stop.Signal
		}
		if err := s.tracer.Cont(ctx, s.tid, sig); err != nil && !errors.Is(err, ErrGone) {
			return // the tracer was closed; the server leaves with the lease
		}
	}
}

// keepAlive renews the lease while no batch does.
func (s *Session) keepAlive(ctx context.Context, every time.Duration) {
	defer s.tended.Done()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.mu.Lock()
			if !s.owed && time.Since(s.last) >= every/2 {
				if err := s.ring(ctx, s.memory, 0); err != nil {
					s.mu.Unlock()
					return // Run and Close will say so
				}
			}
			s.mu.Unlock()
		}
	}
}
