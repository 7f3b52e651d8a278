package pagexfer

import "time"

// A chooser decides, for one connection, which codec the next batch is sent with. With Auto it measures how fast
// raw bytes get away with each codec, in windows of some batches, and keeps the fastest:
//
//	        the sample compresses, the window is over         faster by a tenth: s2 is the new base
//	base off ------------------------------------> trial s2 ------------------------------------------> base s2 ...
//	   ^------------------------------------------------+ not faster: back, and twice as long until the next trial
//
// A link that is slower than the compressor thus gets compressed pages, a fast one or one that carries random data
// gets them as they are, and what the search costs is one sample of 16 KiB per window. It reads no clock.
type chooser struct {
	auto    bool
	base    Codec // what is used when nothing is being tried
	current Codec
	rates   [maxCodec + 1]float64 // raw bytes per second in the last window of each codec
	wait    int                   // windows until the next trial
	penalty int                   // windows that the next failed trial costs
	ask     bool                  // a trial is due: look at the next batch first

	frames int // of this window, with those that are not counted
	raw    int64
	wire   int64
	busy   time.Duration
}

const (
	settleFrames = 4  // first batches of a window, which still go into half-empty socket buffers
	windowFrames = 16 // batches of a window that count, at least
	windowTime   = 20 * time.Millisecond
	minPenalty   = 4
	maxPenalty   = 64
	// A trial that is so much slower than the base after so few batches that count is not finished.
	hopelessFrames = 4
	hopeless       = 0.7
	// worthwhile is the compressed share above which compression is not even tried.
	worthwhile = 0.9
	// slowLink is the rate of raw bytes below which zstd may beat s2: about what zstd compresses in a second on one core.
	slowLink = 200e6
)

func newChooser(c Codec) *chooser {
	if c == Auto {
		return &chooser{auto: true, penalty: minPenalty}
	}
	return &chooser{base: c, current: c}
}

// next returns the codec for the next batch. ratio tells how well a sample of it compresses; it is called only
// when that matters.
func (c *chooser) next(ratio func() float64) Codec {
	if !c.auto || !c.ask {
		return c.current
	}
	c.ask = false
	candidate := c.candidate()
	if candidate != Off && ratio() > worthwhile {
		c.fail()
		return c.current
	}
	c.begin(candidate)
	return c.current
}

// candidate is the neighbour of the base that is worth a trial.
func (c *chooser) candidate() Codec {
	switch {
	case c.base == Off || c.base == Zstd:
		return S2
	case c.rates[S2] < slowLink && c.rates[Zstd] == 0:
		return Zstd
	}
	return Off
}

func (c *chooser) begin(codec Codec) {
	c.current, c.frames, c.raw, c.wire, c.busy = codec, 0, 0, 0, 0
}

func (c *chooser) fail() {
	c.wait, c.penalty = c.penalty, min(2*c.penalty, maxPenalty)
	c.begin(c.base)
}

// sent reports that a batch of raw bytes, wire bytes after compression, took busy to compress and to get away.
func (c *chooser) sent(raw, wire int, busy time.Duration) {
	if !c.auto || raw == 0 {
		return
	}
	c.frames++
	if c.frames <= settleFrames {
		return
	}
	c.raw += int64(raw)
	c.wire += int64(wire)
	c.busy += busy
	if c.current != c.base && c.frames == settleFrames+hopelessFrames && float64(c.raw)/c.busy.Seconds() < hopeless*c.rates[c.base] {
		c.fail()
		return
	}
	if c.frames < settleFrames+windowFrames || c.busy < windowTime {
		return
	}
	c.rates[c.current] = float64(c.raw) / c.busy.Seconds()
	if c.current != Off && float64(c.wire) > worthwhile*float64(c.raw) {
		c.base = Off // what is sent now no longer compresses
		c.fail()
		return
	}
	c.close()
}

// close ends a window.
func (c *chooser) close() {
	if c.current != c.base {
		if c.rates[c.current] > 1.1*c.rates[c.base] {
			c.base, c.wait, c.penalty = c.current, 1, minPenalty
			c.begin(c.base)
			return
		}
		c.fail()
		return
	}
	c.begin(c.base)
	if c.wait--; c.wait <= 0 {
		c.ask = true
	}
}
