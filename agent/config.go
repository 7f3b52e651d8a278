package agent

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/grpc"

	"migrate/coordinator/pki"
)

// Config is what an agent needs to know. Name, Bind, Servers and Credentials have to be set.
type Config struct {
	Name        string   // of the host, as in its certificate
	Bind        string   // address to listen on
	ControlPort int      // 0: 7401
	PagesPort   int      // 0: 7402
	Servers     []string // of the cluster, each "name" (resolvable) or "name=host"
	Server      bool     // this host is one of them
	Credentials *pki.Credentials
	DataDir     string // empty: /var/lib/migrate
	Socket      string // empty: /run/migrate/agent.sock
	Bridge      string // that workloads' ports are connected to; empty: workloads can have no address
	Cgroup      string // below the v2 mount, under which workloads are put; empty: "migrate", or beside the agent's own
	Version     string
	// Register, if not nil, adds services to the control port: a server's Cluster.
	Register func(grpc.ServiceRegistrar)
	Log      *slog.Logger
	// Failpoint is move.Config's.
	Failpoint func(point string)
}

// Defaults of a Config.
const (
	DefaultControlPort = 7401
	DefaultPagesPort   = 7402
	DefaultDataDir     = "/var/lib/migrate"
	DefaultSocket      = "/run/migrate/agent.sock"
)

func (c *Config) complete() error {
	switch {
	case c.Name == "":
		return errors.New("the agent's configuration names no host (name)")
	case net.ParseIP(c.Bind) == nil:
		return fmt.Errorf("the agent's configuration: bind %q is not an IP address", c.Bind)
	case len(c.Servers) == 0:
		return errors.New("the agent's configuration names no servers of the cluster (servers)")
	case c.Credentials == nil:
		return errors.New("the agent has no certificate")
	case c.Credentials.Cert.Subject.CommonName != c.Name:
		return fmt.Errorf("the certificate is of %q, and this host is called %q", c.Credentials.Cert.Subject.CommonName, c.Name)
	}
	c.ControlPort = cmp.Or(c.ControlPort, DefaultControlPort)
	c.PagesPort = cmp.Or(c.PagesPort, DefaultPagesPort)
	c.DataDir = cmp.Or(c.DataDir, DefaultDataDir)
	c.Socket = cmp.Or(c.Socket, DefaultSocket)
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Cgroup == "" {
		c.Cgroup = defaultCgroup()
	}
	return nil
}

// defaultCgroup is "migrate" beside the agent's own cgroup, so that what manages the agent, such as a virtual host or a
// container, also holds its workloads.
func defaultCgroup() string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "migrate"
	}
	for line := range strings.Lines(string(text)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(filepath.Dir(filepath.Clean("/"+own)), "migrate")
		}
	}
	return "migrate"
}

// A server is one of the cluster's.
type server struct{ name, host string }

func (c *Config) servers() []server {
	out := make([]server, 0, len(c.Servers))
	for _, s := range c.Servers {
		name, host, ok := strings.Cut(s, "=")
		if !ok {
			host = name
		}
		out = append(out, server{name, host})
	}
	return out
}

func (s server) address(port int) string { return net.JoinHostPort(s.host, strconv.Itoa(port)) }

func (c *Config) address(port int) string { return net.JoinHostPort(c.Bind, strconv.Itoa(port)) }
