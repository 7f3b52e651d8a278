package move

import (
	"context"
	"sync"
	"time"
)

// frames are those that arrived at the source and have not been delivered here yet.
type frames struct {
	mu      sync.Mutex
	waiting [][]byte
	bytes   int
	arrived chan struct{} // of capacity 1: something was added
	direct  func([][]byte) (int, error)
	count   uint64
	attempt uint32 // whose they are
	dropped uint64 // that found no room
}

func newFrames() frames { return frames{arrived: make(chan struct{}, 1)} }

// add keeps frames of an attempt until they can be delivered; what does not fit is dropped, and sent again by TCP. Those of
// an earlier attempt were given back to the program when that ended, so they are forgotten, and no more are taken.
func (f *frames) add(attempt uint32, list [][]byte) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if attempt < f.attempt {
		return 0, refuseCall("these frames are of attempt %d, and attempt %d has begun", attempt, f.attempt)
	}
	if attempt > f.attempt {
		f.attempt, f.count, f.dropped, f.waiting, f.bytes = attempt, 0, 0, nil, 0
	}
	f.count += uint64(len(list))
	if f.direct != nil {
		_, err := f.direct(list)
		return f.count, err
	}
	for _, b := range list {
		if f.bytes+len(b) > maxFrameBytes {
			f.dropped++
			continue
		}
		f.bytes += len(b)
		f.waiting = append(f.waiting, b)
	}
	select {
	case f.arrived <- struct{}{}:
	default:
	}
	return f.count, nil
}

// lost is how many frames of this attempt found no room.
func (f *frames) lost() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dropped
}

func (f *frames) take() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.waiting
	f.waiting, f.bytes = nil, 0
	return list
}

// drain delivers what is there and what comes, until nothing has come for the time quiet.
func (f *frames) drain(ctx context.Context, quiet time.Duration, deliver func([][]byte) (int, error)) (n int, err error) {
	for {
		if list := f.take(); len(list) > 0 {
			k, err := deliver(list)
			n += k
			if err != nil {
				return n, err
			}
		}
		t := time.NewTimer(quiet)
		select {
		case <-f.arrived:
			t.Stop()
		case <-t.C:
			return n, nil
		case <-ctx.Done():
			t.Stop()
			return n, context.Cause(ctx)
		}
	}
}

// pass delivers everything from now on as it comes.
func (f *frames) pass(deliver func([][]byte) (int, error)) {
	list := f.take()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.direct = deliver
	if len(list) > 0 {
		_, _ = deliver(list) // these few are late already; TCP sends what is lost again
	}
}
