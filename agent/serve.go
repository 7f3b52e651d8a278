package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/pki"
)

// ofService says whether a full method name is of the service.
func ofService(method, service string) bool { return strings.HasPrefix(method, "/"+service+"/") }

// allowed are the roles that may call a service on the control port. Cluster looks at each method itself (coordinator/access.go).
var allowed = map[string][]pki.Role{
	agentapi.Agent_ServiceDesc.ServiceName:     {pki.RoleServer},
	agentapi.Peer_ServiceDesc.ServiceName:      {pki.RoleNode, pki.RoleServer},
	clusterapi.Cluster_ServiceDesc.ServiceName: {pki.RoleNode, pki.RoleServer, pki.RoleOperator, pki.RoleViewer},
}

// caller is who calls, by the certificate that the connection has shown.
func caller(ctx context.Context) (pki.Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.Identity{}, errors.New("the caller is unknown")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return pki.Identity{}, errors.New("the connection is not encrypted")
	}
	return pki.PeerIdentity(info.State)
}

// callerName is the name of the caller; "" if it has none.
func callerName(ctx context.Context) string {
	id, err := caller(ctx)
	if err != nil {
		return ""
	}
	return id.Name
}

// authorize checks who calls.
func authorize(ctx context.Context, method string) error {
	id, err := caller(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if method == agentapi.Peer_Attach_FullMethodName && !id.Has(pki.RoleServer) {
		return status.Errorf(codes.PermissionDenied, "%s is a node, which reaches the terminals and the output of what is on it alone; do this on a server of the cluster", id.Name)
	}
	for service, roles := range allowed {
		if ofService(method, service) && id.Has(roles...) {
			return nil
		}
	}
	return status.Errorf(codes.PermissionDenied, "%s, with roles %v, may not call %s", id.Name, id.Roles, method)
}

func authorizeUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := authorize(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func authorizeStream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := authorize(s.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, s)
}

// listen opens the three listeners and serves on them.
func (a *Agent) listen() error {
	var lc net.ListenConfig
	control, err := lc.Listen(a.ctx, "tcp", a.cfg.address(a.cfg.ControlPort))
	if err != nil {
		return fmt.Errorf("the control port: %w", err)
	}
	pages, err := lc.Listen(a.ctx, "tcp", a.cfg.address(a.cfg.PagesPort))
	if err != nil {
		return errors.Join(fmt.Errorf("the pages port: %w", err), control.Close())
	}
	socket, err := listenSocket(a.ctx, a.cfg.Socket)
	if err != nil {
		return errors.Join(err, control.Close(), pages.Close())
	}
	size := []grpc.ServerOption{grpc.MaxRecvMsgSize(agentapi.MaxMessage), grpc.MaxSendMsgSize(agentapi.MaxMessage)}
	a.control = grpc.NewServer(append(size, grpc.Creds(credentials.NewTLS(a.cfg.Credentials.ServerTLS())),
		grpc.UnaryInterceptor(authorizeUnary), grpc.StreamInterceptor(authorizeStream))...)
	agentapi.RegisterAgentServer(a.control, a)
	agentapi.RegisterPeerServer(a.control, peerServer{a.moves.Peer(), a})
	if a.cfg.Register != nil {
		a.cfg.Register(a.control)
	}
	a.local = grpc.NewServer(append(size, grpc.ForceServerCodecV2(newPassing()), grpc.UnknownServiceHandler(a.pass),
		grpc.UnaryInterceptor(localUnary))...)
	agentapi.RegisterAgentServer(a.local, a)
	a.pages = pages
	a.tasks.Go(func() { a.report("control port", a.control.Serve(control)) })
	a.tasks.Go(func() { a.report("local socket", a.local.Serve(socket)) })
	a.tasks.Go(func() { a.servePages(pages) })
	return nil
}

// localUnary keeps orders of handoffs to the leader: the local command asks the cluster instead.
func localUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if info.FullMethod != agentapi.Agent_LocalInfo_FullMethodName {
		return nil, status.Errorf(codes.PermissionDenied, "%s is for the servers of the cluster alone", info.FullMethod)
	}
	return next(ctx, req)
}

// listenSocket listens on a unix socket that only its owner may use. One that a dead agent left is replaced.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("another agent listens on %s", path), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Bound under another name first, so that nobody can connect before the mode is set.
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("the agent's socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("the agent's socket: %w", err), l.Close())
	}
	return l, nil
}

// report logs why a listener has ended, unless the agent ended it.
func (a *Agent) report(what string, err error) {
	if err != nil && a.ctx.Err() == nil {
		a.log.Error("a listener has ended", "listener", what, "error", err)
	}
}

// servePages accepts page connections until the listener is closed.
func (a *Agent) servePages(l net.Listener) {
	conf := a.cfg.Credentials.ServerTLS()
	for {
		c, err := l.Accept()
		if err != nil {
			a.report("pages port", err)
			return
		}
		a.tasks.Go(func() {
			if err := a.servePage(tls.Server(c, conf)); err != nil && a.ctx.Err() == nil {
				a.log.Info("a page connection has ended", "peer", c.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// handshakeTime bounds how long a client of the pages port may take to say who it is.
const handshakeTime = 10 * time.Second

func (a *Agent) servePage(c *tls.Conn) error {
	ctx, cancel := context.WithTimeout(a.ctx, handshakeTime)
	defer cancel()
	err := c.HandshakeContext(ctx)
	var id pki.Identity
	if err == nil {
		id, err = pki.PeerIdentity(c.ConnectionState())
	}
	if err == nil && !id.Has(pki.RoleNode, pki.RoleServer) {
		err = fmt.Errorf("%s, with roles %v, may not send pages", id.Name, id.Roles)
	}
	if err != nil {
		return errors.Join(err, c.Close())
	}
	return a.moves.ServePages(a.ctx, c)
}

// peers opens connections to other agents.
type peers struct{ cfg *Config }

// Dial connects to the agent of a node.
func (p peers) Dial(_ context.Context, n *agentapi.NodeInfo) (agentapi.PeerClient, func() error, error) {
	conn, err := dial(p.cfg.Credentials, n.GetName(), n.GetControlAddress())
	if err != nil {
		return nil, nil, err
	}
	return agentapi.NewPeerClient(conn), conn.Close, nil
}

// DialPages connects to the page stream of a node.
func (p peers) DialPages(ctx context.Context, n *agentapi.NodeInfo, address string) (net.Conn, error) {
	conf, err := p.cfg.Credentials.ClientTLS(n.GetName())
	if err != nil {
		return nil, err
	}
	conf.DynamicRecordSizingDisabled = true // from the first byte on, records are as large as they can be
	c, err := dialTCP(ctx, address)
	if err != nil {
		return nil, err
	}
	t := tls.Client(c, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("pages port of %s at %s: %w", n.GetName(), address, err), c.Close())
	}
	return t, nil
}
