package agentapi

import (
	"fmt"
	"slices"
	"time"
)

// What a move does where its options leave it open, and the bounds of what they may ask for.
const (
	DefaultMaxDowntime = 100 * time.Millisecond
	// DefaultStopDowntime bounds the blackout of a move that copies everything while the tree stands still.
	DefaultStopDowntime = 10 * time.Minute
	DefaultTimeout      = 5 * time.Minute
	MaxStreams          = 16

	maxExternalUnix = 1000
	longestUnix     = 108 // bytes in the address of a unix socket (unix(7))

	longestDowntime = 24 * time.Hour
	longestTimeout  = 30 * 24 * time.Hour
	highestRate     = 1e15 // bytes per second

	// MostThrottle is by how many percent a program may be slowed down: one that stands still has a blackout.
	MostThrottle = 99
)

// Compressions are the names that MoveOptions.compress may have.
var Compressions = []string{"auto", "off", "s2", "zstd"}

// MaxDowntime is the bound on a blackout that the options ask for.
func (x *MoveOptions) MaxDowntime() time.Duration {
	switch {
	case x.GetMaxDowntimeNs() != 0:
		return time.Duration(x.GetMaxDowntimeNs())
	case x.GetStrategy() == Strategy_STRATEGY_STOP:
		return DefaultStopDowntime
	}
	return DefaultMaxDowntime
}

// HardLimit is the bound on the blackout of a forced switch.
func (x *MoveOptions) HardLimit() time.Duration {
	if x.GetHardLimitNs() != 0 {
		return time.Duration(x.GetHardLimitNs())
	}
	return 10 * x.MaxDowntime()
}

// Timeout is the bound on the whole move up to its commit.
func (x *MoveOptions) Timeout() time.Duration {
	if x.GetTimeoutNs() != 0 {
		return time.Duration(x.GetTimeoutNs())
	}
	return DefaultTimeout
}

// Check says what of the options nobody can do. What is left open passes.
func (x *MoveOptions) Check() error {
	for _, d := range []struct {
		what    string
		ns      int64
		longest time.Duration
	}{
		{"max downtime", x.GetMaxDowntimeNs(), longestDowntime}, {"hard limit", x.GetHardLimitNs(), longestDowntime}, {"timeout", x.GetTimeoutNs(), longestTimeout},
	} {
		if d.ns < 0 || d.ns > int64(d.longest) {
			return fmt.Errorf("the %s of %v is not between 0 and %v", d.what, time.Duration(d.ns), d.longest)
		}
	}
	switch {
	case x.GetHardLimitNs() != 0 && x.HardLimit() < x.MaxDowntime():
		return fmt.Errorf("the hard limit of %v is below the max downtime of %v", x.HardLimit(), x.MaxDowntime())
	case x.GetStrategy() == Strategy_STRATEGY_POSTCOPY, x.GetStrategy() == Strategy_STRATEGY_HYBRID, x.GetOnTimeout() == OnTimeout_ON_TIMEOUT_POSTCOPY:
		return fmt.Errorf("post-copy is not built yet; use --strategy precopy or stop")
	case Strategy_name[int32(x.GetStrategy())] == "", OnTimeout_name[int32(x.GetOnTimeout())] == "", FilesMode_name[int32(x.GetFiles())] == "":
		return fmt.Errorf("strategy %v, on timeout %v, files %v: one of them is not known", x.GetStrategy(), x.GetOnTimeout(), x.GetFiles())
	case x.GetBandwidthBytesPerSecond() > highestRate:
		return fmt.Errorf("a bandwidth of %d bytes per second is more than %g", x.GetBandwidthBytesPerSecond(), float64(highestRate))
	case x.GetThrottleMaxPercent() > MostThrottle:
		return fmt.Errorf("slowing the program down by %d %% is asked for; at most %d are possible", x.GetThrottleMaxPercent(), MostThrottle)
	case x.GetStreams() > MaxStreams:
		return fmt.Errorf("%d streams asked for; at most %d are possible", x.GetStreams(), MaxStreams)
	case x.GetCompress() != "" && !slices.Contains(Compressions, x.GetCompress()):
		return fmt.Errorf("compression %q is not known: use auto, off, s2 or zstd", x.GetCompress())
	}
	return x.checkOutside()
}

// checkOutside checks what is to become of things that are half outside of the tree.
func (x *MoveOptions) checkOutside() error {
	if n := len(x.GetExternalUnix()); n > maxExternalUnix {
		return fmt.Errorf("%d external unix sockets are named; at most %d are possible", n, maxExternalUnix)
	}
	for at, how := range x.GetExternalUnix() {
		switch {
		case at == "" || len(at) > longestUnix:
			return fmt.Errorf("external unix socket %q: an address has 1 to %d bytes", at, longestUnix)
		case how != "reconnect" && how != "null":
			return fmt.Errorf("external unix socket %q: %q is not known: use reconnect or null", at, how)
		case how == "reconnect" && at[0] != '/' && at[0] != '@':
			return fmt.Errorf("external unix socket %q can be connected anew only by an absolute path or an abstract address (@NAME); use null", at)
		}
	}
	return nil
}
