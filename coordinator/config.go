package coordinator

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"migrate/coordinator/pki"
)

// TLS is where a server's certificates come from; *pki.Credentials is one. ClientTLS is for a connection to the node
// that the cluster knows under serverName.
type TLS interface {
	ServerTLS() *tls.Config
	ClientTLS(serverName string) (*tls.Config, error)
}

// Ports are the same on every server. Control is the port of service Cluster, which a server shares with its agent.
type Ports struct {
	Control, Raft, Gossip int // Gossip 0: no memberlist
	Join                  int // of the server with the authority, 0: 7405
}

// Config is what a server needs to know. Name, Bind, Servers, DataDir and TLS have to be set.
type Config struct {
	Name    string   // of this server, as in its certificate
	Bind    string   // IP address to listen on
	Ports   Ports    // zero: 7401, 7403, 7404
	Servers []string // all voters, each "name" (resolvable) or "name=host"; the first cluster is made of these
	// BootstrapExpect is how many servers Servers must name before a new cluster is made of them; 0: as many as it
	// names. A typing error in one host's list is then found before it splits the cluster.
	BootstrapExpect int
	Joined          bool    // this server was added to a cluster that there is: it never makes a new one
	PagesPort       int     // of the agents, which hosts that join are told
	Authority       *pki.CA // nil: hosts do not join here
	DataDir         string  // log and snapshots, in DataDir/raft
	TLS             TLS
	Dialer          func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Listen          bool                                                              // serve Cluster on a listener of our own; else see Server.Register
	GossipKey       []byte                                                            // 16, 24 or 32 bytes; memberlist is not authenticated without
	Log             *slog.Logger                                                      // nil: slog.Default
	Limits          Limits
}

// Limits are times after which the leader proposes something. None of them is evidence: every proposal is a
// compare-and-set that comes too late if the matter was decided.
type Limits struct {
	Silence    time.Duration // of an agent before the commit, until the migration is aborted; 0: 8 s
	Switch     time.Duration // of a switch over its max_downtime, until the attempt is ended; 0: 10 s
	LoneVote   time.Duration // of a source's vote without the destination's request, until the abort; 0: 1 s
	Redrive    time.Duration // between two sendings of an order that was not answered; 0: 1 s
	Reachable  time.Duration // for an agent to answer a plan; 0: 10 s
	StartGrace time.Duration // for an agent to start or stop a workload, besides the grace of the stop; 0: 30 s
	DrainRetry time.Duration // until a host that could not take a workload is asked again; 0: 30 s
}

// DefaultPorts are used where Config.Ports is zero.
var DefaultPorts = Ports{Control: 7401, Raft: 7403, Gossip: 7404, Join: DefaultJoinPort}

// complete checks the configuration and fills in what was left out.
func (c Config) complete() (Config, error) {
	switch {
	case c.Name == "":
		return c, errors.New("coordinator: a server needs a name")
	case c.DataDir == "":
		return c, errors.New("coordinator: a server needs a data directory")
	case c.TLS == nil:
		return c, errors.New("coordinator: a server needs certificates")
	case net.ParseIP(c.Bind) == nil:
		return c, fmt.Errorf("coordinator: bind %q is not an IP address", c.Bind)
	}
	if c.Ports.Control == 0 && c.Ports.Raft == 0 && c.Ports.Gossip == 0 {
		c.Ports.Gossip = DefaultPorts.Gossip
	}
	c.Ports.Control, c.Ports.Raft = cmp.Or(c.Ports.Control, DefaultPorts.Control), cmp.Or(c.Ports.Raft, DefaultPorts.Raft)
	c.Ports.Join = cmp.Or(c.Ports.Join, DefaultPorts.Join)
	if len(c.Servers) == 0 {
		c.Servers = []string{c.Name + "=" + c.Bind}
	}
	if !slices.ContainsFunc(c.peers(), func(p voter) bool { return p.name == c.Name }) {
		return c, fmt.Errorf("coordinator: this server, %q, is not one of the servers %v", c.Name, c.Servers)
	}
	if n := cmp.Or(c.BootstrapExpect, len(c.Servers)); n != len(c.Servers) {
		return c, fmt.Errorf("coordinator: bootstrap_expect is %d, but servers names %d: %v", n, len(c.Servers), c.Servers)
	}
	if c.Dialer == nil {
		c.Dialer = new(net.Dialer).DialContext
	}
	c.Log = cmp.Or(c.Log, slog.Default()).With("server", c.Name)
	l := &c.Limits
	l.Silence = cmp.Or(l.Silence, 8*time.Second)
	l.Switch = cmp.Or(l.Switch, 10*time.Second)
	l.LoneVote = cmp.Or(l.LoneVote, time.Second)
	l.Redrive = cmp.Or(l.Redrive, time.Second)
	l.Reachable = cmp.Or(l.Reachable, 10*time.Second)
	l.StartGrace = cmp.Or(l.StartGrace, 30*time.Second)
	l.DrainRetry = cmp.Or(l.DrainRetry, 30*time.Second)
	return c, nil
}

// peer is one server of the configuration.
type voter struct{ name, host string }

func (c Config) peers() []voter {
	var out []voter
	for _, s := range c.Servers {
		name, host, ok := strings.Cut(s, "=")
		if !ok {
			host = name
		}
		out = append(out, voter{name, host})
	}
	return out
}

// host is where a server listens.
func (c Config) host(name string) (string, bool) {
	for _, p := range c.peers() {
		if p.name == name {
			return p.host, true
		}
	}
	return "", false
}

func (p voter) addr(port int) string { return net.JoinHostPort(p.host, strconv.Itoa(port)) }
