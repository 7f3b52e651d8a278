package move

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/coordinator/handoff"
)

// Peer is the service that sources call: Manager's side of it.
type Peer struct {
	agentapi.UnimplementedPeerServer
	m *Manager
}

// Peer returns the service to be registered.
func (m *Manager) Peer() *Peer { return &Peer{m: m} }

// session finds the destination that a message is for. All fields must match what this host was ordered, and the caller must be the host
// that the order has named as the source.
func (p *Peer) session(ctx context.Context, s *agentapi.Session) (*destination, error) {
	ref := handoff.Ref{Incarnation: s.GetIncarnation(), Migration: s.GetMigration(), Instance: s.GetDestinationInstance()}
	mv := p.m.find(ref, handoff.RoleDestination)
	switch {
	case mv == nil:
		return nil, refuseCall("this host is not the destination of migration %q", s.GetMigration())
	case mv.destination.id.Instance != ref.Instance:
		return nil, refuseCall("the copy here is %d and not %d", mv.destination.id.Instance, ref.Instance)
	case mv.destination.peer != s.GetSourceInstance():
		return nil, refuseCall("the source of this move is copy %d and not %d", mv.destination.peer, s.GetSourceInstance())
	}
	if caller := p.m.cfg.Caller(ctx); caller != mv.destination.from {
		p.m.cfg.Log.Warn("a call about a migration came from a host that is not its source", "migration", s.GetMigration(), "caller", caller, "source", mv.destination.from)
		return nil, status.Errorf(codes.PermissionDenied, "%s is not the source of migration %s", caller, s.GetMigration())
	}
	return mv.destination, nil
}

// PrepareFiles makes room for files.
func (p *Peer) PrepareFiles(ctx context.Context, req *agentapi.PrepareFilesRequest) (*agentapi.PrepareFilesReply, error) {
	d, err := p.session(ctx, req.GetSession())
	if err != nil {
		return nil, err
	}
	return d.prepareFiles(ctx, req)
}

// Prepare builds the skeleton.
func (p *Peer) Prepare(ctx context.Context, req *agentapi.PrepareRequest) (*agentapi.PrepareReply, error) {
	d, err := p.session(ctx, req.GetSession())
	if err != nil {
		return nil, err
	}
	return d.prepare(ctx, req)
}

// Follow changes it.
func (p *Peer) Follow(ctx context.Context, req *agentapi.FollowRequest) (*agentapi.FollowReply, error) {
	d, err := p.session(ctx, req.GetSession())
	if err != nil {
		return nil, err
	}
	return &agentapi.FollowReply{}, d.follow(ctx, req.GetLayout())
}

// maxCheckpoint bounds a checkpoint without its pages: 50,000 mappings and 10,000 descriptors take some 20 MiB.
const maxCheckpoint = 1 << 30

// Finish completes it.
func (p *Peer) Finish(stream grpc.ClientStreamingServer[agentapi.FinishPart, agentapi.FinishReply]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	h := first.GetHeader()
	d, err := p.session(stream.Context(), h.GetSession())
	if err != nil {
		return err
	}
	if h.GetCheckpointBytes() > maxCheckpoint {
		return status.Errorf(codes.InvalidArgument, "a checkpoint of %d bytes; at most %d are taken", h.GetCheckpointBytes(), maxCheckpoint)
	}
	checkpoint := append([]byte(nil), first.GetData()...)
	for uint64(len(checkpoint)) < h.GetCheckpointBytes() {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		checkpoint = append(checkpoint, part.GetData()...)
	}
	if uint64(len(checkpoint)) != h.GetCheckpointBytes() {
		return status.Errorf(codes.InvalidArgument, "%d bytes of a checkpoint of %d bytes arrived", len(checkpoint), h.GetCheckpointBytes())
	}
	reply, err := d.finish(stream.Context(), h, checkpoint)
	if err != nil {
		return err
	}
	return stream.SendAndClose(reply)
}

// Frames takes frames that arrived at the source.
func (p *Peer) Frames(stream grpc.ClientStreamingServer[agentapi.FrameBatch, agentapi.FramesReply]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	d, err := p.session(stream.Context(), first.GetSession())
	if err != nil {
		return err
	}
	var n uint64
	for batch := first; ; {
		if n, err = d.arriving.add(first.GetSession().GetAttempt(), batch.GetFrames()); err != nil {
			if _, refused := status.FromError(err); refused {
				return err
			}
			return status.Error(codes.Internal, err.Error())
		}
		if batch, err = stream.Recv(); errors.Is(err, io.EOF) {
			return stream.SendAndClose(&agentapi.FramesReply{Frames: n})
		} else if err != nil {
			return err
		}
	}
}

// Clock reads the clocks.
func (p *Peer) Clock(context.Context, *agentapi.ClockRequest) (*agentapi.ClockReply, error) {
	return &agentapi.ClockReply{MonotonicNs: int64(monotonic()), BoottimeNs: int64(Clock(unix.CLOCK_BOOTTIME)),
		RealtimeNs: int64(Clock(unix.CLOCK_REALTIME))}, nil
}

// Abort stops work on a copy that its source has given up before its vote. The copy is kept until an order destroys it.
func (p *Peer) Abort(ctx context.Context, req *agentapi.PeerAbortRequest) (*agentapi.PeerAbortReply, error) {
	d, err := p.session(ctx, req.GetSession())
	if err != nil {
		return nil, err
	}
	d.log.Info("the source has given up", "reason", req.GetReason())
	switch p.m.phaseOfDestination(d.id) {
	case handoff.DestinationExpecting, handoff.DestinationSkeleton:
		d.interrupt()
	}
	return &agentapi.PeerAbortReply{}, nil
}
