package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"migrate/agent"
	"migrate/coordinator"
	"migrate/coordinator/pki"
)

// hostFlags are those of the verbs that install a host.
type hostFlags struct {
	name, advertise, bridge, config, dataDir string
}

func (h *hostFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&h.name, "name", "", "what the cluster calls this host (default: its host name)")
	cmd.Flags().StringVar(&h.advertise, "advertise", "", "IP address at which the other hosts reach this one (default: that of the route to them)")
	cmd.Flags().StringVar(&h.bridge, "bridge", "", "bridge of this host that workloads with an address are connected to")
	cmd.Flags().StringVar(&h.config, "config", defaultAgentFile, "configuration file to write; certificates go beside it")
	cmd.Flags().StringVar(&h.dataDir, "data-dir", agent.DefaultDataDir, "where the agent keeps its state")
}

func (h *hostFlags) tlsDir() string { return filepath.Join(filepath.Dir(h.config), "tls") }
func (h *hostFlags) caDir() string  { return filepath.Join(filepath.Dir(h.config), "ca") }

// complete checks the flags and finds out what was left open. towards is an address that the host has a route to.
func (h *hostFlags) complete(towards string) (net.IP, error) {
	if h.name == "" {
		full, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		h.name, _, _ = strings.Cut(strings.ToLower(full), ".")
	}
	if err := pki.CheckName(h.name); err != nil {
		return nil, fmt.Errorf("%w; give one with --name", err)
	}
	for _, path := range []string{h.config, h.tlsDir(), h.caDir(), filepath.Join(h.dataDir, "raft")} {
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("%s is there: this host belongs to a cluster already; to give that up for good, stop its agent and remove %s, %s, %s and %s", path, h.config, h.tlsDir(), h.caDir(), h.dataDir)
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if h.advertise == "" {
		c, err := net.Dial("udp", net.JoinHostPort(towards, "9")) // sends nothing (udp(7))
		if err != nil {
			return nil, fmt.Errorf("this host has no route to %s from which its address could be told; give one with --advertise", towards)
		}
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok && !a.IP.IsLoopback() {
			h.advertise = a.IP.String()
		}
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
	ip := net.ParseIP(h.advertise)
	if ip == nil || ip.IsUnspecified() {
		return nil, fmt.Errorf("--advertise %q is not an IP address of this host", h.advertise)
	}
	return ip, nil
}

// file is the configuration that both verbs write.
func (h *hostFlags) file() agentFile {
	return agentFile{Name: h.name, Bind: h.advertise, TLSDir: h.tlsDir(), DataDir: h.dataDir, Bridge: h.bridge}
}

// install writes the certificate, the authority if it is here, and the configuration, which comes last: with it the host is
// installed. If one of them cannot be written, none stays.
func (h *hostFlags) install(f agentFile, cred *pki.Credentials, ca *pki.CA) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(h.tlsDir()), os.RemoveAll(h.caDir()))
		}
	}()
	if err := os.MkdirAll(filepath.Dir(h.config), 0o755); err != nil {
		return err
	}
	if ca != nil {
		if err := ca.WriteDir(h.caDir()); err != nil {
			return err
		}
	}
	if err := cred.WriteDir(h.tlsDir()); err != nil {
		return err
	}
	return writeAgentFile(h.config, f)
}

func newInitCommand() *cobra.Command {
	var h hostFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster, of this host at first",
		Long: `Makes the certificate authority of a new cluster, a certificate of this host, which is the cluster's first server, and the
configuration of its agent. The other hosts come with ` + "`migrate token create`" + ` here and ` + "`migrate join`" + ` there. The
authority's key stays on this host: keep a copy of /etc/migrate/ca in a safe place.`,
		Example: `  migrate init
  migrate init --name host1 --advertise 192.0.2.11 --bridge br0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ip, err := h.complete("192.0.2.1") // TEST-NET-1: by the default route
			if err != nil {
				return err
			}
			ca, err := pki.NewCA()
			if err != nil {
				return err
			}
			cred, err := ca.Issue(h.name, []net.IP{ip}, pki.RoleNode, pki.RoleServer)
			if err != nil {
				return err
			}
			f := h.file()
			f.Server, f.Servers, f.BootstrapExpect, f.CADir = true, []string{h.name + "=" + h.advertise}, 1, h.caDir()
			if err := h.install(f, cred, ca); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, at %s, is the first server of a new cluster.\nstart its agent:    systemctl enable --now migrate-agent   (or: migrate agent --config %s)\nlet others join:    migrate token create\n",
				h.name, h.advertise, h.config)
			return err
		},
	}
	h.add(cmd)
	return cmd
}

// joinAddress is where hosts join, if the authority is on this host.
func joinAddress(config string) string {
	var f agentFile
	if err := readAgentFile(config, &f); err != nil || f.CADir == "" {
		return ""
	}
	if f.Ports.Join != 0 && f.Ports.Join != coordinator.DefaultJoinPort {
		return net.JoinHostPort(f.Bind, fmt.Sprint(f.Ports.Join))
	}
	return f.Bind
}
