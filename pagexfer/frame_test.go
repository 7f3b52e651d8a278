package pagexfer

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
)

// batchFrame lays out a batch the way stream.batch does.
func batchFrame(seq uint64, codec Codec, runs []Run, raw int, payload []byte) []byte {
	b := make([]byte, headerSize+len(runs)*runSize)
	for i, r := range runs {
		putRun(b[headerSize+i*runSize:], r)
	}
	b = append(b, payload...)
	h := header{kind: kindBatch, codec: codec, space: 9, runs: uint32(len(runs)), raw: uint32(raw), wire: uint32(len(payload)), seq: seq}
	h.put(b[:headerSize], b[headerSize:])
	return b
}

func TestEveryChangedByteIsNoticed(t *testing.T) {
	frame := batchFrame(0, Off, []Run{{Addr: 0x1000, Pages: 1}, {Addr: 0x5000, Pages: 3, Zero: true}}, PageSize, bytes.Repeat([]byte{7}, PageSize))
	for i := range frame {
		bad := bytes.Clone(frame)
		bad[i] ^= 0x10
		_, _, err := newFrameReader(bytes.NewReader(bad)).next()
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("byte %d changed: error %v", i, err)
		}
	}
	if _, _, err := newFrameReader(bytes.NewReader(frame)).next(); err != nil {
		t.Error(err)
	}
	if _, _, err := newFrameReader(bytes.NewReader(append(frame, frame...)[len(frame):])).next(); err != nil {
		t.Error(err)
	}
}

func TestAFrameOutOfOrderIsNoticed(t *testing.T) {
	two := append(control(kindFlush, 0, make([]byte, 8)), control(kindFlush, 2, make([]byte, 8))...)
	r := newFrameReader(bytes.NewReader(two))
	if _, _, err := r.next(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

// FuzzServe feeds a receiver's connection with arbitrary bytes.
func FuzzServe(f *testing.F) {
	page := bytes.Repeat([]byte("abcd"), PageSize/4)
	runs := []Run{{Addr: 0x1000, Pages: 1}, {Addr: 0x5000, Pages: 3, Zero: true}}
	f.Add(append(batchFrame(1, Off, runs, PageSize, page), control(kindFlush, 2, make([]byte, 8))...))
	f.Add(append(batchFrame(1, S2, runs, PageSize, s2.Encode(nil, page)), control(kindBye, 2, nil)...))
	var c compressor
	z, _, err := c.compress(Zstd, make([]byte, 0, PageSize), page)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(batchFrame(1, Zstd, runs, PageSize, z))
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := &inbound{r: NewReceiver(checked{t}), conn: &pipeEnd{Reader: bytes.NewReader(stream)}, frames: newFrameReader(bytes.NewReader(stream)), seq: 1}
		in.frames.seq = 1
		defer in.press.close()
		_ = in.serve() // any error is right, a panic or a bad page is not
		if cap(in.frames.buf) > headroom+BatchBytes {
			t.Errorf("a buffer of %d bytes", cap(in.frames.buf))
		}
	})
}

// FuzzPayload feeds the decompressors behind a checksum that matches.
func FuzzPayload(f *testing.F) {
	f.Add(uint8(S2), s2.Encode(nil, make([]byte, PageSize)))
	f.Add(uint8(Zstd), []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, codec uint8, payload []byte) {
		if len(payload) == 0 || len(payload) > 2*PageSize {
			return
		}
		stream := batchFrame(1, Codec(codec), []Run{{Addr: 0, Pages: 2}}, 2*PageSize, payload)
		in := &inbound{r: NewReceiver(checked{t}), conn: &pipeEnd{}, frames: newFrameReader(bytes.NewReader(stream)), seq: 1}
		in.frames.seq = 1
		defer in.press.close()
		_ = in.serve()
	})
}

// checked is a sink that fails the test when it is given what no batch may hold.
type checked struct{ t *testing.T }

func (c checked) WritePages(_ uint32, addr uint64, data []byte) error {
	if addr%PageSize != 0 || len(data)%PageSize != 0 || len(data) == 0 || len(data) > BatchBytes {
		c.t.Errorf("%d bytes at 0x%x", len(data), addr)
	}
	return nil
}

func (c checked) ZeroPages(_ uint32, addr uint64, n uint32) error {
	if addr%PageSize != 0 || n == 0 || addr+uint64(n)*PageSize > maxAddr {
		c.t.Errorf("%d zero pages at 0x%x", n, addr)
	}
	return nil
}

// A link is a model of a connection for the chooser: raw bytes per second with each codec.
type link [maxCodec + 1]float64

func (l link) run(c *chooser, frames int, ratio float64) (used [maxCodec + 1]int) {
	for range frames {
		codec := c.next(func() float64 { return ratio })
		used[codec]++
		wire := BatchBytes
		if codec != Off {
			wire = int(ratio * BatchBytes)
		}
		c.sent(BatchBytes, wire, time.Duration(BatchBytes/l[codec]*1e9))
	}
	return used
}

func TestChooser(t *testing.T) {
	for _, c := range []struct {
		name  string
		link  link
		ratio float64
		want  Codec
		share float64 // at least this share of the batches
	}{
		{"fast link", link{1200e6, 500e6, 150e6}, 0.4, Off, 0.9},
		{"gigabit", link{110e6, 270e6, 170e6}, 0.4, S2, 0.8},
		{"slow link", link{10e6, 25e6, 45e6}, 0.4, Zstd, 0.8},
		{"random data", link{110e6, 100e6, 80e6}, 1, Off, 1},
		{"random data, slow link", link{10e6, 9e6, 8e6}, 1, Off, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := newChooser(Auto)
			used := c.link.run(ch, 2000, c.ratio)
			if float64(used[c.want]) < c.share*2000 {
				t.Errorf("used off %d, s2 %d, zstd %d times; want %v", used[Off], used[S2], used[Zstd], c.want)
			}
		})
	}
}

func TestChooserGivesUpWhenDataTurnsRandom(t *testing.T) {
	ch := newChooser(Auto)
	link{110e6, 270e6, 170e6}.run(ch, 1000, 0.4)
	used := link{110e6, 100e6, 80e6}.run(ch, 1000, 1)
	if used[Off] < 950 {
		t.Errorf("used off %d, s2 %d, zstd %d times", used[Off], used[S2], used[Zstd])
	}
}
