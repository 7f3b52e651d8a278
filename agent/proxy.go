package agent

import (
	"errors"
	"fmt"
	"io"

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

// pass handles calls of services that the local socket does not serve itself: those of Cluster go to a server of the
// cluster, message by message, without being looked at.
func (a *Agent) pass(_ any, in grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(in)
	if !ok || !ofService(method, clusterapi.Cluster_ServiceDesc.ServiceName) {
		return status.Errorf(codes.Unimplemented, "the agent's socket does not serve %s", method)
	}
	md, _ := metadata.FromIncomingContext(in.Context())
	ctx := metadata.NewOutgoingContext(in.Context(), md.Copy())
	out, err := a.cluster.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodecV2(newPassing()))
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { // ends with in's context at the latest
		sent <- copyMessages(out.SendMsg, in.RecvMsg)
		_ = out.CloseSend() // its error is that of the receiving side
	}()
	err = copyMessages(in.SendMsg, out.RecvMsg)
	in.SetTrailer(out.Trailer())
	if err == nil {
		return nil
	}
	select {
	case e := <-sent:
		if e != nil && !errors.Is(e, io.EOF) {
			return fmt.Errorf("passing on a request: %w", e)
		}
	default:
	}
	return err
}

// copyMessages passes messages on until there are no more (nil).
func copyMessages(send, receive func(any) error) error {
	for {
		m := &message{}
		if err := receive(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := send(m); err != nil {
			return err
		}
	}
}
