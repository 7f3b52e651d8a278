// Package client is a connection to a cluster: to any of its servers, whichever answers. Servers forward to the leader
// and say who that is, so that the next call goes there and saves the detour.
//
// A Conn is a grpc.ClientConnInterface. A call that finds a server unreachable, or the cluster without a leader
// (UNAVAILABLE), is made again at the next server until its context ends, if repeating it is harmless: reads, reports
// and orders that the cluster recognises. Run and Move get a request id for that. Resolve is never repeated.
package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
)

// Server is one server of the cluster: its name, as in its certificate, and host:port of its control port.
type Server struct{ Name, Address string }

// Config is what Dial needs. TLS gives the configuration for a server's name; Dialer nil is net.Dialer's.
type Config struct {
	Servers []Server
	TLS     func(serverName string) (*tls.Config, error)
	Dialer  func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Conn is a connection to a cluster. Its methods may be used by many goroutines. Close ends it.
type Conn struct {
	servers []Server
	conns   []*grpc.ClientConn

	mu     sync.Mutex
	good   int         // the server that answered last, or the leader
	failed []time.Time // when each server did not answer
}

// LeaderHeader is in the answers that a server has forwarded: the name of the leader.
const LeaderHeader = "migrate-leader"

// shun is how long a server that did not answer is not gone back to for being the leader: this client may be cut off
// from it while others are not.
const shun = 30 * time.Second

// Times of one try. A server that is cut off does not say so.
const (
	connectTimeout = time.Second
	tryTimeout     = 2500 * time.Millisecond
	pause          = 50 * time.Millisecond // between rounds over all servers, doubled up to maxPause
	maxPause       = 500 * time.Millisecond
)

// Dial makes a Conn. It connects when it is used.
func Dial(c Config) (*Conn, error) {
	if len(c.Servers) == 0 {
		return nil, errors.New("client: a cluster has at least one server")
	}
	if c.Dialer == nil {
		c.Dialer = new(net.Dialer).DialContext
	}
	out := &Conn{servers: c.Servers, failed: make([]time.Time, len(c.Servers))}
	for _, s := range c.Servers {
		conf, err := c.TLS(s.Name)
		if err != nil {
			return nil, errors.Join(err, out.Close())
		}
		cc, err := grpc.NewClient("passthrough:///"+s.Address,
			grpc.WithTransportCredentials(credentials.NewTLS(conf)),
			grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return c.Dialer(ctx, "tcp", a) }),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout,
				Backoff: backoff.Config{BaseDelay: pause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(agentapi.MaxMessage), grpc.MaxCallSendMsgSize(agentapi.MaxMessage)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("client: server %s at %s: %w", s.Name, s.Address, err), out.Close())
		}
		out.conns = append(out.conns, cc)
	}
	return out, nil
}

// Cluster is the generated client over this connection.
func (c *Conn) Cluster() clusterapi.ClusterClient { return clusterapi.NewClusterClient(c) }

// Close ends all connections.
func (c *Conn) Close() error {
	var errs []error
	for _, cc := range c.conns {
		errs = append(errs, cc.Close())
	}
	return errors.Join(errs...)
}

// once are the methods that must not be repeated: a lost answer may be that of a call that was carried out.
var once = map[string]bool{"Resolve": true}

// long are the methods whose answer may take its time; the others are tried at another server after tryTimeout.
var long = map[string]bool{"Run": true, "Stop": true, "Plan": true, "Move": true, "RequestCommit": true, "Resolve": true}

// longTimeout bounds one try of a long call, so that a server that was cut off in the middle is left in the end.
var longTimeout = map[string]time.Duration{"RequestCommit": 5 * time.Second}

// Invoke is grpc.ClientConnInterface's.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	Identify(args)
	name := path.Base(method)
	wait := pause
	for {
		var err error
		for range c.conns {
			i := c.current()
			err = c.try(ctx, i, name, method, args, reply, opts)
			if err == nil || !again(ctx, name, err) {
				return err
			}
			c.next(i)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
			wait = min(2*wait, maxPause)
		}
	}
}

func (c *Conn) try(ctx context.Context, i int, name, method string, args, reply any, opts []grpc.CallOption) error {
	limit := tryTimeout
	if long[name] {
		limit = longTimeout[name]
	}
	lost := func() bool { return false }
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	} else {
		var cancel context.CancelFunc
		ctx, cancel, lost = c.guard(ctx, i)
		defer cancel()
	}
	var header metadata.MD
	if err := c.conns[i].Invoke(ctx, method, args, reply, append(opts[:len(opts):len(opts)], grpc.Header(&header))...); err != nil {
		if lost() {
			return c.silent(i)
		}
		return err
	}
	if l := header.Get(LeaderHeader); len(l) == 1 {
		c.prefer(l[0])
	}
	return nil
}

// Times of the guard of a call that may take long. Two probes in a row that fail are a silent server.
const (
	probeEvery   = 2 * time.Second
	probeTimeout = 2 * time.Second
)

// guard is ctx until server i is silent: one that was stopped or cut off keeps its connections, and a call there
// would wait for as long as its caller does. lost says whether it was that.
func (c *Conn) guard(ctx context.Context, i int) (_ context.Context, cancel context.CancelFunc, lost func() bool) {
	ctx, stop := context.WithCancelCause(ctx)
	go func() { // ends with the call, whose caller always cancels
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for failed := 0; failed < 2; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			probe, done := context.WithTimeout(ctx, probeTimeout)
			err := c.conns[i].Invoke(probe, clusterapi.Cluster_Nodes_FullMethodName, &clusterapi.NodesRequest{}, &clusterapi.NodesReply{})
			done()
			failed++
			if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable {
				failed = 0
			}
		}
		stop(errSilent)
	}()
	return ctx, func() { stop(context.Canceled) }, func() bool { return errors.Is(context.Cause(ctx), errSilent) }
}

var errSilent = errors.New("client: the server is silent")

func (c *Conn) silent(i int) error {
	return status.Errorf(codes.Unavailable, "%s at %s is silent", c.servers[i].Name, c.servers[i].Address)
}

// guarded is a stream whose server is watched; a silent one ends it with UNAVAILABLE.
type guarded struct {
	grpc.ClientStream
	c      *Conn
	i      int
	cancel context.CancelFunc
	lost   func() bool
}

// RecvMsg is grpc.ClientStream's.
func (g *guarded) RecvMsg(m any) error {
	err := g.ClientStream.RecvMsg(m)
	if err == nil {
		return nil
	}
	lost := g.lost()
	g.cancel()
	if lost {
		g.c.next(g.i)
		return g.c.silent(g.i)
	}
	if status.Code(err) == codes.Unavailable {
		g.c.next(g.i)
	}
	return err
}

// prefer goes to the leader with the next call, if it is one of our servers and has answered of late.
func (c *Conn) prefer(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.servers {
		if s.Name == name && time.Since(c.failed[i]) > shun {
			c.good = i
		}
	}
}

// again says whether a call may be made again. A deadline that was ours, not the caller's, is a silent server.
func again(ctx context.Context, name string, err error) bool {
	if once[name] || ctx.Err() != nil {
		return false
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// Identify gives calls that create something an id, by which the cluster recognises a repetition.
func Identify(args any) {
	switch r := args.(type) {
	case *clusterapi.RunRequest:
		if r.RequestId == "" {
			r.RequestId = rand.Text()
		}
	case *clusterapi.MoveRequest:
		if r.RequestId == "" {
			r.RequestId = rand.Text()
		}
	}
}

// NewStream is grpc.ClientConnInterface's. A stream that has begun is not begun again here; see Watch.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	var err error
	for range c.conns {
		i := c.current()
		under, cancel, lost := c.guard(ctx, i)
		var st grpc.ClientStream
		if st, err = c.conns[i].NewStream(under, desc, method, opts...); err == nil {
			return &guarded{ClientStream: st, c: c, i: i, cancel: cancel, lost: lost}, nil
		}
		cancel()
		if !again(ctx, path.Base(method), err) {
			break
		}
		c.next(i)
	}
	return nil, err
}

func (c *Conn) current() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.good
}

func (c *Conn) next(after int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[after] = time.Now()
	if c.good == after {
		c.good = (after + 1) % len(c.conns)
	}
}
