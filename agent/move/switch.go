package move

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	agentapi "migrate/agent/api"
	"migrate/coordinator/handoff"
	"migrate/engine/span"
)

// roundEnd bounds how long a freeze waits for the round that runs.
const roundEnd = 30 * time.Second

// freeze ends the copying after its round, stops the tree, and shuts its port. From here to the vote the attempt has
// its bound, and every error thaws the tree.
func (s *source) freeze(ctx context.Context) error {
	if s.copying == nil || s.tree == nil {
		return errors.New("there is nothing to switch: the tree was not being copied")
	}
	s.copying.finishRound()
	wait, cancel := context.WithTimeout(ctx, roundEnd)
	defer cancel()
	if err := s.work.wait(wait); err != nil {
		return fmt.Errorf("the last round before the freeze does not end: %w", err)
	}
	if err := s.copying.err; err != nil {
		return fmt.Errorf("the last round before the freeze: %w", err)
	}
	if err := s.senderError(); err != nil {
		return err
	}
	opts := s.opts()
	s.bound = opts.maxDowntime
	forecast, forced := s.copying.progress.last()
	if forced {
		s.bound = opts.hardLimit
	}
	if forecast.Blackout > s.bound && !opts.stop {
		return fmt.Errorf("%w of %v by now: %s", errBound, s.bound, forecast.Reason)
	}
	if err := s.shutIn(ctx); err != nil {
		return err
	}
	freeze, cancel := context.WithTimeout(ctx, s.bound)
	defer cancel()
	s.stopped, s.stoppedAt = time.Now(), monotonic()
	if err := s.tree.Freeze(freeze); err != nil {
		return fmt.Errorf("stopping the tree: %w", err)
	}
	return nil
}

// shutIn captures what arrives from now on, so that no segment is acknowledged that the state does not hold.
func (s *source) shutIn(ctx context.Context) error {
	if s.port == nil {
		return nil
	}
	var err error
	if s.neighbours, err = s.port.Neighbours(ctx); err != nil {
		return err
	}
	if err := s.port.Arm(ctx); err != nil {
		return err
	}
	s.shut = true
	if err := s.emptyQueues(ctx); err != nil {
		return err
	}
	if s.frames, err = s.peer.forward(s.ctx, s.port, s.session(s.loop.state.Ref.Attempt)); err != nil {
		return err
	}
	s.m.tasks.Go(func() { s.frames.run(s.log) })
	if err := s.port.ShutIngress(); err != nil {
		return fmt.Errorf("shutting the tree's port: %w", err)
	}
	return nil
}

const (
	// queueTime is how long the program gets to accept the connections that wait for it.
	queueTime = 50 * time.Millisecond
	queueLook = time.Millisecond
)

// emptyQueues keeps new connections out, the program still running, until it has accepted those that wait. Their first
// segments are captured. What is not accepted in time is left to the freeze, which refuses it.
func (s *source) emptyQueues(ctx context.Context) error {
	if err := s.port.ShutNew(); err != nil {
		return fmt.Errorf("shutting the tree's port to new connections: %w", err)
	}
	for end := time.Now().Add(queueTime); ; {
		n, err := s.tree.Pending(ctx)
		if err != nil || n == 0 || time.Now().After(end) {
			return err
		}
		if !pause(ctx, queueLook) { // the kernel tells nobody that a queue has become empty
			return context.Cause(ctx)
		}
	}
}

// finish sends the rest and has the destination complete its copy. It runs beside the loop, so that an order can end it.
func (s *source) finish(ctx context.Context, attempt uint32) {
	bounded, cancel := context.WithDeadlineCause(ctx, s.stopped.Add(s.bound), fmt.Errorf("%w of %v", errBound, s.bound))
	defer cancel()
	hash, err := s.final(bounded, attempt)
	if err != nil {
		if c := context.Cause(bounded); c != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w (%w)", c, err)
		}
		s.attemptFailed(err)
		s.fault(ctx, err)
		return
	}
	s.loop.post(ctx, handoff.SourceEvent{Kind: handoff.SourceFinished, Ref: withAttempt(s.id, attempt), Hash: hash})
}

func withAttempt(r handoff.Ref, k uint32) handoff.Ref { r.Attempt = k; return r }

func (s *source) final(ctx context.Context, attempt uint32) (handoff.Hash, error) {
	start, rec := time.Now(), span.New(s.stopped)
	rec.Add("freeze", s.stopped, start.Sub(s.stopped))
	ctx = span.With(ctx, rec)
	defer func() { s.copying.progress.took(stepsOf(rec, s.m.cfg.Node)) }()
	if err := span.Do(ctx, "layout", func(ctx context.Context) error { return s.follow(ctx, attempt) }); err != nil {
		return "", err
	}
	p := s.copying.progress
	p.begin(start, 0)
	awaitFiles, err := s.lastFiles(ctx)
	if err != nil {
		return "", err
	}
	checkpoint, stats, err := s.tree.Final(ctx, p.counting(s.sender))
	if ferr := awaitFiles(); ferr != nil || err != nil {
		return "", errors.Join(ferr, s.better(err))
	}
	if s.port != nil { // until the sockets are saved and in repair, their acknowledgements may leave
		if err := s.port.ShutEgress(); err != nil {
			return "", fmt.Errorf("shutting the tree's port: %w", err)
		}
	}
	err = span.Do(ctx, "flush", func(ctx context.Context) error {
		_, err := s.sender.Flush(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	p.end(stats, time.Since(start), s.sender.Stats(), true)

	// While the destination completes its copy, this one is put under its lock and hashed.
	var digest []byte
	var reply *agentapi.FinishReply
	both, bctx := errgroup.WithContext(ctx)
	both.Go(func() error {
		return span.Do(bctx, "completed there", func(ctx context.Context) (err error) {
			reply, err = s.sendCheckpoint(ctx, attempt, checkpoint)
			return err
		})
	})
	both.Go(func() (err error) {
		_, end := span.Begin(bctx, "hold")
		defer end()
		if digest, err = s.tree.Digest(bctx); err != nil {
			return err
		}
		return s.tree.Hold(bctx)
	})
	if err := both.Wait(); err != nil {
		return "", err
	}
	s.log.Info("frozen", "attempt", attempt, "checkpoint_bytes", len(checkpoint))
	hash := stateHash(checkpoint, digest)
	if !bytes.Equal(digest, reply.GetDigest()) || !bytes.Equal([]byte(hash), reply.GetHash()) {
		return "", fmt.Errorf("%w: here %x, at %s %x", errDigest, digest, s.peerNode.GetName(), reply.GetDigest())
	}
	c := s.copying // a later stretch has one of its own
	c.progress.took(stepsOf(rec, s.m.cfg.Node))
	s.m.tasks.Go(func() { s.tellOnce(s.ctx, c) })
	return hash, nil
}

// stateHash is what the votes agree on: the whole state, and the digest of all memory.
func stateHash(checkpoint, digest []byte) handoff.Hash {
	h := xxh3.New()
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(checkpoint)))) // a hash takes all
	_, _ = h.Write(checkpoint)
	_, _ = h.Write(digest)
	sum := h.Sum128().Bytes()
	return handoff.Hash(sum[:])
}

// finishExtra is what agents tell each other beside the checkpoint.
type finishExtra struct {
	Neighbours []byte        `json:"neighbours,omitempty"`
	Quiet      time.Duration `json:"quiet"` // without frames, after which none are taken to be under way
	Timeouts   []Timeouts    `json:"timeouts,omitempty"`
}

// quietTime is how long the destination waits for one more captured frame before it lets others in: a few times what
// the source takes to read its capture. A frame that comes later is overtaken, which TCP survives.
const quietTime = 2 * time.Millisecond

// sendCheckpoint streams the state and waits until the destination is complete and stopped.
func (s *source) sendCheckpoint(ctx context.Context, attempt uint32, checkpoint []byte) (*agentapi.FinishReply, error) {
	s.spent = true
	stream, err := s.peer.client.Finish(ctx)
	if err != nil {
		return nil, fmt.Errorf("completing the copy on %s: %w", s.peerNode.GetName(), plain(err))
	}
	extra, err := json.Marshal(finishExtra{Neighbours: s.neighbours, Quiet: quietTime + 4*s.clock.err, Timeouts: s.tree.Timeouts()})
	if err != nil {
		return nil, err
	}
	add := s.clock.add
	part := &agentapi.FinishPart{Header: &agentapi.FinishHeader{
		Session: s.session(attempt), CheckpointBytes: uint64(len(checkpoint)), StoppedAtNs: int64(s.stoppedAt + add),
		DeadlineNs: int64(s.stoppedAt + s.bound + add), Extra: extra,
	}}
	for rest := checkpoint; ; part = new(agentapi.FinishPart) {
		n := min(len(rest), agentapi.FinishPartBytes)
		part.Data, rest = rest[:n], rest[n:]
		if err := stream.Send(part); err != nil {
			if errors.Is(err, io.EOF) {
				break // the reason is in the answer
			}
			return nil, fmt.Errorf("completing the copy on %s: %w", s.peerNode.GetName(), plain(err))
		}
		if len(rest) == 0 {
			break
		}
	}
	reply, err := stream.CloseAndRecv()
	if err != nil {
		return nil, fmt.Errorf("%s could not complete the copy: %w", s.peerNode.GetName(), plain(err))
	}
	return reply, nil
}
