package move

import (
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
	throttleMax int // percent
	streams     uint32
	codec       pagexfer.Codec
	asked       *agentapi.MoveOptions // what is for others to look at: files, volumes, and what is outside of the tree
}

// unsupportedError means that the options ask for what this version cannot do, however often it is asked.
type unsupportedError struct{ error }

// parseOptions checks what the leader asks for: it is another program, and may be another version.
func parseOptions(o *agentapi.MoveOptions) (options, error) {
	if err := o.Check(); err != nil {
		return options{}, &unsupportedError{err}
	}
	out := options{
		stop:        o.GetStrategy() == agentapi.Strategy_STRATEGY_STOP,
		maxDowntime: o.MaxDowntime(), hardLimit: o.HardLimit(), timeout: o.Timeout(),
		force:     o.GetOnTimeout() == agentapi.OnTimeout_ON_TIMEOUT_FORCE,
		bandwidth: int64(o.GetBandwidthBytesPerSecond()), throttleMax: int(o.GetThrottleMaxPercent()), streams: o.GetStreams(), asked: o,
	}
	var err error
	if out.codec, err = pagexfer.ParseCodec(o.GetCompress()); err != nil {
		return options{}, err
	}
	if out.streams == 0 {
		out.streams = uint32(min(max(runtime.NumCPU(), 1), 4))
	}
	return out, nil
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
	if by.ThrottleMaxPercent != nil {
		o.throttleMax = int(by.GetThrottleMaxPercent())
	}
	return o
}
