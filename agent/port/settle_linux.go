package port

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/thread"
)

// A frame that has passed the gate is not received yet: it waits in the queue of the processor on which it was sent, for
// microseconds on an idle machine and for many milliseconds on a busy one. Read a socket's queue before it gets there, and it is
// acknowledged and lost. So after the gate has been shut, a marker is sent behind what may wait, on each processor, and
// awaited at the other end.

// etherTypeMarker is the first of the types that IEEE 802 leaves for local experiments: no protocol listens to it.
const etherTypeMarker = 0x88b5

// ErrNotSettled means that frames that had passed the gate before it was shut may still be on their way to the workload.
var ErrNotSettled = errors.New("frames may be on their way behind the shut gate")

const (
	settleTimeout = 200 * time.Millisecond
	settleRetry   = 2 * time.Millisecond

	schedFIFO = 1 // SCHED_FIFO of linux/sched.h, which x/sys lacks
)

// settle waits until all that passed the gate has been received. An armed gate only: the sockets for it are open then.
func (g *Gate) settle() error {
	if g.markers == nil {
		return nil
	}
	done := make(chan error, 1)
	thread.Go(func() bool {
		home, err := becomeUrgent()
		if err != nil {
			done <- err
			return true
		}
		err = g.settleEach(&home.cpus)
		back := home.comeBack() == nil
		done <- err
		return back
	})
	if err := <-done; err != nil {
		return fmt.Errorf("gate of %q: %w", g.name, err)
	}
	return nil
}

// schedule is how a thread is scheduled, and where it may run.
type schedule struct {
	attr *unix.SchedAttr
	cpus unix.CPUSet
}

// becomeUrgent makes the calling thread run before others, where that is permitted: it works for microseconds, and waiting
// for its turn on each processor would be part of the blackout.
func becomeUrgent() (was schedule, err error) {
	if err := unix.SchedGetaffinity(0, &was.cpus); err != nil {
		return was, fmt.Errorf("processors of this thread: %w", err)
	}
	if was.attr, err = unix.SchedGetAttr(0, 0); err != nil {
		return was, fmt.Errorf("scheduling of this thread: %w", err)
	}
	urgent := unix.SchedAttr{Policy: schedFIFO, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Priority: 1}
	if err := unix.SchedSetAttr(0, &urgent, 0); err != nil {
		was.attr = nil // not permitted: it waits for its turn
	}
	return was, nil
}

// comeBack undoes becomeUrgent.
func (s *schedule) comeBack() error {
	err := unix.SchedSetaffinity(0, &s.cpus)
	if s.attr != nil {
		err = errors.Join(err, unix.SchedSetAttr(0, s.attr, 0))
	}
	return err
}

// settleEach goes from processor to processor. That this thread runs on one means that no frame is half-way through the gate
// there; that the marker arrives, that none waits behind it.
func (g *Gate) settleEach(cpus *unix.CPUSet) error {
	for cpu, left := 0, cpus.Count(); left > 0; cpu++ {
		if !cpus.IsSet(cpu) {
			continue
		}
		left--
		var one unix.CPUSet
		one.Set(cpu)
		// A processor that has gone offline refuses, and has handed its queue to another one.
		if err := unix.SchedSetaffinity(0, &one); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("run on processor %d: %w", cpu, err)
		}
		if err := g.markers.pass(g); err != nil {
			return fmt.Errorf("processor %d: %w", cpu, err)
		}
	}
	return nil
}

// markers receives markers at the device behind the gate.
type markers struct {
	fd   int // -1 where frames do not queue between the gate and their receiver
	next uint64
}

// openMarkers gives the socket on the device behind the gate.
func (g *Gate) openMarkers() error {
	if g.redirect != 0 {
		g.markers = &markers{fd: -1}
		return nil
	}
	index, err := g.deviceIndex()
	if err != nil {
		return err
	}
	fd, err := packetSocket(g.ns, index, etherTypeMarker)
	if err != nil {
		return err
	}
	g.markers = &markers{fd: fd}
	return nil
}

func (m *markers) close() error {
	if m == nil || m.fd < 0 {
		return nil
	}
	return unix.Close(m.fd)
}

// pass sends a marker and waits until it is received. It is sent again from time to time: a full queue drops it.
func (m *markers) pass(g *Gate) error {
	if m.fd < 0 {
		return nil
	}
	m.next++
	data := append(append(make([]byte, 0, 60), g.mac...), 0x02, 0, 0, 0, 0, 0)
	data = binary.BigEndian.AppendUint16(data, etherTypeMarker)
	data = binary.BigEndian.AppendUint64(data, m.next)
	data = data[:60] // the shortest frame of Ethernet
	tx, err := g.openDeliverer()
	if err != nil {
		return err
	}
	for end := time.Now().Add(settleTimeout); time.Now().Before(end); {
		if err := tx.send(Frame{Data: data}, g.mac); err != nil {
			return fmt.Errorf("send a marker: %w", err)
		}
		if arrived, err := m.await(m.next, settleRetry); arrived || err != nil {
			return err
		}
	}
	return ErrNotSettled
}

// await reads markers until the one with this number.
func (m *markers) await(number uint64, d time.Duration) (bool, error) {
	var b [offloadLen + 64]byte
	for end := time.Now().Add(d); ; {
		n, _, err := unix.Recvfrom(m.fd, b[:], unix.MSG_DONTWAIT)
		switch {
		case err == nil:
			if n >= offloadLen+ethernetLen+8 && binary.BigEndian.Uint64(b[offloadLen+ethernetLen:]) == number {
				return true, nil
			}
			continue
		case err == unix.EINTR:
			continue
		case err != unix.EAGAIN:
			return false, fmt.Errorf("receive a marker: %w", err)
		}
		left := time.Until(end)
		if left <= 0 {
			return false, nil
		}
		ts := unix.NsecToTimespec(int64(left))
		fds := []unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}
		if _, err := unix.Ppoll(fds, &ts, nil); err != nil && err != unix.EINTR {
			return false, fmt.Errorf("wait for a marker: %w", err)
		}
	}
}
