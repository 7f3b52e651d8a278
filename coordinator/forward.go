package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/pki"
)

// Metadata of a forwarded call: who called first, as the forwarding server has verified it.
const forwardedFor = "migrate-forwarded-for"

// leaderWait is how long a call waits for a leader to be there. An election takes less.
const leaderWait = 3 * time.Second

// Register adds service Cluster to a gRPC server. Calls go to the leader, whichever server they reach: each handler
// of the generated description is wrapped, inside of the interceptors that the gRPC server has.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	desc := clusterapi.Cluster_ServiceDesc
	desc.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range desc.Methods {
		handler := desc.Methods[i].Handler
		desc.Methods[i].Handler = func(srv any, ctx context.Context, dec func(any) error, outer grpc.UnaryServerInterceptor) (any, error) {
			return handler(srv, ctx, dec, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
				inner := func(ctx context.Context, req any) (any, error) { return s.unary(ctx, req, info, next) }
				if outer == nil {
					return inner(ctx, req)
				}
				return outer(ctx, req, info, inner)
			})
		}
	}
	desc.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	for i := range desc.Streams {
		handler, method := desc.Streams[i].Handler, "/"+desc.ServiceName+"/"+desc.Streams[i].StreamName
		desc.Streams[i].Handler = func(srv any, st grpc.ServerStream) error { return s.stream(srv, st, method, handler) }
	}
	to.RegisterService(&desc, &service{s: s})
}

// unary handles a call here if this server leads, and forwards it otherwise. Losing the leadership on the way is
// UNAVAILABLE, so that the client may ask again.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	conn, err := s.toLeader(ctx)
	if err != nil {
		return nil, err
	}
	if conn == nil {
		reply, err := next(ctx, req)
		return reply, asStatus(err)
	}
	_, out, err := types(info.FullMethod)
	if err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(client.LeaderHeader, s.Leader())); err != nil {
		s.c.Log.Debug("the client will not learn who leads", "error", err)
	}
	return out, conn.Invoke(s.forwarding(ctx), info.FullMethod, req, out)
}

func (s *Server) stream(srv any, st grpc.ServerStream, method string, handler grpc.StreamHandler) error {
	conn, err := s.toLeader(st.Context())
	if err != nil {
		return err
	}
	if conn == nil {
		return asStatus(handler(srv, st))
	}
	in, out, err := types(method)
	if err != nil {
		return err
	}
	if err := st.RecvMsg(in); err != nil {
		return err
	}
	up, err := conn.NewStream(s.forwarding(st.Context()), &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := up.SendMsg(in); err != nil && !errors.Is(err, io.EOF) { // after io.EOF the reason is in RecvMsg
		return err
	}
	if err := up.CloseSend(); err != nil {
		return err
	}
	for {
		if err := up.RecvMsg(out); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := st.SendMsg(out); err != nil {
			return err
		}
		proto.Reset(out)
	}
}

// toLeader is the connection to the leader, or nil if this server leads and has applied all that was decided before.
func (s *Server) toLeader(ctx context.Context) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	for {
		changed := s.leadershipChanged()
		if s.term() != nil {
			return nil, nil
		}
		_, id := s.node.raft.LeaderWithID()
		if host, ok := s.c.host(string(id)); ok && string(id) != s.c.Name {
			if isForwarded(ctx) {
				return nil, status.Errorf(codes.Unavailable, "%s does not lead any more; %s does", s.c.Name, id)
			}
			return s.agents.conn(string(id), hostPort(host, s.c.Ports.Control))
		}
		select {
		case <-ctx.Done():
			return nil, status.Error(codes.Unavailable, "the cluster has no leader at present; most of its servers must be up")
		case <-changed:
		case <-time.After(50 * time.Millisecond): // raft has no event for "another server leads" that is not lossy
		}
	}
}

func isForwarded(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(forwardedFor)) > 0
}

func (s *Server) forwarding(ctx context.Context) context.Context {
	name, _ := caller(ctx)
	return metadata.AppendToOutgoingContext(ctx, forwardedFor, name)
}

// caller is the verified name of whoever called first; false for one that came without TLS, which is local.
func caller(ctx context.Context) (string, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", false
	}
	id, err := pki.PeerIdentity(info.State)
	if err != nil {
		return "", false
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if f := md.Get(forwardedFor); len(f) == 1 && id.Has(pki.RoleServer) && f[0] != "" {
		return f[0], true
	}
	return id.Name, true
}

// types makes the messages of a method.
func types(method string) (in, out proto.Message, err error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(clusterapi.Cluster_ServiceDesc.ServiceName))
	if err != nil {
		return nil, nil, status.Error(codes.Internal, err.Error())
	}
	sd, ok := d.(protoreflect.ServiceDescriptor)
	var m protoreflect.MethodDescriptor
	if ok {
		m = sd.Methods().ByName(protoreflect.Name(path.Base(method)))
	}
	if m == nil {
		return nil, nil, status.Errorf(codes.Unimplemented, "no method %s", method)
	}
	var msgs [2]proto.Message
	for i, md := range []protoreflect.MessageDescriptor{m.Input(), m.Output()} {
		t, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
		if err != nil {
			return nil, nil, status.Error(codes.Internal, fmt.Sprintf("message %s: %v", md.FullName(), err))
		}
		msgs[i] = t.New().Interface()
	}
	return msgs[0], msgs[1], nil
}
