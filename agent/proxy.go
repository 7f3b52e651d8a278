package agent

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"

	_ "google.golang.org/grpc/encoding/proto" // the codec that passing wraps
)

// message is an encoded message on its way through.
type message struct{ data mem.BufferSlice }

// passing is the usual codec, but hands a *message on as it is.
type passing struct{ encoding.CodecV2 }

func newPassing() passing { return passing{encoding.GetCodecV2("proto")} }

func (p passing) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*message); ok {
		m.data.Ref() // the caller gives a reference back, and a request may be sent again
		return m.data, nil
	}
	return p.CodecV2.Marshal(v)
}

func (p passing) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*message); ok {
		data.Ref() // the caller gives its own reference back
		m.data = data
		return nil
	}
	return p.CodecV2.Unmarshal(data, v)
}

// patience is how long a call waits for a server that answers, counted from the last answer: an election takes less.
const patience = 15 * time.Second

// pass handles calls of services that the local socket does not serve itself: those of Cluster go to a server of the
// cluster without being looked at. While no server answers, as during a change of leader, the call is made again: all
// calls of Cluster but Resolve may be. A watch is taken up again where it broke off, for it begins with the present state.
func (a *Agent) pass(_ any, in grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(in)
	if !ok || !ofService(method, clusterapi.Cluster_ServiceDesc.ServiceName) {
		return status.Errorf(codes.Unimplemented, "the agent's socket does not serve %s", method)
	}
	req := &message{}
	if err := in.RecvMsg(req); err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(in.Context())
	ctx := metadata.NewOutgoingContext(in.Context(), md.Copy())
	heard := time.Now()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		n, err := a.passOnce(ctx, method, req, in)
		if n > 0 {
			heard, wait = time.Now(), 50*time.Millisecond
		}
		again := method != clusterapi.Cluster_Resolve_FullMethodName && (n == 0 || method == clusterapi.Cluster_WatchMigration_FullMethodName)
		if !unreachable(err) || !again || time.Since(heard) > patience {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// passOnce makes the call once and returns how many answers it has passed back.
func (a *Agent) passOnce(ctx context.Context, method string, req *message, in grpc.ServerStream) (n int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := a.cluster.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodecV2(newPassing()))
	if err != nil {
		return 0, err
	}
	if err := out.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if err := out.CloseSend(); err != nil {
		return 0, err
	}
	for {
		m := &message{}
		if err := out.RecvMsg(m); errors.Is(err, io.EOF) {
			in.SetTrailer(out.Trailer())
			return n, nil
		} else if err != nil {
			if unreachable(err) {
				a.cluster.next()
			}
			return n, err
		}
		if err := in.SendMsg(m); err != nil {
			return n, err
		}
		n++
	}
}
