package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/ptrace"
)

// Errors of sessions, matched with errors.Is.
var (
	// ErrLost means that the program was given back without Close: the lease ran out, or its socket was closed. The
	// program goes on, unharmed; the session is of no use but to be closed.
	ErrLost = errors.New("the session was lost, and the program runs on")
	// ErrSeccomp means that seccomp guards the thread and cannot be suspended: it would kill the process for the stub's
	// calls.
	ErrSeccomp = errors.New("seccomp is in force")
)

const (
	// DefaultLease is how long a borrowed thread waits for a sign of life of its borrower.
	DefaultLease = 10 * time.Second
	// sessionMemory is what the server maps: a header, then room for batches.
	sessionMemory = 256 << 10
	headerSize    = 256
	// bootLease is the lease until the first batch, which sets the one that was asked for. Until then the tracee
	// holds both ends of the socket, and would not see this process die.
	bootLease = 500 * time.Millisecond
)

// Options of a Session. The zero value is good.
type Options struct {
	// Lease is how long the program stays borrowed when the borrower hangs without having died; at least a second.
	Lease time.Duration
	// Trace are options (unix.PTRACE_O_*) for a thread that is not traced yet. PTRACE_O_EXITKILL defeats the purpose.
	Trace int
}

// A Session borrows one thread of a living program to run batches in it, and gives it back with Close. Inside the
// thread runs a server (arch.NewServer), in the zero bytes behind the vDSO, entered by one change of registers. From
// then on the program survives whatever happens to this process: when the server's socket is closed or silent for longer
// than the lease, it puts everything back and goes on with the program, whose interrupted call is made again or
// ends as it would have.
//
// Only the one thread is borrowed. Others run on, unless they are stopped, and can have sessions of their own. What the
// server adds to the process is visible meanwhile: one shared anonymous mapping (Memory), one descriptor (FD).
//
// The thread's signals are blocked; those that come are delivered when it is given back. A stop signal stays in force.
type Session struct {
	tracer *ptrace.Tracer
	space  *space
	tid    int
	at     Addr // where the server's code and data stand
	memory Addr // of sessionMemory
	fd     int  // the server's socket, in the tracee

	regs    arch.Regs // as the thread was stopped, or at the abort handler of a restartable sequence
	mask    uint64
	stop    ptrace.Stop
	seized  bool // by Open
	running bool // before Open
	guards  guards

	mu      sync.Mutex // one batch at a time
	socket  *os.File
	seq     uint64
	owed    bool // a reply is still to come, to a batch that was given up
	closed  bool
	last    time.Time // of the last doorbell
	tending context.CancelFunc
	tended  sync.WaitGroup
	gone    chan struct{} // closed when the thread ended
}

var _ Caller = (*Session)(nil)

// Open borrows a thread in whatever state it is: running, in a system call, stopped by a signal, or ptrace-stopped by
// this tracer. A thread that the tracer does not have yet is seized, and detached again by Close.
// The error is ErrSeccomp, ErrNoRoom, ErrGone, ptrace.ErrTraced or one of a system call; the thread then is
// as it was.
func Open(ctx context.Context, tracer *ptrace.Tracer, tid int, o Options) (*Session, error) {
	if o.Lease < time.Second {
		o.Lease = DefaultLease
	}
	s := &Session{tracer: tracer, tid: tid, gone: make(chan struct{})}
	err := tracer.OnThread(ctx, func(ctx context.Context) error { return s.open(ctx, o) })
	if err != nil {
		return nil, fmt.Errorf("borrowing thread %d: %w", tid, err)
	}
	tend, cancel := context.WithCancel(context.Background())
	s.tending = cancel
	s.tended.Add(2)
	go s.tend(tend)
	go s.keepAlive(tend, o.Lease/3)
	if err := s.greet(ctx, o.Lease); err != nil {
		return nil, errors.Join(fmt.Errorf("borrowing thread %d: %w", tid, err), s.Close())
	}
	return s, nil
}

func (s *Session) open(ctx context.Context, o Options) (err error) {
	_, traced, stopped, err := s.tracer.Options(ctx, s.tid)
	if err != nil {
		return err
	}
	s.running, s.seized = !stopped, !traced
	if !traced {
		if err := s.tracer.Seize(ctx, s.tid, o.Trace); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.letGo(ctx))
		}
	}()
	if s.stop, err = s.tracer.Stop(ctx, s.tid); err != nil {
		return err
	}
	pid, err := processOf(s.tid)
	if err != nil {
		return err
	}
	if s.space, err = openSpace(pid); err != nil {
		return err
	}
	if err := s.enter(ctx); err != nil {
		return errors.Join(err, s.space.release())
	}
	return nil
}

// enter writes the server, lends it the thread and follows it until it waits for its first doorbell.
func (s *Session) enter(ctx context.Context) error {
	var err error
	if s.guards, err = lowerGuards(ctx, s.tracer, s.tid); err != nil {
		return err
	}
	if err := takeBack(ctx, s.tracer, s.space, s.tid); err != nil {
		return err
	}
	if s.regs, err = s.tracer.Interrupted(ctx, s.tid); err != nil {
		return err
	}
	if s.mask, err = s.tracer.GetSigMask(ctx, s.tid); err != nil {
		return err
	}
	if err := lendable(s.regs); err != nil {
		return err
	}
	maps, err := mappings(s.space.pid)
	if err != nil {
		return err
	}
	if err := reclaim(ctx, s.tracer, s.space, maps, s.tid, s.regs); err != nil {
		return err
	}
	ip, err := restartable(ctx, s.tracer, s.space, s.tid, s.regs.IP())
	if err != nil {
		return err
	}
	s.regs.SetIP(ip)
	var entry arch.Regs
	s.at, err = placeServer(s.space, maps, func(at Addr) (b []byte, err error) {
		p := arch.ServerParams{Regs: s.regs, Mask: s.mask, TID: s.tid, Lease: bootLease, Memory: sessionMemory}
		b, entry, err = arch.NewServer(uint64(at), p)
		return b, err
	})
	if err != nil {
		return err
	}
	// From here on the program is the server's to give back. The mask is set after the registers, so that there is no
	// moment at which this process's death leaves it to the program; set now and not only by the server, so that no
	// handler runs before the interrupted call is known to go on.
	if err := s.tracer.SetRegs(ctx, s.tid, entry); err != nil {
		return err
	}
	if err := s.tracer.SetSigMask(ctx, s.tid, ^uint64(0)); err != nil {
		return err
	}
	if err := s.follow(ctx); err != nil {
		if s.socket != nil { // else the lease ends it
			err = errors.Join(err, s.sendLeave(), s.socket.Close())
		}
		return errors.Join(err, s.giveBack(ctx))
	}
	return nil
}

// follow lets the server run from system call to system call until it waits. When this process dies meanwhile, the
// server runs on and leaves by itself.
func (s *Session) follow(ctx context.Context) error {
	for {
		nr, result, entry, err := s.nextSyscall(ctx)
		if err != nil {
			return fmt.Errorf("starting the stub: %w", err)
		}
		failed := !entry && result < 0 && result >= -4095
		switch {
		case entry && nr == unix.SYS_RECVFROM:
			return s.tracer.Cont(ctx, s.tid, 0)
		case entry:
		case failed:
			return fmt.Errorf("starting the stub: system call %d: %w", nr, unix.Errno(-result))
		case nr == unix.SYS_MMAP:
			s.memory = Addr(result)
		case nr == unix.SYS_SOCKETPAIR:
			if err := s.connect(); err != nil {
				return err
			}
		}
	}
}

// connect takes this process's end of the server's socket.
func (s *Session) connect() error {
	pair := make([]byte, 8)
	if err := s.space.mem.Read(s.memory, pair); err != nil {
		return err
	}
	s.fd = int(binary.LittleEndian.Uint32(pair))
	theirs := int(binary.LittleEndian.Uint32(pair[4:]))
	own, err := unix.PidfdGetfd(s.space.pidfd, theirs, 0)
	if err != nil {
		return fmt.Errorf("taking the stub's socket (pidfd_getfd): %w", err)
	}
	if err := unix.SetNonblock(own, true); err != nil {
		return errors.Join(err, unix.Close(own))
	}
	s.socket = os.NewFile(uintptr(own), fmt.Sprintf("stub of thread %d", s.tid))
	return nil
}

// nextSyscall lets the thread run to its next entry into or exit from a system call.
func (s *Session) nextSyscall(ctx context.Context) (nr, result int64, entry bool, err error) {
	return nextSyscall(ctx, s.tracer, s.tid)
}

func nextSyscall(ctx context.Context, tracer *ptrace.Tracer, tid int) (nr, result int64, entry bool, err error) {
	sig := unix.Signal(0)
	for {
		stop, err := tracer.Resume(ctx, tid, nil, ptrace.ToSyscall, sig)
		sig = 0
		switch {
		case err != nil:
			return 0, 0, false, err
		case stop.Kind == ptrace.Exited:
			return 0, 0, false, ErrGone
		case stop.Kind == ptrace.SignalStop: // only SIGSTOP can come; it takes effect, and the thread goes on all the same
			sig = stop.Signal
		case stop.Kind == ptrace.SyscallStop:
			msg, err := tracer.EventMsg(ctx, tid)
			if err != nil {
				return 0, 0, false, err
			}
			regs, err := tracer.GetRegs(ctx, tid)
			return regs.SyscallNr(), regs.Return(), msg == unix.PTRACE_EVENTMSG_SYSCALL_ENTRY, err
		}
	}
}
