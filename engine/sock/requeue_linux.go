package sock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/bpf"
	"migrate/tcprepair"
)

// A Waiting is a connection that waits in a listener's queue to be accepted.
type Waiting struct {
	State *tcprepair.State
	// PeerTimestamp is the timestamp option that came last; 0 without the option.
	PeerTimestamp uint32
}

// EncodeWaiting lays a listener's queue out for an image: a count, then each connection with the timestamp before it.
func EncodeWaiting(list []Waiting) []byte {
	w := &coder{}
	n := uint32(len(list))
	w.u32(&n)
	for _, q := range list {
		w.u32(&q.PeerTimestamp)
		b := EncodeTCP(q.State)
		w.bytes(&b)
	}
	return w.out
}

// DecodeWaiting reads what EncodeWaiting wrote and validates it.
func DecodeWaiting(b []byte) ([]Waiting, error) {
	r := &coder{in: b, reading: true}
	var n uint32
	r.u32(&n)
	var list []Waiting
	for range n {
		var q Waiting
		var state []byte
		r.u32(&q.PeerTimestamp)
		r.bytes(&state)
		if r.err != nil {
			break
		}
		var err error
		if q.State, err = DecodeTCP(state); err != nil {
			return nil, fmt.Errorf("queue of a listener: %w", err)
		}
		list = append(list, q)
	}
	if err := r.finish(); err != nil {
		return nil, fmt.Errorf("queue of a listener: %w", err)
	}
	for _, q := range list {
		if why := q.problem(); why != "" {
			return nil, fmt.Errorf("queue of a listener: connection %s %s", q.State.Name(), why)
		}
	}
	return list, nil
}

// problem says why a connection cannot be one that waits, or nothing.
func (q Waiting) problem() string {
	if s := q.State; s.TCP != tcprepair.Established && s.TCP != tcprepair.CloseWait {
		return "is in state " + s.TCP.String()
	} else if len(s.SendQueue) > 0 {
		return "has sent something"
	}
	return ""
}

// requeueChunk is how much data goes into one segment: less than the smallest window and the MTU of lo.
const requeueChunk = 8 << 10

// Requeue puts connections into the queue of a listener, in their order: their handshakes, and then what the peer has sent, are
// imitated over the loopback interface. It must run in the network namespace of the listener; see In. What the kernel answers must be
// kept from the peers.
func Requeue(ctx context.Context, requests *bpf.Requests, listener *os.File, list []Waiting) (err error) {
	if len(list) == 0 {
		return nil
	}
	diag, err := NewDiag()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, diag.Close()) }()
	for _, q := range list {
		err := tcprepair.WithRoom(listener, len(q.State.RecvQueue), func() error { return requeue(ctx, requests, diag, listener, q) })
		if err != nil {
			return fmt.Errorf("connection %s into the queue of its listener: %w", q.State.Name(), err)
		}
	}
	return nil
}

func requeue(ctx context.Context, requests *bpf.Requests, diag *Diag, listener *os.File, q Waiting) (err error) {
	s := q.State
	peer, err := tcprepair.OpenPeer(listener, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.Close()) }()
	smallest := uint32(536) // what the kernel takes: TCP_MIN_MSS of each family
	if s.Local.Addr().Unmap().Is6() {
		smallest = 1220
	}
	req := &bpf.Request{Mark: tcprepair.Mark, Local: s.Local, Remote: s.Remote, MSS: uint16(min(max(s.MSSClamp, smallest), 65535)),
		WindowScaling: s.WindowScaling, SendScale: s.SendScale, RecvScale: s.RecvScale, SACK: s.SACK, ECN: s.ECN,
		Timestamps: s.Timestamps, Micro: s.MicroTimestamps, PeerTimestamp: q.PeerTimestamp, Timestamp: s.Timestamp}
	seq := s.RecvSeq - uint32(len(s.RecvQueue))
	err = requests.With(req, func() error {
		if err := peer.Send(seq, nil, false); err != nil {
			return err
		}
		return diag.await(ctx, s, tcprepair.Established, 0)
	})
	if err != nil {
		return err
	}
	for data := s.RecvQueue; len(data) > 0; {
		n := min(len(data), requeueChunk)
		if err := peer.Send(seq, data[:n], false); err != nil {
			return err
		}
		seq, data = seq+uint32(n), data[n:]
		if err := diag.await(ctx, s, tcprepair.Established, len(s.RecvQueue)-len(data)); err != nil {
			return err
		}
	}
	if s.TCP == tcprepair.Established {
		return nil
	}
	if err := peer.Send(seq, nil, true); err != nil {
		return err
	}
	return diag.await(ctx, s, s.TCP, 0)
}

// await waits until a connection that nobody has accepted is in a state, with so many bytes received. There is no event for it; mostly it
// is so at once.
func (d *Diag) await(ctx context.Context, s *tcprepair.State, state tcprepair.ConnState, received int) error {
	for end := time.Now().Add(time.Second); ; time.Sleep(100 * time.Microsecond) {
		list, err := d.TCP(state)
		if err != nil {
			return err
		}
		for _, i := range list {
			if i.Ino == 0 && i.Local.Port() == s.Local.Port() && i.Remote.Port() == s.Remote.Port() && i.Local.Addr().Unmap() == s.Local.Addr().Unmap().WithZone("") &&
				i.Remote.Addr().Unmap() == s.Remote.Addr().Unmap().WithZone("") && int(i.Received) >= received {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			return fmt.Errorf("it is not in state %v with %d bytes received (is the queue full, or net.ipv4.tcp_syncookies off?)", state, received)
		}
	}
}

// Accept takes all connections out of a listener's queue. The caller closes them.
func Accept(listener int) ([]*os.File, error) {
	var out []*os.File
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return out, err
		}
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			out = append(out, os.NewFile(uintptr(fd), "connection that waited"))
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return out, fmt.Errorf("accept: %w", err)
		}
	}
}
