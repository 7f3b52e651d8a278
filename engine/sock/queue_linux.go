package sock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrAncillary means that a queue holds descriptors (SCM_RIGHTS) or credentials that are to be delivered with the data.
var ErrAncillary = errors.New("it holds descriptors or credentials in flight")

// Peek reads all that waits in the receive queue of a unix or UDP socket and leaves it there, with its offset
// for peeking (SO_PEEK_OFF in socket(7)) as it was. The owners of the socket must be stopped. ends tells that a read at
// the end of the queue yields no bytes instead of EAGAIN: a stream, or a record socket that was shut for reading.
// An empty datagram can be peeked only once: the kernel passes over one that has been peeked (__skb_try_recv_from_queue in
// net/core/datagram.c), so a second Peek of the same queue does not see it.
func Peek(fd int, ends bool) (msgs []Message, err error) {
	was, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return nil, fmt.Errorf("SO_PEEK_OFF: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return nil, fmt.Errorf("set SO_PEEK_OFF: %w", err)
	}
	defer func() {
		if e := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, was); e != nil {
			err = errors.Join(err, fmt.Errorf("put SO_PEEK_OFF back to %d: %w", was, e))
		}
	}()
	total := 0
	buf, oob := make([]byte, 256<<10), make([]byte, 4096)
	for {
		m, err := peekOne(fd, buf, oob)
		if errors.Is(err, unix.EAGAIN) || err == nil && ends && len(m.Data) == 0 {
			return msgs, nil
		}
		var big tooLong
		if errors.As(err, &big) && int(big) <= MaxQueue {
			buf = make([]byte, int(big))
			// What was copied of it has moved the offset.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, total); err != nil {
				return nil, fmt.Errorf("set SO_PEEK_OFF: %w", err)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if total += len(m.Data); total > MaxQueue || len(msgs) >= MaxMessages {
			return nil, fmt.Errorf("the queue holds more than %d bytes or %d messages", MaxQueue, MaxMessages)
		}
		msgs = append(msgs, m)
	}
}

// tooLong is the length of a message that the buffer did not hold.
type tooLong int

func (t tooLong) Error() string { return fmt.Sprintf("a message of %d bytes", int(t)) }

func peekOne(fd int, buf, oob []byte) (Message, error) {
	for {
		n, oobn, flags, from, err := recvmsgPeek(fd, buf, oob)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Message{}, err
		}
		if oobn > 0 || flags&unix.MSG_CTRUNC != 0 {
			return Message{}, closeRights(oob[:oobn])
		}
		if n > len(buf) {
			return Message{}, tooLong(n)
		}
		return Message{Data: append([]byte(nil), buf[:n]...), From: append([]byte(nil), from...)}, nil
	}
}

// closeRights closes the duplicates that peeking has given to this program.
func closeRights(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrAncillary, err)
	}
	for _, m := range msgs {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				_ = unix.Close(fd) // a duplicate: its owner keeps the description
			}
		}
	}
	return ErrAncillary
}

// Fill writes messages into from, so that they wait in the queue of its peer. The send buffer of from is
// widened for it; set the options afterwards.
func Fill(from int, msgs []Message) error {
	total := 0
	for _, m := range msgs {
		total += len(m.Data) + 2048 // the kernel counts its own structures
	}
	if total == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(from, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, min(2*total+4096, 1<<30)); err != nil {
		return fmt.Errorf("widen the send buffer: %w", err)
	}
	for i, m := range msgs {
		if len(m.From) > 0 {
			return fmt.Errorf("message %d of the queue came from a socket with a name: %w", i, ErrAncillary)
		}
		for data := m.Data; ; {
			n, err := unix.SendmsgN(from, data, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fmt.Errorf("put %d bytes into the queue: %w", len(data), err)
			}
			if data = data[n:]; len(data) == 0 {
				break
			}
		}
	}
	return nil
}
