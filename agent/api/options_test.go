package agentapi

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	stop, plain := &MoveOptions{Strategy: Strategy_STRATEGY_STOP}, &MoveOptions{}
	if stop.MaxDowntime() != DefaultStopDowntime || plain.MaxDowntime() != DefaultMaxDowntime || plain.HardLimit() != 10*DefaultMaxDowntime {
		t.Errorf("defaults: %v, %v, %v", stop.MaxDowntime(), plain.MaxDowntime(), plain.HardLimit())
	}
	stop.MaxDowntimeNs = int64(time.Second)
	if stop.MaxDowntime() != time.Second {
		t.Errorf("asked for a second: %v", stop.MaxDowntime())
	}
	for _, o := range []*MoveOptions{nil, {}, stop, {MaxDowntimeNs: 1, HardLimitNs: 1, TimeoutNs: 1, Streams: MaxStreams, Compress: "zstd"},
		{ExternalUnix: map[string]string{"/run/a": "reconnect", "@b": "null", "c": "null"}}} {
		if err := o.Check(); err != nil {
			t.Errorf("%v: %v", o, err)
		}
	}
	for _, o := range []*MoveOptions{
		{MaxDowntimeNs: -1}, {MaxDowntimeNs: math.MaxInt64}, {HardLimitNs: -1}, {HardLimitNs: 1}, {HardLimitNs: math.MaxInt64},
		{TimeoutNs: -1}, {TimeoutNs: math.MaxInt64}, {Strategy: Strategy_STRATEGY_HYBRID}, {Strategy: 77}, {OnTimeout: OnTimeout_ON_TIMEOUT_POSTCOPY},
		{OnTimeout: 77}, {Files: 77}, {BandwidthBytesPerSecond: math.MaxUint64}, {Streams: MaxStreams + 1}, {Compress: "gzip"},
		{ExternalUnix: map[string]string{"/run/a": "close"}}, {ExternalUnix: map[string]string{"a": "reconnect"}}, {ExternalUnix: map[string]string{"": "null"}},
		{ExternalUnix: map[string]string{"/" + strings.Repeat("a", longestUnix): "null"}},
	} {
		if err := o.Check(); err == nil {
			t.Errorf("%v is accepted", o)
		}
	}
}
