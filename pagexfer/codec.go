package pagexfer

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Codec says how the pages of a batch are compressed.
type Codec uint8

// The codecs. Auto is not one of the wire: it stands for the choice of the best one at each moment.
const (
	Off Codec = iota
	S2
	Zstd
	maxCodec = Zstd
	Auto     = Codec(255)
)

var codecNames = map[Codec]string{Off: "off", S2: "s2", Zstd: "zstd", Auto: "auto"}

func (c Codec) String() string {
	if s, ok := codecNames[c]; ok {
		return s
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// ParseCodec returns the codec of a name: off, s2, zstd or auto. The empty name is auto.
func ParseCodec(name string) (Codec, error) {
	if name == "" {
		return Auto, nil
	}
	for c, s := range codecNames {
		if s == name {
			return c, nil
		}
	}
	return Off, fmt.Errorf("unknown compression %q: use auto, off, s2 or zstd", name)
}

// A compressor belongs to one connection. Its encoders are made when first used.
type compressor struct {
	zstd    *zstd.Encoder
	scratch []byte
}

// compress appends the compressed form of src to dst, which has capacity for len(src) more bytes. It reports false,
// with dst in an undefined state, when the result would not be smaller than src.
func (c *compressor) compress(codec Codec, dst, src []byte) ([]byte, bool, error) {
	if c.scratch == nil {
		c.scratch = make([]byte, s2.MaxEncodedLen(BatchBytes))
	}
	var out []byte
	switch codec {
	case S2:
		out = s2.Encode(c.scratch, src)
	case Zstd:
		if c.zstd == nil {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
				zstd.WithWindowSize(BatchBytes), zstd.WithEncoderCRC(false))
			if err != nil {
				return dst, false, fmt.Errorf("zstd: %w", err)
			}
			c.zstd = e
		}
		out = c.zstd.EncodeAll(src, c.scratch[:0])
	default:
		return dst, false, fmt.Errorf("pagexfer: %v cannot compress", codec)
	}
	if len(out) >= len(src) {
		return dst, false, nil
	}
	return append(dst, out...), true, nil
}

// ratio compresses a few pages spread over src with s2 and returns compressed size by raw size.
func (c *compressor) ratio(src []byte) float64 {
	const pages = 4
	var sample [pages * PageSize]byte
	n := 0
	for i := range pages {
		off := len(src) / PageSize * i / pages * PageSize
		n += copy(sample[n:n+PageSize], src[off:])
	}
	if n == 0 {
		return 1
	}
	if c.scratch == nil {
		c.scratch = make([]byte, s2.MaxEncodedLen(BatchBytes))
	}
	return float64(len(s2.Encode(c.scratch, sample[:n]))) / float64(n)
}

func (c *compressor) close() error {
	if c.zstd == nil {
		return nil
	}
	return c.zstd.Close()
}

// A decompressor belongs to one connection.
type decompressor struct {
	zstd *zstd.Decoder
	out  []byte
}

var errSize = errors.New("the payload does not have the size that its header says")

// decompress returns the raw bytes of a batch. The slice is valid until the next call.
func (d *decompressor) decompress(codec Codec, raw int, src []byte) ([]byte, error) {
	if codec == Off {
		return src, nil
	}
	if d.out == nil {
		d.out = make([]byte, BatchBytes)
	}
	var out []byte
	var err error
	switch codec {
	case S2:
		var n int
		if n, err = s2.DecodedLen(src); err == nil && n != raw {
			err = errSize
		}
		if err == nil {
			out, err = s2.Decode(d.out[:raw], src)
		}
	case Zstd:
		if d.zstd == nil {
			d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(BatchBytes),
				zstd.WithDecoderMaxWindow(BatchBytes), zstd.WithDecodeAllCapLimit(true))
			if err != nil {
				return nil, fmt.Errorf("zstd: %w", err)
			}
		}
		out, err = d.zstd.DecodeAll(src, d.out[:0:raw])
	default:
		err = fmt.Errorf("unknown %v", codec)
	}
	if err == nil && len(out) != raw {
		err = errSize
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v: %w", ErrCorrupt, codec, err)
	}
	return out, nil
}

func (d *decompressor) close() {
	if d.zstd != nil {
		d.zstd.Close()
	}
}
