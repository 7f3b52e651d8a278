package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/coordinator/pki"
)

// A cluster is connections to all servers, used as one: calls go to the server that answered last, and on to the next
// one when it does not. The order starts with this host's own server. It is a grpc.ClientConnInterface.
type cluster struct {
	names []string
	conns []*grpc.ClientConn

	mu   sync.Mutex
	best int // index of the server that answered last
}

func dialCluster(c *Config) (_ *cluster, err error) {
	cl := &cluster{}
	for _, s := range c.servers() {
		conn, err := dial(c.Credentials, s.name, s.address(c.ControlPort))
		if err != nil {
			return nil, errors.Join(err, cl.close())
		}
		if s.name == c.Name {
			cl.best = len(cl.conns)
		}
		cl.names, cl.conns = append(cl.names, s.name), append(cl.conns, conn)
	}
	return cl, nil
}

// dial makes a connection to the node that the cluster knows by this name. It connects when it is first used.
func dial(cred *pki.Credentials, name, address string) (*grpc.ClientConn, error) {
	conf, err := cred.ClientTLS(name)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithContextDialer(dialTCP),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(agentapi.MaxMessage), grpc.MaxCallSendMsgSize(agentapi.MaxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connection to %s at %s: %w", name, address, err)
	}
	return conn, nil
}

// silence is after how long without an acknowledgement a connection counts as lost.
const silence = 4 * time.Second

// Dial connects for the servers of the cluster beside the agent, as the agent itself does.
func Dial(ctx context.Context, _, address string) (net.Conn, error) { return dialTCP(ctx, address) }

// dialTCP connects, such that a peer that vanishes is noticed within some seconds (tcp(7), TCP_USER_TIMEOUT).
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 2}}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	raw, err := tcp.SyscallConn()
	if err == nil {
		var e error
		err = raw.Control(func(fd uintptr) {
			e = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
		})
		err = errors.Join(err, e)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connection to %s: %w", address, err), c.Close())
	}
	return c, nil
}

func (c *cluster) close() error {
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

func (c *cluster) first() int { c.mu.Lock(); defer c.mu.Unlock(); return c.best }

func (c *cluster) prefer(i int) { c.mu.Lock(); defer c.mu.Unlock(); c.best = i % len(c.conns) }

// next makes the next call begin with another server.
func (c *cluster) next() { c.prefer(c.first() + 1) }

// unreachable says that the server, and not the cluster, did not answer: the call may go to another one. A call that may
// have had an effect is not repeated here unless the API says that it is idempotent, which all unary ones are, given
// their request ids.
func unreachable(err error) bool { return status.Code(err) == codes.Unavailable }

// Invoke makes a unary call. Servers that cannot be reached are passed over.
func (c *cluster) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	var err error
	for i, first := 0, c.first(); i < len(c.conns); i++ {
		at := (first + i) % len(c.conns)
		if err = c.conns[at].Invoke(ctx, method, args, reply, opts...); !unreachable(err) {
			if status.Code(err) == codes.DeadlineExceeded {
				at++ // it may hang: the next call asks another one first
			}
			c.prefer(at)
			return err
		}
		if ctx.Err() != nil {
			return err
		}
	}
	return err
}

// NewStream opens a stream to the first server that can be reached.
func (c *cluster) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	var err error
	for i, first := 0, c.first(); i < len(c.conns); i++ {
		at := (first + i) % len(c.conns)
		var s grpc.ClientStream
		if s, err = c.conns[at].NewStream(ctx, desc, method, opts...); !unreachable(err) {
			return s, err
		}
		if ctx.Err() != nil {
			return nil, err
		}
	}
	return nil, err
}
