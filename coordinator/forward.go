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
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

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

// repeatWait is how long a call that met a change of the leader is made again, for those that may be.
const repeatWait = 10 * time.Second

// once are the calls whose repetition could do or tell something twice.
var once = map[string]bool{"Resolve": true, "Logs": true, "Events": true}

// repeat makes a call, and makes it again when the leader was lost in the middle: callers need not know of elections.
// A call that another server forwarded is not repeated here, but there.
func (s *Server) repeat(ctx context.Context, method string, call func(conn *grpc.ClientConn, ctx context.Context) error) error {
	begin := time.Now()
	for {
		conn, leader, err := s.toLeader(ctx)
		if err != nil {
			return err
		}
		if conn == nil {
			err = asStatus(call(nil, ctx))
		} else {
			under, cancel := s.whileLeading(s.forwarding(ctx), leader)
			err = call(conn, under)
			if err != nil && under.Err() != nil && ctx.Err() == nil {
				err = status.Errorf(codes.Unavailable, "%s does not lead any more", leader)
			}
			cancel()
		}
		if status.Code(err) != codes.Unavailable || once[path.Base(method)] || isForwarded(ctx) || ctx.Err() != nil || time.Since(begin) > repeatWait {
			return err
		}
		s.c.Log.Debug("call again", "method", method, "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond): // a server that has just lost its leader may not know yet
		}
	}
}

// whileLeading is ctx until another server leads, or none: one that is stopped or cut off does not say so itself.
func (s *Server) whileLeading(ctx context.Context, leader string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the call, whose caller always cancels
		for {
			changed := s.leadershipChanged()
			if s.Leader() != leader {
				cancel()
			}
			select {
			case <-ctx.Done():
				return
			case <-s.ctx.Done():
				cancel()
			case <-changed:
			}
		}
	}()
	return ctx, cancel
}

// unary handles a call here if this server leads, and forwards it otherwise.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	client.Identify(req)
	if err := admit(ctx, info.FullMethod, nil); err != nil {
		return nil, err
	}
	var reply any
	err := s.repeat(ctx, info.FullMethod, func(conn *grpc.ClientConn, ctx2 context.Context) (err error) {
		if conn == nil {
			if err := s.admitHere(ctx2, info.FullMethod, req); err != nil {
				return err
			}
			reply, err = next(ctx2, req)
			return err
		}
		_, out, err := types(info.FullMethod)
		if err != nil {
			return err
		}
		reply = out
		if err := conn.Invoke(ctx2, info.FullMethod, req, out); err != nil {
			return err
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs(client.LeaderHeader, s.Leader())); err != nil {
			s.c.Log.Debug("the client will not learn who leads", "error", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

func (s *Server) stream(srv any, st grpc.ServerStream, method string, handler grpc.StreamHandler) error {
	in, _, err := types(method)
	if err != nil {
		return err
	}
	if err := admit(st.Context(), method, nil); err != nil {
		return err
	}
	if err := st.RecvMsg(in); err != nil {
		return err
	}
	return s.repeat(st.Context(), method, func(conn *grpc.ClientConn, ctx context.Context) error {
		if conn == nil {
			if err := s.admitHere(ctx, method, in); err != nil {
				return err
			}
			return handler(srv, &received{ServerStream: st, msg: in})
		}
		return forwardStream(ctx, conn, method, in, st)
	})
}

// received is a stream whose one request was read already.
type received struct {
	grpc.ServerStream
	msg proto.Message
}

// RecvMsg gives the request once.
func (r *received) RecvMsg(m any) error {
	to, ok := m.(proto.Message)
	if !ok || r.msg == nil {
		return io.EOF
	}
	proto.Merge(to, r.msg)
	r.msg = nil
	return nil
}

func forwardStream(ctx context.Context, conn *grpc.ClientConn, method string, in proto.Message, st grpc.ServerStream) error {
	_, out, err := types(method)
	if err != nil {
		return err
	}
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
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

// toLeader is the connection to the leader and its name, or nil if this server leads and has applied all that was
// decided before.
func (s *Server) toLeader(ctx context.Context) (*grpc.ClientConn, string, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	for {
		changed := s.leadershipChanged()
		if s.term() != nil {
			return nil, s.c.Name, nil
		}
		leader := s.Leader()
		if host, ok := s.host(leader); ok && leader != s.c.Name {
			if isForwarded(ctx) {
				return nil, "", status.Errorf(codes.Unavailable, "%s does not lead any more; %s does", s.c.Name, leader)
			}
			conn, err := s.agents.conn(leader, hostPort(host, s.c.Ports.Control))
			return conn, leader, err
		}
		select {
		case <-ctx.Done():
			return nil, "", status.Error(codes.Unavailable, "the cluster has no leader at present; most of its servers must be up")
		case <-changed:
		}
	}
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
