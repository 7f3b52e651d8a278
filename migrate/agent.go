package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"migrate/agent"
	"migrate/coordinator"
	"migrate/coordinator/pki"
)

func newAgentCommand() *cobra.Command {
	var file, metrics string
	var server, dev bool
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the daemon of this host",
		Long:  "Runs the daemon of this host in the foreground, until SIGINT or SIGTERM. Programs that it has started go on without it.",
		Example: `  migrate agent --config /etc/migrate/agent.yaml
  migrate agent --dev`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := agentFile{DataDir: agent.DefaultDataDir, Socket: socketPath(cmd)}
			if dev {
				if err := devConfig(&c); err != nil {
					return err
				}
			} else if err := errors.Join(readAgentFile(file, &c), setFromEnvironment(&c, os.LookupEnv)); err != nil {
				return err
			}
			if cmd.Flags().Changed("socket") {
				c.Socket = socketPath(cmd)
			}
			if cmd.Flags().Changed("metrics") {
				c.Metrics = metrics
			}
			c.Server = c.Server || server
			return runAgent(cmd.Context(), c, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
	cmd.Flags().StringVar(&file, "config", defaultAgentFile, "configuration file")
	cmd.Flags().StringVar(&metrics, "metrics", "", "serve metrics for Prometheus at this ADDRESS:PORT (default: nowhere)")
	cmd.Flags().BoolVar(&server, "server", false, "be a voter of the cluster")
	cmd.Flags().BoolVar(&dev, "dev", false, "a cluster of this one host, with nothing to configure")
	return cmd
}

// devConfig makes a cluster of one host, with an authority of its own, on loopback.
func devConfig(c *agentFile) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	c.Name, c.Server, c.Bind, c.Servers, c.BootstrapExpect = name, true, "127.0.0.1", []string{name + "=127.0.0.1"}, 1
	c.TLSDir = c.DataDir + "/dev-tls"
	if _, err := pki.LoadCredentials(c.TLSDir); err == nil {
		return nil
	}
	ca, err := pki.NewCA()
	if err != nil {
		return err
	}
	cert, err := ca.Issue(name, []net.IP{net.IPv4(127, 0, 0, 1)}, pki.RoleNode, pki.RoleServer)
	if err != nil {
		return err
	}
	return cert.WriteDir(c.TLSDir)
}

// runAgent runs the agent, and on a server the coordinator beside it, until ctx ends.
func runAgent(ctx context.Context, c agentFile, log *slog.Logger) (err error) {
	cred, err := pki.LoadCredentials(c.TLSDir)
	if err != nil {
		return err
	}
	var register func(grpc.ServiceRegistrar)
	var collect []prometheus.Collector
	if c.Server {
		var authority *pki.CA
		if c.CADir != "" {
			if authority, err = pki.LoadCA(c.CADir); err != nil {
				return err
			}
		}
		s, err := coordinator.Start(ctx, coordinator.Config{
			Name: c.Name, Bind: c.Bind, Ports: coordinator.Ports{Control: c.Ports.Control, Raft: c.Ports.Raft, Gossip: c.Ports.Gossip, Join: c.Ports.Join},
			Servers: c.Servers, BootstrapExpect: c.BootstrapExpect, Joined: c.Joined, PagesPort: cmp.Or(c.Ports.Pages, agent.DefaultPagesPort), Authority: authority, DataDir: c.DataDir, TLS: cred, Log: log, Dialer: agent.Dial,
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		register, collect = s.Register, s.Metrics()
	}
	a, err := agent.Start(ctx, agent.Config{
		Name: c.Name, Bind: c.Bind, ControlPort: c.Ports.Control, PagesPort: c.Ports.Pages, Servers: c.Servers, Server: c.Server,
		Credentials: cred, DataDir: c.DataDir, Socket: c.Socket, Bridge: c.Bridge, Version: version, Register: register, Log: log,
		Failpoint: failpoint(log),
	})
	if err != nil {
		return err
	}
	endMetrics, err := serveMetrics(ctx, c.Metrics, log, append(collect, a.Metrics()...))
	if err != nil {
		return errors.Join(err, a.Close())
	}
	err = served(ctx, c.Socket, log)
	log.Info("the agent ends")
	return errors.Join(err, endMetrics(), a.Close())
}
