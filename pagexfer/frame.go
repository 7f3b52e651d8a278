package pagexfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
)

const (
	// PageSize is the size of a page in bytes.
	PageSize = 4096
	// BatchPages is the number of pages that one batch can hold, zero pages not counted.
	BatchPages = 64
	// BatchBytes is the capacity of the slices that Sender.Buffer returns.
	BatchBytes = BatchPages * PageSize

	headerSize = 40
	runSize    = 16
	// maxRuns is chosen so that a header and its runs take no more than headroom.
	maxRuns  = 252
	headroom = 4096
	// maxText bounds the text of a failure frame, and maxToken the token of a hello.
	maxText  = 1024
	maxToken = 256
	// maxAddr is the end of user address space with five-level page tables (Documentation/arch/x86/x86_64/5level-paging.rst).
	maxAddr = 1 << 56

	magic   = 0x5847504d // "MPGX"
	version = 1
)

type kind uint8

const (
	kindHello kind = iota + 1
	kindWelcome
	kindBatch
	kindFlush
	kindFlushed
	kindBye
	kindFailure
)

// ErrCorrupt is matched by every error that means that the bytes received are not what a Sender sends.
var ErrCorrupt = errors.New("corrupt page stream")

// Run is a range of pages of one address space.
type Run struct {
	Addr  uint64 // a multiple of PageSize
	Pages uint32 // at least 1
	Zero  bool   // the pages read as zeroes and are not in the data
}

func (r Run) validate() error {
	switch size := uint64(r.Pages) * PageSize; {
	case r.Pages == 0:
		return fmt.Errorf("run at 0x%x has no pages", r.Addr)
	case r.Addr%PageSize != 0:
		return fmt.Errorf("run at 0x%x is not on a page boundary", r.Addr)
	case r.Addr > maxAddr || size > maxAddr-r.Addr:
		return fmt.Errorf("run of %d pages at 0x%x ends beyond user address space", r.Pages, r.Addr)
	case !r.Zero && r.Pages > BatchPages:
		return fmt.Errorf("run of %d pages at 0x%x is longer than a batch (%d)", r.Pages, r.Addr, BatchPages)
	}
	return nil
}

// header is the fixed part of a frame; see the package comment.
type header struct {
	kind  kind
	codec Codec
	space uint32
	runs  uint32
	raw   uint32
	wire  uint32
	seq   uint64
	sum   uint64
}

// Validate checks every field against the bounds of its kind. The sum is checked when the rest has arrived.
func (h *header) Validate() error {
	fixed := func(wire uint32) error {
		if h.runs != 0 || h.space != 0 || h.codec != Off || h.raw != h.wire || h.wire != wire {
			return fmt.Errorf("%w: frame %d of kind %d has space %d, %d runs, codec %d, %d/%d bytes", ErrCorrupt,
				h.seq, h.kind, h.space, h.runs, h.codec, h.raw, h.wire)
		}
		return nil
	}
	switch h.kind {
	case kindHello:
		return fixed(clamp(h.wire, 8, 8+maxToken))
	case kindWelcome, kindBye:
		return fixed(0)
	case kindFlush:
		return fixed(8)
	case kindFlushed:
		return fixed(32)
	case kindFailure:
		return fixed(clamp(h.wire, 0, maxText))
	case kindBatch:
		return h.validateBatch()
	}
	return fmt.Errorf("%w: frame %d is of unknown kind %d", ErrCorrupt, h.seq, h.kind)
}

func (h *header) validateBatch() error {
	switch {
	case h.runs == 0 || h.runs > maxRuns:
		return fmt.Errorf("%w: batch %d has %d runs; 1 to %d are allowed", ErrCorrupt, h.seq, h.runs, maxRuns)
	case h.raw > BatchBytes || h.raw%PageSize != 0:
		return fmt.Errorf("%w: batch %d has %d bytes of pages; at most %d in whole pages are allowed", ErrCorrupt, h.seq, h.raw, BatchBytes)
	case h.codec > maxCodec:
		return fmt.Errorf("%w: batch %d has unknown codec %d", ErrCorrupt, h.seq, h.codec)
	case h.codec == Off && h.wire != h.raw, h.wire > h.raw, h.raw > 0 && h.wire == 0:
		return fmt.Errorf("%w: batch %d has %d bytes on the wire for %d bytes of pages", ErrCorrupt, h.seq, h.wire, h.raw)
	}
	return nil
}

// clamp returns v if it is within [low, high], else a value that differs from it.
func clamp(v, low, high uint32) uint32 {
	if v < low {
		return low
	}
	return min(v, high)
}

// put writes the header with its checksum over rest to b, which has headerSize bytes.
func (h *header) put(b, rest []byte) {
	le := binary.LittleEndian
	le.PutUint32(b, magic)
	b[4], b[5], b[6], b[7] = version, byte(h.kind), byte(h.codec), 0
	le.PutUint32(b[8:], h.space)
	le.PutUint32(b[12:], h.runs)
	le.PutUint32(b[16:], h.raw)
	le.PutUint32(b[20:], h.wire)
	le.PutUint64(b[24:], h.seq)
	le.PutUint64(b[32:], xxh3.HashSeed(rest, xxh3.Hash(b[:32])))
}

// parseHeader decodes and validates the headerSize bytes of b.
func parseHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	if m := le.Uint32(b); m != magic {
		return header{}, fmt.Errorf("%w: a frame starts with 0x%08x and not with 0x%08x", ErrCorrupt, m, uint32(magic))
	}
	if b[4] != version || b[7] != 0 {
		return header{}, fmt.Errorf("%w: frame version %d (byte 7: %d); this program speaks version %d", ErrCorrupt, b[4], b[7], version)
	}
	h := header{
		kind: kind(b[5]), codec: Codec(b[6]), space: le.Uint32(b[8:]), runs: le.Uint32(b[12:]),
		raw: le.Uint32(b[16:]), wire: le.Uint32(b[20:]), seq: le.Uint64(b[24:]), sum: le.Uint64(b[32:]),
	}
	return h, h.Validate()
}

func putRun(b []byte, r Run) {
	le := binary.LittleEndian
	le.PutUint64(b, r.Addr)
	le.PutUint32(b[8:], r.Pages)
	flags := uint32(0)
	if r.Zero {
		flags = 1
	}
	le.PutUint32(b[12:], flags)
}

// parseRuns decodes the run table of a batch into runs, which is reused, and checks it against the header.
func parseRuns(h header, table []byte, runs []Run) ([]Run, error) {
	le := binary.LittleEndian
	runs = runs[:0]
	var bytes uint64
	for i := range int(h.runs) {
		b := table[i*runSize:]
		flags := le.Uint32(b[12:])
		r := Run{Addr: le.Uint64(b), Pages: le.Uint32(b[8:]), Zero: flags&1 != 0}
		if flags > 1 {
			return nil, fmt.Errorf("%w: batch %d, run %d has flags 0x%x", ErrCorrupt, h.seq, i, flags)
		}
		if err := r.validate(); err != nil {
			return nil, fmt.Errorf("%w: batch %d: %w", ErrCorrupt, h.seq, err)
		}
		if !r.Zero {
			bytes += uint64(r.Pages) * PageSize
		}
		runs = append(runs, r)
	}
	if bytes != uint64(h.raw) {
		return nil, fmt.Errorf("%w: batch %d has %d bytes of pages, and runs for %d", ErrCorrupt, h.seq, h.raw, bytes)
	}
	return runs, nil
}

// frameReader reads the frames of one direction of one connection.
type frameReader struct {
	conn io.Reader
	seq  uint64
	head [headerSize]byte
	buf  []byte // the runs and the payload of the last frame
}

func newFrameReader(conn io.Reader) *frameReader { return &frameReader{conn: conn} }

// next returns the next frame: its header, and what follows the header. The slice is valid until the next call.
// At the end of the stream between two frames the error is io.EOF.
func (r *frameReader) next() (header, []byte, error) {
	if _, err := io.ReadFull(r.conn, r.head[:]); err != nil {
		return header{}, nil, err
	}
	h, err := parseHeader(r.head[:])
	if err != nil {
		return header{}, nil, err
	}
	if h.seq != r.seq {
		return header{}, nil, fmt.Errorf("%w: frame %d arrived in the place of frame %d", ErrCorrupt, h.seq, r.seq)
	}
	r.seq++
	n := int(h.runs)*runSize + int(h.wire)
	if n > cap(r.buf) {
		size := n
		if h.kind == kindBatch {
			size = headroom + BatchBytes
		}
		r.buf = make([]byte, size)
	}
	rest := r.buf[:n]
	if _, err := io.ReadFull(r.conn, rest); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return header{}, nil, fmt.Errorf("reading frame %d: %w", h.seq, err)
	}
	if sum := xxh3.HashSeed(rest, xxh3.Hash(r.head[:32])); sum != h.sum {
		return header{}, nil, fmt.Errorf("%w: frame %d has checksum %016x; its header says %016x", ErrCorrupt, h.seq, sum, h.sum)
	}
	return h, rest, nil
}

// control lays out a frame without runs.
func control(k kind, seq uint64, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	b = append(b, payload...)
	h := header{kind: k, raw: uint32(len(payload)), wire: uint32(len(payload)), seq: seq}
	h.put(b[:headerSize], b[headerSize:])
	return b
}

// failure lays out a failure frame with as much of the text as fits.
func failure(seq uint64, text string) []byte {
	return control(kindFailure, seq, []byte(text[:min(len(text), maxText)]))
}
