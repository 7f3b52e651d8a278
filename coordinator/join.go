package coordinator

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/pki"
)

// DefaultJoinPort is where the server that holds the authority takes hosts in that have no certificate yet.
const DefaultJoinPort = 7405

// maxTTL bounds how long a token is good for.
const maxTTL = 30 * 24 * time.Hour

// maxJoin bounds a message of a host that nobody knows, in bytes.
const maxJoin = 16 << 10

// CreateToken is Cluster's.
func (v *service) CreateToken(_ context.Context, req *clusterapi.CreateTokenRequest) (*clusterapi.CreateTokenReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	ttl := time.Duration(req.GetTtlNs())
	if ttl <= 0 || ttl > maxTTL {
		return nil, status.Errorf(codes.InvalidArgument, "a token is good for some time up to %v, not for %v", maxTTL, ttl)
	}
	c, ok := v.s.c.TLS.(*pki.Credentials)
	if !ok {
		return nil, status.Error(codes.FailedPrecondition, "this cluster has no authority of its own")
	}
	expires := time.Now().Add(ttl).UnixNano()
	if _, err := t.apply(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{
		Token: &logpb.Token{Hash: req.GetHash(), Server: req.GetServer(), ExpiresUnixNs: expires}}}}); err != nil {
		return nil, err
	}
	return &clusterapi.CreateTokenReply{Fingerprint: pki.Fingerprint(c.CA), ExpiresUnixNs: expires}, nil
}

// RedeemToken is Cluster's.
func (v *service) RedeemToken(_ context.Context, req *clusterapi.RedeemTokenRequest) (*clusterapi.RedeemTokenReply, error) {
	t, err := v.term()
	if err != nil {
		return nil, err
	}
	if _, ok := v.s.c.host(req.GetName()); ok {
		return nil, status.Errorf(codes.AlreadyExists, "a server of the cluster is named %q; give this host another name with --name", req.GetName())
	}
	m := &logpb.Member{Name: req.GetName(), Host: req.GetHost(), Server: req.GetServer(), KeyHash: req.GetKeyHash()}
	c := &logpb.RedeemToken{Hash: req.GetHash(), Member: m}
	v.s.node.store.Read(func(st *fsm.State) { err = st.RefusesToken(c, time.Now().UnixNano()) })
	if err != nil {
		return nil, err
	}
	if _, err := t.apply(&logpb.Command{Command: &logpb.Command_RedeemToken{RedeemToken: c}}); err != nil {
		return nil, err
	}
	out := &clusterapi.RedeemTokenReply{}
	for _, p := range v.s.peers() {
		if p.name != req.GetName() {
			out.Servers = append(out.Servers, p.name+"="+p.host)
		}
	}
	return out, nil
}

// peers is the servers of the configuration and those that have joined since.
func (s *Server) peers() []voter { return known(s.c, s.node.store) }

// host is where a server listens.
func (s *Server) host(name string) (string, bool) {
	for _, p := range s.peers() {
		if p.name == name {
			return p.host, true
		}
	}
	return "", false
}

func known(c Config, store *fsm.Store) []voter {
	out := c.peers()
	store.Read(func(st *fsm.State) {
		for name, m := range st.Members {
			if _, ok := c.host(name); !ok && m.GetServer() {
				out = append(out, voter{name, m.GetHost()})
			}
		}
	})
	return out
}

// promote makes a server that has joined, and whose agent has been heard, a voter of the cluster: before it is there, its
// vote would only be missing.
func (t *term) promote(name string) {
	var m *logpb.Member
	t.s.node.store.Read(func(st *fsm.State) { m = st.Members[name] })
	if !m.GetServer() {
		return
	}
	f := t.s.node.raft.GetConfiguration()
	if f.Error() != nil {
		return // the next heartbeat comes in a second
	}
	for _, s := range f.Configuration().Servers {
		if string(s.ID) == name {
			return
		}
	}
	addr := voter{name, m.GetHost()}.addr(t.s.c.Ports.Raft)
	if err := t.s.node.raft.AddVoter(raft.ServerID(name), raft.ServerAddress(addr), f.Index(), proposeTimeout).Error(); err != nil {
		t.s.c.Log.Warn("a server that has joined is no voter yet", "name", name, "error", err)
		return
	}
	t.s.c.Log.Info("a server that has joined votes now", "name", name, "address", addr)
}

// enrolment takes hosts in that have no certificate yet.
type enrolment struct {
	clusterapi.UnimplementedEnrolmentServer
	s *Server
}

// listenJoin serves Enrolment, if the authority is here.
func (s *Server) listenJoin() error {
	if s.c.Authority == nil {
		return nil
	}
	c, ok := s.c.TLS.(*pki.Credentials)
	if !ok {
		return errors.New("coordinator: the authority signs for the cluster of its own certificates only")
	}
	addr := hostPort(s.c.Bind, s.c.Ports.Join)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("coordinator: listen for hosts that join on %s: %w", addr, err)
	}
	s.join = grpc.NewServer(grpc.Creds(credentials.NewTLS(c.JoinTLS())), grpc.MaxRecvMsgSize(maxJoin), grpc.ConnectionTimeout(10*time.Second))
	clusterapi.RegisterEnrolmentServer(s.join, &enrolment{s: s})
	s.wg.Go(func() {
		if err := s.join.Serve(l); err != nil && s.ctx.Err() == nil {
			s.c.Log.Error("hosts can no longer join here", "error", err)
		}
	})
	return nil
}

// Join is Enrolment's.
func (e *enrolment) Join(ctx context.Context, req *clusterapi.JoinRequest) (*clusterapi.JoinReply, error) {
	s := e.s
	csr, err := x509.ParseCertificateRequest(req.GetRequest())
	if err == nil {
		err = pki.CheckRequest(csr)
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the signing request: %v", err)
	}
	hash, key := sha256.Sum256(req.GetSecret()), sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	redeemed, err := s.redeem(ctx, &clusterapi.RedeemTokenRequest{Hash: hash[:], Name: csr.Subject.CommonName, Host: csr.IPAddresses[0].String(),
		Server: req.GetServer(), KeyHash: key[:]})
	if err != nil {
		s.c.Log.Warn("a host was not let in", "name", csr.Subject.CommonName, "address", csr.IPAddresses[0], "error", err)
		return nil, err
	}
	roles := []pki.Role{pki.RoleNode}
	if req.GetServer() {
		roles = append(roles, pki.RoleServer)
	}
	cert, err := s.c.Authority.Sign(csr, roles...)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	s.c.Log.Info("a host has joined", "name", csr.Subject.CommonName, "address", csr.IPAddresses[0], "server", req.GetServer(), "serial", cert.SerialNumber)
	return &clusterapi.JoinReply{Certificate: cert.Raw, Authority: s.c.Authority.Certificate().Raw, Servers: redeemed.GetServers(),
		ControlPort: uint32(s.c.Ports.Control), PagesPort: uint32(s.c.PagesPort), RaftPort: uint32(s.c.Ports.Raft), GossipPort: uint32(s.c.Ports.Gossip)}, nil
}

// redeem asks the leader, which may be this server, and again while it changes.
func (s *Server) redeem(ctx context.Context, req *clusterapi.RedeemTokenRequest) (out *clusterapi.RedeemTokenReply, err error) {
	err = s.repeat(ctx, clusterapi.Cluster_RedeemToken_FullMethodName, func(conn *grpc.ClientConn, ctx context.Context) (err error) {
		if conn == nil {
			out, err = (&service{s: s}).RedeemToken(ctx, req)
		} else {
			out, err = clusterapi.NewClusterClient(conn).RedeemToken(ctx, req)
		}
		return err
	})
	return out, err
}
