package pagexfer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a Sender.
type Options struct {
	Codec Codec
	// Bandwidth is the limit of all connections together, in bytes per second on the wire; 0 is no limit.
	Bandwidth int64
	// Stall is how long a connection may take no bytes before it counts as lost; 0 stands for 15 seconds.
	Stall time.Duration
}

// Totals says what was sent, or what was received and written.
type Totals struct {
	WireBytes uint64 // of all frames, without what TLS and TCP add
	Pages     uint64 // with their contents
	ZeroPages uint64
}

// Plus adds what another Sender has sent.
func (t Totals) Plus(o Totals) Totals {
	t.add(o)
	return t
}

func (t *Totals) add(o Totals) {
	t.WireBytes += o.WireBytes
	t.Pages += o.Pages
	t.ZeroPages += o.ZeroPages
}

// ErrClosed is the error of a Sender after Close.
var ErrClosed = errors.New("the page sender is closed")

// A Sender sends batches of pages over its connections. Its methods may be called from several goroutines. It
// owns two goroutines per connection, which end with Close or with the first error.
type Sender struct {
	pool    pool
	limit   limiter
	stall   time.Duration
	work    chan item // what any connection may take next; a barrier is taken once by each
	conns   []*stream
	flushes chan struct{} // held (full) by the one Flush that is under way
	running sync.WaitGroup

	closing   chan struct{} // closed by Close
	closeOnce sync.Once
	failed    chan struct{} // closed by the first error
	failOnce  sync.Once
	cause     error // valid once failed is closed

	sent struct{ wire, pages, zero atomic.Uint64 }
}

// An item is a batch or a barrier.
type item struct {
	space   uint32
	runs    []Run
	size    int // bytes of data in buf
	buf     *buffer
	barrier *barrier
}

// A barrier stands in the queue once per connection. A connection that takes one waits until all have, so that
// each takes exactly one and everything queued before it has been written.
type barrier struct {
	id      uint64
	missing atomic.Int32
	all     chan struct{}
	given   chan struct{} // closed when the Flush gave up
	replies chan Totals   // one per connection
}

// NewSender starts a sender over connections that Dial has introduced. It owns the connections from then on.
func NewSender(conns []net.Conn, opts Options) *Sender {
	s := &Sender{
		stall: opts.Stall,
		// One batch in the hands of each connection, one waiting: enough to keep a connection busy.
		work:    make(chan item, len(conns)),
		flushes: make(chan struct{}, 1),
		closing: make(chan struct{}),
		failed:  make(chan struct{}),
	}
	if s.stall == 0 {
		s.stall = 15 * time.Second
	}
	s.limit.set(opts.Bandwidth)
	for i, c := range conns {
		st := &stream{s: s, conn: c, index: i, seq: 1, choose: newChooser(opts.Codec)}
		s.conns = append(s.conns, st)
	}
	for _, st := range s.conns {
		s.running.Add(2)
		go st.write()
		go st.read()
	}
	return s
}

// Buffer returns an empty slice with capacity BatchBytes, to be filled and given to Send.
func (s *Sender) Buffer() []byte { return s.pool.lend() }

// Send queues a batch: the runs of the address space, and the contents of those that are not zero, in their order.
// It takes data, which must not be used afterwards, and reads runs before it returns. It blocks while all
// connections are busy. An error of ctx leaves the sender usable; any other error is final.
func (s *Sender) Send(ctx context.Context, space uint32, runs []Run, data []byte) error {
	var size uint64
	for _, r := range runs {
		if err := r.validate(); err != nil {
			return fmt.Errorf("pagexfer: space %d: %w", space, err)
		}
		if !r.Zero {
			size += uint64(r.Pages) * PageSize
		}
	}
	if size != uint64(len(data)) || size > BatchBytes {
		return fmt.Errorf("pagexfer: space %d: runs for %d bytes with %d bytes of data; a batch holds at most %d", space, size, len(data), BatchBytes)
	}
	full, zero := split(runs)
	first := min(len(zero), maxRuns-len(full))
	it := item{space: space, runs: append(full, zero[:first]...), size: len(data), buf: s.pool.reclaim(data)}
	if len(it.runs) == 0 {
		s.pool.give(it.buf)
		return nil
	}
	if err := s.queue(ctx, it); err != nil {
		return err
	}
	for zero = zero[first:]; len(zero) > 0; {
		n := min(len(zero), maxRuns)
		if err := s.queue(ctx, item{space: space, runs: zero[:n:n], buf: s.pool.take()}); err != nil {
			return err
		}
		zero = zero[n:]
	}
	return nil
}

// split copies the runs into those with contents, of which a batch has at most BatchPages, and those without.
func split(runs []Run) (full, zero []Run) {
	full = make([]Run, 0, len(runs))
	for _, r := range runs {
		if r.Zero {
			zero = append(zero, r)
		} else {
			full = append(full, r)
		}
	}
	return full, zero
}

func (s *Sender) queue(ctx context.Context, it item) error {
	select {
	case <-s.failed:
		return s.cause
	case <-s.closing:
		return ErrClosed
	default:
	}
	select {
	case s.work <- it:
		return nil
	case <-s.failed:
		return s.cause
	case <-s.closing:
		return ErrClosed
	case <-ctx.Done():
		if it.buf != nil {
			s.pool.give(it.buf)
		}
		return fmt.Errorf("pagexfer: %w", context.Cause(ctx))
	}
}

// Flush returns once the receiver has written everything for which Send had returned before, with the totals since
// the start as the receiver counted them.
func (s *Sender) Flush(ctx context.Context) (Totals, error) {
	select {
	case s.flushes <- struct{}{}:
		defer func() { <-s.flushes }()
	case <-s.failed:
		return Totals{}, s.cause
	case <-ctx.Done():
		return Totals{}, fmt.Errorf("pagexfer: %w", context.Cause(ctx))
	}
	n := len(s.conns)
	b := &barrier{id: flushID.Add(1), all: make(chan struct{}), given: make(chan struct{}), replies: make(chan Totals, n)}
	defer close(b.given)
	b.missing.Store(int32(n))
	for range n {
		if err := s.queue(ctx, item{barrier: b}); err != nil {
			return Totals{}, err
		}
	}
	var total Totals
	for range n {
		select {
		case t := <-b.replies:
			total.add(t)
		case <-s.failed:
			return Totals{}, s.cause
		case <-s.closing:
			return Totals{}, ErrClosed
		case <-ctx.Done():
			return Totals{}, fmt.Errorf("pagexfer: waiting for the receiver to write: %w", context.Cause(ctx))
		}
	}
	return total, nil
}

var flushID atomic.Uint64

// Stats says what has been written to the connections so far.
func (s *Sender) Stats() Totals {
	return Totals{WireBytes: s.sent.wire.Load(), Pages: s.sent.pages.Load(), ZeroPages: s.sent.zero.Load()}
}

// SetBandwidth changes the limit, in bytes per second; 0 is no limit.
func (s *Sender) SetBandwidth(rate int64) { s.limit.set(rate) }

// Failed is closed when the sender has failed; Send and Flush then return the reason.
func (s *Sender) Failed() <-chan struct{} { return s.failed }

// Close ends the connections in order and returns when the goroutines have ended. What was not flushed may be lost.
// It returns the error with which the sender had failed, if it had.
func (s *Sender) Close() error {
	s.closeOnce.Do(func() { close(s.closing) })
	s.running.Wait()
	select {
	case <-s.failed:
		return s.cause
	default:
		return nil
	}
}

// fail makes err the sender's error, unless it has one, and ends all connections.
func (s *Sender) fail(err error) {
	s.failOnce.Do(func() {
		s.cause = err
		close(s.failed)
		for _, st := range s.conns {
			_ = st.conn.Close() // the first error is the one to report
		}
	})
}

// A stream is one connection of a Sender.
type stream struct {
	s      *Sender
	conn   net.Conn
	index  int
	seq    uint64
	choose *chooser
	press  compressor
	out    *buffer // where compressed frames are laid out

	mu      sync.Mutex
	pending []*barrier // flushes that were sent and not yet answered, in order
}

func (st *stream) errorf(what string, err error) error {
	return fmt.Errorf("page connection %d to %v: %s: %w", st.index, st.conn.RemoteAddr(), what, err)
}

// write takes items until the sender ends.
func (st *stream) write() {
	defer st.s.running.Done()
	defer func() { _ = st.press.close() }() // frees memory; EncodeAll leaves nothing to flush
	for {
		select {
		case it := <-st.s.work:
			if err := st.item(it); err != nil {
				st.broken(err)
				return
			}
		case <-st.s.failed:
			return
		case <-st.s.closing:
			st.bye()
			return
		}
	}
}

// broken ends the sender after a write failed. The receiver may have said why before it closed the connection, which
// tells more than the write's error, so the reader goes first.
func (st *stream) broken(err error) {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-st.s.failed:
	case <-st.s.closing:
	case <-t.C:
	}
	st.s.fail(st.errorf("sending", err))
}

// bye ends the connection in order. Errors do not matter any more: all that had to arrive has been flushed.
func (st *stream) bye() {
	_ = st.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = st.conn.Write(control(kindBye, st.seq, nil))
	_ = st.conn.Close()
}

func (st *stream) item(it item) error {
	if it.barrier == nil {
		defer st.s.pool.give(it.buf)
		return st.batch(it)
	}
	b := it.barrier
	st.mu.Lock()
	st.pending = append(st.pending, b)
	st.mu.Unlock()
	frame := control(kindFlush, st.seq, binary.LittleEndian.AppendUint64(nil, b.id))
	if err := st.send(frame); err != nil {
		return err
	}
	if b.missing.Add(-1) == 0 {
		close(b.all)
		return nil
	}
	select {
	case <-b.all:
	case <-b.given:
	case <-st.s.failed:
	case <-st.s.closing:
	}
	return nil
}

func (st *stream) batch(it item) error {
	start := time.Now()
	data := it.buf.mem[headroom : headroom+it.size]
	h := header{kind: kindBatch, space: it.space, runs: uint32(len(it.runs)), raw: uint32(it.size), wire: uint32(it.size), seq: st.seq}
	mem := it.buf.mem
	if codec := st.choose.next(func() float64 { return st.press.ratio(data) }); codec != Off && it.size > 0 {
		if st.out == nil {
			st.out = st.s.pool.take()
		}
		out, smaller, err := st.press.compress(codec, st.out.data(), data)
		if err != nil {
			return err
		}
		if smaller {
			h.codec, h.wire, mem = codec, uint32(len(out)), st.out.mem
		}
	}
	from := headroom - len(it.runs)*runSize
	for i, r := range it.runs {
		putRun(mem[from+i*runSize:], r)
	}
	frame := mem[from-headerSize : headroom+int(h.wire)]
	h.put(frame[:headerSize], frame[headerSize:])
	if err := st.send(frame); err != nil {
		return err
	}
	st.choose.sent(it.size, int(h.wire), time.Since(start))
	st.s.count(it.runs)
	return nil
}

func (s *Sender) count(runs []Run) {
	var t Totals
	t.countRuns(runs)
	s.sent.pages.Add(t.Pages)
	s.sent.zero.Add(t.ZeroPages)
}

func (t *Totals) countRuns(runs []Run) {
	for _, r := range runs {
		if r.Zero {
			t.ZeroPages += uint64(r.Pages)
		} else {
			t.Pages += uint64(r.Pages)
		}
	}
}

// send writes a frame, in pieces as the limit has it.
func (st *stream) send(frame []byte) error {
	st.seq++
	for len(frame) > 0 {
		n := st.s.limit.piece(len(frame))
		if err := st.pause(st.s.limit.reserve(n, time.Now())); err != nil {
			return err
		}
		if err := st.conn.SetWriteDeadline(time.Now().Add(st.s.stall)); err != nil {
			return err
		}
		st.s.sent.wire.Add(uint64(n)) // before the receiver can count and answer it
		if _, err := st.conn.Write(frame[:n]); err != nil {
			return err
		}
		frame = frame[n:]
	}
	return nil
}

func (st *stream) pause(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-st.s.failed:
		return st.s.cause
	case <-st.s.closing:
		return ErrClosed
	}
}

// read takes the receiver's answers until the connection ends.
func (st *stream) read() {
	defer st.s.running.Done()
	r := newFrameReader(st.conn)
	r.seq = 1
	for {
		h, rest, err := r.next()
		if err == nil {
			err = st.answer(h, rest)
		}
		if err == nil {
			continue
		}
		select {
		case <-st.s.closing: // Close closes the connection under this read
		default:
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			st.s.fail(st.errorf("receiving", err))
		}
		return
	}
}

// ErrReceiver is matched by the error of a Sender whose receiver has failed and said why.
var ErrReceiver = errors.New("the receiving host failed")

func (st *stream) answer(h header, rest []byte) error {
	switch h.kind {
	case kindFailure:
		return fmt.Errorf("%w: %s", ErrReceiver, printable(rest))
	case kindFlushed:
		le := binary.LittleEndian
		st.mu.Lock()
		defer st.mu.Unlock()
		if len(st.pending) == 0 || st.pending[0].id != le.Uint64(rest) {
			return fmt.Errorf("%w: an answer to flush %d, which was not asked for", ErrCorrupt, le.Uint64(rest))
		}
		st.pending[0].replies <- Totals{Pages: le.Uint64(rest[8:]), ZeroPages: le.Uint64(rest[16:]), WireBytes: le.Uint64(rest[24:])}
		st.pending = st.pending[1:]
		return nil
	}
	return fmt.Errorf("%w: frame kind %d from a receiver", ErrCorrupt, h.kind)
}
