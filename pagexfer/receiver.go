package pagexfer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A Sink takes the pages that arrive. Its methods are called from one goroutine per connection, so from several at
// once, and never twice at once for the same page unless the sender skipped a Flush. data is valid during the call.
type Sink interface {
	WritePages(space uint32, addr uint64, data []byte) error
	ZeroPages(space uint32, addr uint64, n uint32) error
}

// A Receiver writes what arrives on its connections to a Sink. Each connection is served by the goroutine that
// calls Serve.
type Receiver struct {
	sink    Sink
	ending  context.Context // ends with Close
	end     context.CancelFunc
	serving sync.WaitGroup

	mu     sync.Mutex // of what follows
	sum    Totals
	closed bool
}

// NewReceiver returns a receiver for the connections of one Sender. It ends with Close.
func NewReceiver(sink Sink) *Receiver {
	r := &Receiver{sink: sink}
	r.ending, r.end = context.WithCancel(context.Background())
	return r
}

// ErrReceiverClosed is the error of Serve after Close.
var ErrReceiverClosed = errors.New("no more pages are taken")

// Close ends the connections that are served, and takes no more. When it returns, the sink is not called any more.
func (r *Receiver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.serving.Wait()
}

// enter counts a connection, unless the receiver is closed.
func (r *Receiver) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.serving.Add(1)
	}
	return !r.closed
}

// Stats says what was received and written so far, on all connections.
func (r *Receiver) Stats() Totals {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sum
}

// Serve receives on a connection that was welcomed, until the sender ends it in order (nil), ctx ends, or something
// fails: the sink, the stream, or the connection, as when the sending host dies. It closes the connection. An error
// of the sink is told to the sender.
func (r *Receiver) Serve(ctx context.Context, c net.Conn) error {
	if !r.enter() {
		return errors.Join(ErrReceiverClosed, closeQuietly(c))
	}
	defer r.serving.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.ending, func() { cancel(ErrReceiverClosed) })()
	err := within(ctx, c, func() error {
		in := &inbound{r: r, conn: c, frames: newFrameReader(c), seq: 1}
		in.frames.seq = 1
		defer in.press.close()
		return in.serve()
	})
	err = errors.Join(err, closeQuietly(c))
	if err != nil {
		return fmt.Errorf("page connection from %v: %w", c.RemoteAddr(), err)
	}
	return nil
}

// inbound is one connection of a Receiver.
type inbound struct {
	r      *Receiver
	conn   net.Conn
	frames *frameReader
	seq    uint64 // of the next answer
	runs   []Run
	press  decompressor
	sum    Totals
}

// tell is how long an answer may take to leave.
const tell = 15 * time.Second

func (in *inbound) serve() error {
	for {
		h, rest, err := in.frames.next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // an orderly end has a bye
			}
			return in.giveUp(err)
		}
		in.sum.WireBytes += uint64(headerSize + len(rest))
		switch h.kind {
		case kindBatch:
			err = in.batch(h, rest)
		case kindFlush:
			err = in.flushed(binary.LittleEndian.Uint64(rest))
		case kindBye:
			return nil
		default:
			err = fmt.Errorf("%w: frame kind %d from a sender", ErrCorrupt, h.kind)
		}
		if err != nil {
			return in.giveUp(err)
		}
	}
}

// giveUp tells the sender why, if it still listens, and returns err.
func (in *inbound) giveUp(err error) error {
	if e := in.conn.SetWriteDeadline(time.Now().Add(time.Second)); e == nil {
		_, _ = in.conn.Write(failure(in.seq, err.Error())) // err is what matters; the sender sees the end in any case
	}
	return err
}

func (in *inbound) batch(h header, rest []byte) error {
	table := int(h.runs) * runSize
	runs, err := parseRuns(h, rest[:table], in.runs)
	if err != nil {
		return err
	}
	in.runs = runs
	data, err := in.press.decompress(h.codec, int(h.raw), rest[table:])
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.Zero {
			err = in.r.sink.ZeroPages(h.space, r.Addr, r.Pages)
		} else {
			n := int(r.Pages) * PageSize
			err = in.r.sink.WritePages(h.space, r.Addr, data[:n])
			data = data[n:]
		}
		if err != nil {
			return fmt.Errorf("writing %d pages at 0x%x of space %d: %w", r.Pages, r.Addr, h.space, err)
		}
	}
	before := in.sum
	in.sum.countRuns(runs)
	in.r.mu.Lock()
	in.r.sum.add(Totals{WireBytes: uint64(headerSize + len(rest)), Pages: in.sum.Pages - before.Pages, ZeroPages: in.sum.ZeroPages - before.ZeroPages})
	in.r.mu.Unlock()
	return nil
}

// flushed answers a flush: the frames before it on this connection have been written by now.
func (in *inbound) flushed(id uint64) error {
	le := binary.LittleEndian
	p := le.AppendUint64(nil, id)
	p = le.AppendUint64(p, in.sum.Pages)
	p = le.AppendUint64(p, in.sum.ZeroPages)
	p = le.AppendUint64(p, in.sum.WireBytes)
	if err := in.conn.SetWriteDeadline(time.Now().Add(tell)); err != nil {
		return err
	}
	_, err := in.conn.Write(control(kindFlushed, in.seq, p))
	in.seq++
	return err
}
