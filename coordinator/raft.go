package coordinator

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"migrate/coordinator/fsm"
	"migrate/coordinator/fsm/logpb"
	"migrate/coordinator/pki"
)

// Times of raft, for a LAN: a dead leader is noticed after 0.5 to 1 s and replaced within another half. Shorter ones
// make a busy machine lose its leader for nothing.
const (
	heartbeatTimeout = 500 * time.Millisecond
	electionTimeout  = 500 * time.Millisecond
	leaseTimeout     = 400 * time.Millisecond
	commitTimeout    = 250 * time.Millisecond // until idle followers hear what was committed; nobody reads from them
	proposeTimeout   = 5 * time.Second        // to get into raft's queue, not to be committed
	barrierTimeout   = 5 * time.Second
	raftIOTimeout    = 5 * time.Second
)

// node is raft with its stores and its transport.
type node struct {
	raft      *raft.Raft
	store     *fsm.Store
	log       *raftboltdb.BoltStore
	transport *raft.NetworkTransport
	leader    <-chan bool

	votersMu  sync.Mutex
	committed map[string]bool // of voters; replaced, never changed
}

// openRaft starts raft from what is on disk. With nothing there, and no cluster that answers, it makes a new cluster
// of the configured servers; every server does so with the same configuration, which is how they find each other.
func openRaft(ctx context.Context, c Config, exists func(context.Context) bool) (n *node, err error) {
	dir := filepath.Join(c.DataDir, "raft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("coordinator: data directory: %w", err)
	}
	n = &node{store: fsm.New()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.log, err = raftboltdb.NewBoltStore(filepath.Join(dir, "log.db")); err != nil {
		return n, fmt.Errorf("coordinator: open %s: %w", filepath.Join(dir, "log.db"), err)
	}
	logger := hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: lines{c.Log}, DisableTime: true})
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, logger)
	if err != nil {
		return n, fmt.Errorf("coordinator: snapshots in %s: %w", dir, err)
	}
	layer, err := listenRaft(c, n.store)
	if err != nil {
		return n, err
	}
	n.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: layer, MaxPool: 3, Timeout: raftIOTimeout, Logger: logger})
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(c.Name)
	config.HeartbeatTimeout, config.ElectionTimeout = heartbeatTimeout, electionTimeout
	config.LeaderLeaseTimeout, config.CommitTimeout = leaseTimeout, commitTimeout
	config.Logger = logger
	leader := make(chan bool, 16)
	config.NotifyCh = leader
	n.leader = leader
	cache, err := raft.NewLogCache(512, n.log)
	if err != nil {
		return n, fmt.Errorf("coordinator: %w", err)
	}
	if has, err := raft.HasExistingState(cache, n.log, snaps); err != nil {
		return n, fmt.Errorf("coordinator: read %s: %w", dir, err)
	} else if !has && !c.Joined && !exists(ctx) {
		if err := raft.BootstrapCluster(config, cache, n.log, snaps, n.transport, c.voters()); err != nil {
			return n, fmt.Errorf("coordinator: new cluster of %v: %w", c.Servers, err)
		}
	}
	if n.raft, err = raft.NewRaft(config, n.store, cache, n.log, snaps, n.transport); err != nil {
		return n, fmt.Errorf("coordinator: start raft: %w", err)
	}
	return n, nil
}

func (c Config) voters() raft.Configuration {
	var out raft.Configuration
	for _, p := range c.peers() {
		out.Servers = append(out.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.name), Address: raft.ServerAddress(p.addr(c.Ports.Raft))})
	}
	return out
}

func (n *node) close() error {
	var errs []error
	if n.raft != nil {
		errs = append(errs, n.raft.Shutdown().Error())
	}
	if n.transport != nil {
		errs = append(errs, n.transport.Close())
	}
	if n.log != nil {
		errs = append(errs, n.log.Close())
	}
	return errors.Join(errs...)
}

// errUnknown says that it is not known whether a proposal is, or will be, in the log. Read the log.
var errUnknown = errors.New("coordinator: the log's answer is not known")

// propose puts a command into the log and waits until it was applied here. An error is errUnknown: the command may
// still be applied. What the state thinks of the command is in the result.
func (n *node) propose(c *logpb.Command) (fsm.Result, error) {
	c.UnixNs = time.Now().UnixNano()
	b, err := fsm.Encode(c)
	if err != nil {
		return fsm.Result{}, err
	}
	f := n.raft.Apply(b, proposeTimeout)
	if err := f.Error(); err != nil {
		return fsm.Result{}, fmt.Errorf("%w: %w", errUnknown, err)
	}
	res, ok := f.Response().(fsm.Result)
	if !ok {
		return fsm.Result{}, fmt.Errorf("%w: odd answer %T", errUnknown, f.Response())
	}
	return res, nil
}

// stream is raft's connections: mutual TLS to servers that are verified by name.
type stream struct {
	net.Listener
	c     Config
	store *fsm.Store
}

func listenRaft(c Config, store *fsm.Store) (*stream, error) {
	self := voter{host: c.Bind}
	conf := c.TLS.ServerTLS()
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := pki.PeerIdentity(cs)
		if err == nil && !id.Has(pki.RoleServer) {
			err = fmt.Errorf("coordinator: %s, with roles %v, is no server of the cluster", id.Name, id.Roles)
		}
		return err
	}
	l, err := tls.Listen("tcp", self.addr(c.Ports.Raft), conf)
	if err != nil {
		return nil, fmt.Errorf("coordinator: listen for raft on %s: %w", self.addr(c.Ports.Raft), err)
	}
	return &stream{Listener: l, c: c, store: store}, nil
}

// Addr is the address under which the others know this server, not the one that it is bound to.
func (s *stream) Addr() net.Addr {
	host, _ := s.c.host(s.c.Name)
	return raftAddr(voter{host: host}.addr(s.c.Ports.Raft))
}

type raftAddr string

func (a raftAddr) Network() string { return "tcp" }
func (a raftAddr) String() string  { return string(a) }

// Dial is raft.StreamLayer's.
func (s *stream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	name := ""
	for _, p := range known(s.c, s.store) {
		if p.addr(s.c.Ports.Raft) == string(addr) {
			name = p.name
		}
	}
	if name == "" {
		return nil, fmt.Errorf("coordinator: %s is no server of this cluster (%v)", addr, s.c.Servers)
	}
	conf, err := s.c.TLS.ClientTLS(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	raw, err := s.c.Dialer(ctx, "tcp", string(addr))
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("coordinator: raft connection to %s at %s: %w", name, addr, err), raw.Close())
	}
	return conn, nil
}

// lines passes raft's own log lines on.
type lines struct{ log *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.Contains(b, []byte("[ERROR]")) {
		level = slog.LevelWarn
	}
	l.log.Log(context.Background(), level, string(bytes.TrimSpace(b)))
	return len(b), nil
}

// voters is the servers whose votes count, by the last configuration that is known to be committed: one of which the leader has only told
// others may be forgotten with it.
func (n *node) voters() map[string]bool {
	n.votersMu.Lock()
	defer n.votersMu.Unlock()
	f := n.raft.GetConfiguration()
	if f.Error() == nil && f.Index() <= n.raft.CommitIndex() {
		n.committed = map[string]bool{}
		for _, s := range f.Configuration().Servers {
			n.committed[string(s.ID)] = s.Suffrage == raft.Voter
		}
	}
	return n.committed
}
