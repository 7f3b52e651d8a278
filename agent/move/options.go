package move

import (
	"fmt"
	"runtime"
	"time"

	agentapi "migrate/agent/api"
	"migrate/pagexfer"
)

// options are those of a move, with the defaults filled in.
type options struct {
	stop        bool // no rounds: freeze at once
	maxDowntime time.Duration
	hardLimit   time.Duration // of a forced switch
	timeout     time.Duration
	force       bool
	bandwidth   int64
	streams     uint32
	codec       pagexfer.Codec
	files       *agentapi.MoveOptions // files, volumes and overwrite; as asked
}

const (
	defaultMaxDowntime = 100 * time.Millisecond
	defaultTimeout     = 5 * time.Minute
	// stopDowntime bounds the blackout of a move that copies everything while the tree stands still.
	stopDowntime = 10 * time.Minute
	maxStreams   = 16
)

// ErrUnsupported means that an option names what is not built.
type unsupportedError struct{ what string }

func (e *unsupportedError) Error() string { return e.what + " is not supported by this version" }

func parseOptions(o *agentapi.MoveOptions) (options, error) {
	out := options{
		maxDowntime: time.Duration(o.GetMaxDowntimeNs()), hardLimit: time.Duration(o.GetHardLimitNs()),
		timeout: time.Duration(o.GetTimeoutNs()), bandwidth: int64(o.GetBandwidthBytesPerSecond()), streams: o.GetStreams(),
		files: o,
	}
	switch o.GetStrategy() {
	case agentapi.Strategy_STRATEGY_UNSPECIFIED, agentapi.Strategy_STRATEGY_PRECOPY:
	case agentapi.Strategy_STRATEGY_STOP:
		out.stop = true
	default:
		return options{}, &unsupportedError{"post-copy"}
	}
	switch o.GetOnTimeout() {
	case agentapi.OnTimeout_ON_TIMEOUT_POSTCOPY:
		return options{}, &unsupportedError{"post-copy"}
	case agentapi.OnTimeout_ON_TIMEOUT_FORCE:
		out.force = true
	}
	var err error
	if out.codec, err = pagexfer.ParseCodec(o.GetCompress()); err != nil {
		return options{}, err
	}
	if out.maxDowntime < 0 || out.timeout < 0 || out.hardLimit < 0 || out.bandwidth < 0 {
		return options{}, fmt.Errorf("a duration or rate is negative: max downtime %v, timeout %v, hard limit %v", out.maxDowntime, out.timeout, out.hardLimit)
	}
	if out.streams > maxStreams {
		return options{}, fmt.Errorf("%d streams asked for; at most %d are possible", out.streams, maxStreams)
	}
	out.fill()
	return out, nil
}

func (o *options) fill() {
	if o.maxDowntime == 0 {
		o.maxDowntime = defaultMaxDowntime
		if o.stop {
			o.maxDowntime = stopDowntime
		}
	}
	if o.timeout == 0 {
		o.timeout = defaultTimeout
	}
	if o.hardLimit == 0 {
		o.hardLimit = 10 * o.maxDowntime
	}
	if o.streams == 0 {
		o.streams = uint32(min(max(runtime.NumCPU(), 1), 4))
	}
}

// retuned takes over what may be changed while a migration runs.
func (o options) retuned(by *agentapi.MoveOptions) options {
	if d := time.Duration(by.GetMaxDowntimeNs()); d > 0 {
		if o.hardLimit == 10*o.maxDowntime {
			o.hardLimit = 10 * d
		}
		o.maxDowntime = d
	}
	if by.GetBandwidthBytesPerSecond() > 0 {
		o.bandwidth = int64(by.GetBandwidthBytesPerSecond())
	}
	return o
}
