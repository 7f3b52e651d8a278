package volume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
)

// wire is the source's end of a connection. Its writing half may be used by several goroutines.
type wire struct {
	conn net.Conn
	r    *bufio.Reader
	in   []byte

	mu     sync.Mutex
	w      *bufio.Writer
	out    []byte
	packed []byte
	sent   uint64
	limit  limiter
}

func newWire(c net.Conn) *wire {
	return &wire{conn: c, r: bufio.NewReaderSize(c, 64<<10), w: bufio.NewWriterSize(c, 256<<10)}
}

// RemoteError is what the destination could not do.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return e.Text }

// put sends a frame.
func (c *wire) put(ctx context.Context, k kind, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.putLocked(ctx, k, payload)
}

func (c *wire) putLocked(ctx context.Context, k kind, payload []byte) error {
	c.out = appendFrame(c.out[:0], k, payload)
	c.sent += uint64(len(c.out))
	if err := c.limit.wait(ctx, len(c.out)); err != nil {
		return err
	}
	if _, err := c.w.Write(c.out); err != nil {
		return c.why(err)
	}
	return nil
}

// data sends content, compressed where that makes it smaller.
func (c *wire) data(ctx context.Context, at uint64, b []byte, compress bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	head := enc(c.packed[:0])
	head.u64(at)
	if compress {
		room := len(head) + s2.MaxEncodedLen(len(b))
		if cap(head) < room {
			head = append(make(enc, 0, room), head...)
		}
		p := s2.Encode(head[len(head):room], b)
		if len(p) < len(b)-len(b)/8 {
			c.packed = head[:len(head)+len(p)]
			return c.putLocked(ctx, kindPacked, c.packed)
		}
	}
	c.packed = append(head, b...)
	return c.putLocked(ctx, kindData, c.packed)
}

// why is the destination's own reason for an error of the connection, if it has sent one.
func (c *wire) why(err error) error {
	_ = c.conn.SetReadDeadline(time.Now().Add(time.Second)) // the connection is given up in any case
	for {
		k, p, _, rerr := readFrame(c.r, nil)
		if rerr != nil {
			return err
		}
		if k == kindFailure {
			return &RemoteError{printable(p)}
		}
	}
}

// ask sends a request and gives the payloads of its answers to f, until f says that it has heard the last.
func (c *wire) ask(ctx context.Context, k kind, payload []byte, answer kind, f func(p []byte) (last bool, err error)) error {
	if err := c.put(ctx, k, payload); err != nil {
		return err
	}
	if err := c.w.Flush(); err != nil {
		return c.why(err)
	}
	for {
		got, p, buf, err := readFrame(c.r, c.in)
		c.in = buf
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the answer to %v: %w", k, err)
		case got == kindFailure:
			return &RemoteError{printable(p)}
		case got != answer:
			return fmt.Errorf("%w: %v in the place of %v", ErrCorrupt, got, answer)
		}
		if last, err := f(p); err != nil || last {
			return err
		}
	}
}

// printable is text of the peer's, made safe to show on a terminal.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, string(b[:min(len(b), maxText)]))
}

// A limiter spreads bytes so that in the long run no more than rate bytes a second pass. The zero value lets all pass.
type limiter struct {
	rate float64
	free time.Time // when all that has passed would have passed at the rate
}

func (l *limiter) wait(ctx context.Context, n int) error {
	if l.rate <= 0 {
		return nil
	}
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	d := l.free.Sub(now)
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	if d < time.Millisecond {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// within runs f, whose reads and writes on a connection fail once ctx ends.
func within(ctx context.Context, c net.Conn, f func() error) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.SetDeadline(time.Unix(1, 0)) // a connection that takes no deadline is closed by its owner
	})
	err := f()
	if !stop() {
		<-interrupted
		if err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
	return err
}
