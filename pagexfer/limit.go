package pagexfer

import (
	"sync"
	"time"
)

// A limiter is a token bucket: over any stretch of time at most rate bytes a second pass, plus a burst of what
// the rate allows in burstTime. The zero value lets everything pass.
type limiter struct {
	mu   sync.Mutex
	rate float64   // bytes per second; 0: no limit
	next time.Time // when the bytes admitted so far will have passed at this rate
}

const (
	burstTime = 10 * time.Millisecond
	minPiece  = 16 << 10 // a TLS record
)

func (l *limiter) set(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = float64(max(rate, 0))
	l.next = time.Time{}
}

// piece returns how many of n bytes should be written at once, so that the limit holds at small scale too.
func (l *limiter) piece(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return n
	}
	return min(n, max(minPiece, int(l.rate*burstTime.Seconds())))
}

// reserve admits n bytes and returns how long to wait before sending them.
func (l *limiter) reserve(n int, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return 0
	}
	if floor := now.Add(-burstTime); l.next.Before(floor) {
		l.next = floor // tokens that were not used within the burst are lost
	}
	l.next = l.next.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return max(l.next.Sub(now), 0)
}
