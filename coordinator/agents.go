package coordinator

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	agentapi "migrate/agent/api"
)

// pool keeps one gRPC connection to each node, by name and address.
type pool struct {
	c  Config
	mu sync.Mutex
	m  map[string]*grpc.ClientConn
}

func newPool(c Config) *pool { return &pool{c: c, m: map[string]*grpc.ClientConn{}} }

// conn is the connection to the node called name, verified by that name. It is not yet connected: calls say so.
func (p *pool) conn(name, addr string) (*grpc.ClientConn, error) {
	key := name + "@" + addr
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.m[key]; c != nil {
		return c, nil
	}
	conf, err := p.c.TLS.ClientTLS(name)
	if err != nil {
		return nil, err
	}
	c, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return p.c.Dialer(ctx, "tcp", a) }),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(agentapi.MaxMessage), grpc.MaxCallSendMsgSize(agentapi.MaxMessage)))
	if err != nil {
		return nil, fmt.Errorf("coordinator: connection to %s at %s: %w", name, addr, err)
	}
	p.m[key] = c
	return c, nil
}

// agent is a client of the agent on a node.
func (p *pool) agent(n *agentapi.NodeInfo) (agentapi.AgentClient, error) {
	c, err := p.conn(n.GetName(), n.GetControlAddress())
	if err != nil {
		return nil, err
	}
	return agentapi.NewAgentClient(c), nil
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.m {
		_ = c.Close() // it only says that it was closed before
	}
	clear(p.m)
}
