package move

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
)

// peerLink is the source's connection to the destination's agent.
type peerLink struct {
	client agentapi.PeerClient
	node   *agentapi.NodeInfo
	peers  Peers
	closer func() error
}

func dialPeer(ctx context.Context, peers Peers, node *agentapi.NodeInfo) (*peerLink, error) {
	c, closer, err := peers.Dial(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("the agent of %s at %s: %w", node.GetName(), node.GetControlAddress(), err)
	}
	return &peerLink{c, node, peers, closer}, nil
}

func (p *peerLink) dialPages(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return p.peers.DialPages(ctx, p.node, address) }
}

func (p *peerLink) close() error { return p.closer() }

// giveUp hints to the destination that nothing more will come. It is not waited for long: orders decide.
func (p *peerLink) giveUp(ctx context.Context, s *agentapi.Session, reason string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, _ = p.client.Abort(ctx, &agentapi.PeerAbortRequest{Session: s, Reason: reason}) // a hint may get lost
}

// offset says how to turn a reading of this host's CLOCK_MONOTONIC into one of the peer's.
type offset struct {
	add time.Duration
	err time.Duration // at most so far off
}

const clockExchanges = 8

// measure estimates the offset of the peer's monotonic clock from the fastest of n exchanges: the peer read its clock
// at some instant between our sending and our receiving, so half of that time is how far off the middle can be.
func (p *peerLink) measure(ctx context.Context, n int) (offset, error) {
	var all []offset
	for range n {
		before := monotonic()
		r, err := p.client.Clock(ctx, &agentapi.ClockRequest{})
		after := monotonic()
		if err != nil {
			return offset{}, fmt.Errorf("reading the clock of %s: %w", p.node.GetName(), plain(err))
		}
		all = append(all, offset{add: time.Duration(r.GetMonotonicNs()) - (before+after)/2, err: (after - before) / 2})
	}
	return slices.MinFunc(all, func(a, b offset) int { return int(a.err - b.err) }), nil
}

// monotonic reads CLOCK_MONOTONIC as this process's time namespace has it.
func monotonic() time.Duration { return Clock(unix.CLOCK_MONOTONIC) }

// Clock reads one of the clocks that every kernel has (clock_gettime(2)).
func Clock(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(err) // only a number that is no clock fails, and the callers name constants
	}
	return time.Duration(ts.Nano())
}

// peerError is an error of the peer's, with its code kept.
type peerError struct {
	what string
	err  error
}

func (e *peerError) Error() string              { return e.what + ": " + plain(e.err).Error() }
func (e *peerError) Unwrap() error              { return e.err }
func (e *peerError) GRPCStatus() *status.Status { return status.Convert(e.err) }

// plain takes the gRPC wrapping off an error that was meant for people.
func plain(err error) error {
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		return fmt.Errorf("%s (%v)", s.Message(), s.Code())
	}
	return err
}

// A forwarder sends captured frames to the destination as they arrive, and keeps them until the attempt is decided: if
// the source runs on they are delivered to it. A nil forwarder has no frames. Its goroutine owns the fields until it
// has ended.
type forwarder struct {
	stream agentapi.Peer_FramesClient
	port   Port
	cancel context.CancelFunc
	done   chan struct{}
	kept   [][]byte
	bytes  int
	// dropped is how many found no room.
	dropped int
}

const (
	// maxFrameBytes bounds the frames that are kept during one blackout: ten seconds of a busy gigabit link would be
	// more, and TCP sends again what is dropped.
	maxFrameBytes = 64 << 20
	// takeEvery is how often the capture is read. A packet socket could wake its reader, but it belongs to the gate,
	// whose lock a waiting reader would hold.
	takeEvery = 500 * time.Microsecond
)

func (p *peerLink) forward(ctx context.Context, port Port, s *agentapi.Session) (*forwarder, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := p.client.Frames(ctx)
	if err == nil {
		err = stream.Send(&agentapi.FrameBatch{Session: s})
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("the way for captured frames to %s: %w", p.node.GetName(), plain(err))
	}
	return &forwarder{stream: stream, port: port, cancel: cancel, done: make(chan struct{})}, nil
}

// run forwards until ctx or the forwarder ends.
func (f *forwarder) run(log *slog.Logger) {
	defer close(f.done)
	defer func() {
		n, err := f.port.Dropped()
		if n += uint64(f.dropped); n > 0 || err != nil {
			log.Warn("captured frames found no room", "dropped", n, "error", err)
		}
	}()
	ticks := time.NewTicker(takeEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			if err := f.take(); err != nil {
				log.Warn("captured frames are not forwarded any more", "error", err)
				return
			}
		case <-f.stream.Context().Done():
			return
		}
	}
}

func (f *forwarder) take() error {
	frames, err := f.port.Take()
	if err != nil {
		return err
	}
	for i, b := range frames {
		if f.bytes += len(b); f.bytes > maxFrameBytes {
			f.dropped += len(frames) - i
			frames = frames[:i]
			break
		}
	}
	if len(frames) == 0 {
		return nil
	}
	f.kept = append(f.kept, frames...)
	return f.stream.Send(&agentapi.FrameBatch{Frames: frames})
}

// close ends the forwarding and returns the frames that were taken.
func (f *forwarder) close() [][]byte {
	if f == nil {
		return nil
	}
	f.cancel()
	<-f.done
	return f.kept
}

// errDigest means that a copy was not made exactly; nobody votes for it.
var errDigest = errors.New("the memory of the copy differs from the original's")
